"""A mix of formats made for one model and one budget: which tensor gets which format so that the file fits and the model loses least."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pellucid import api
from pellucid.audit.damage import check_pair
from pellucid.audit.held_out import windows
from pellucid.audit.sensitivity import Model, Reference, measure, tokens_held
from pellucid.errors import BadRequest
from pellucid.families._describe import describe_checkpoint
from pellucid.model import importance
from pellucid.weights.allocate import Allocation, Choice, allocate
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.gguf_write import type_bytes
from pellucid.weights.imatrix import CHUNK, Imatrix
from pellucid.weights.inputs import TOKENIZER_FILES
from pellucid.weights.mixes import FORMATS

TOKENS = 4096  # of the text, on which KL is measured; the importance of columns is measured on at most IMPORTANCE
IMPORTANCE = 65_536
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(bpw|[kmgt]?i?b?)\s*", re.IGNORECASE)
_UNITS = {"K": 10**3, "KI": 2**10, "M": 10**6, "MI": 2**20, "G": 10**9, "GI": 2**30, "T": 10**12, "TI": 2**40, "": 1}
_HEAD = 16_384  # bytes of a GGUF file's own metadata and padding, names of tensors not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """The mix that was found. budget: bytes the file may have, of which `head` are kept for what is no tensor and `fixed` go to what is never packed."""

    allocation: Allocation
    choices: dict[str, list[Choice]]
    imatrix: Imatrix
    fixed_formats: dict[str, str]
    budget: int
    head: int
    fixed: int
    n_weights: int
    n_tokens: int

    @property
    def overrides(self) -> list[tuple[str, str]]:
        """For `convert`: every matrix by its name."""
        packed = {name: choice.format for name, choice in self.allocation.chosen.items()} | {n: f for n, f in self.fixed_formats.items() if f != "F32"}
        return [(f"^{re.escape(name)}$", format) for name, format in packed.items()]

    @property
    def base(self) -> str:
        """The format most bytes are in, whose number the file will carry."""
        sizes = Counter[str]()
        for choice in self.allocation.chosen.values():
            sizes[choice.format] += choice.n_bytes
        return sizes.most_common(1)[0][0]

    @property
    def bits_per_weight(self) -> float:
        return 8 * (self.allocation.n_bytes + self.fixed) / self.n_weights

    def table(self) -> list[tuple[str, str, int, float]]:
        """(kind of tensor, its formats and how many have each, bytes, damage), the kinds in the order of the model."""
        kinds: dict[str, list[Choice]] = {}
        for name, choice in self.allocation.chosen.items():
            kinds.setdefault(re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight"), []).append(choice)
        return [(kind, ", ".join(f"{format} {n}" for format, n in Counter(choice.format for choice in each).most_common()),
                 sum(choice.n_bytes for choice in each), sum(choice.damage for choice in each)) for kind, each in kinds.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told: that a stage of so many steps begins, and of every so many done."""

    started: Callable[[str, int], None] = lambda what, n: None
    report: Callable[[int], None] = lambda n: None


def plan(loaded: api.Model, text: str, fit: str, *, source: str, tokens: int = TOKENS, formats: Sequence[str] = FORMATS, imatrix: Imatrix | None = None,
         tokenizer: bool = True, watch: Watch = Watch()) -> Auto:
    """The mix for a model on a text. source: what the text is called, for the imatrix. tokenizer: whether room is kept for one.

    Raises BadRequest for a text that is too short, a budget that is none or that nothing fits, UnsupportedModel for a family that GGUF has no name for.
    """
    spec, words = loaded.spec, loaded.tokenizer
    check_pair(loaded.decoder, loaded.decoder)
    check_asked(fit, formats)
    described = describe_checkpoint(loaded.checkpoint, loaded.settings["accept_unread"])
    model = Model(loaded.checkpoint, described)
    budget, n_tensors = budget_bytes(fit, model.n_weights), len(model.matrices) + len(model.fixed)
    # Bits per weight count tensors alone.
    head = 0 if fit.lower().strip().endswith("bpw") else head_bytes(loaded.checkpoint, n_tensors, words.n_vocab, tokenizer)
    ids, bos = words.encode(text), words.bos_id if words.adds_bos else None
    sizes = {matrix.name: [Choice(format, type_bytes(format, matrix.shape), 0.0) for format in matrix.among(formats)] for matrix in model.matrices}
    _fitting(sizes, budget, head + model.fixed_bytes)  # before anything is measured
    texts = windows(ids, min(CHUNK, spec.n_ctx), bos=bos, most=min(tokens, tokens_held(spec.n_vocab)))
    if imatrix is None:
        read = importance.windows(ids, min(CHUNK, spec.n_ctx), bos=bos, most=IMPORTANCE // min(CHUNK, spec.n_ctx))
        watch.started("importance", sum(map(len, read)))
        imatrix = importance.measure(loaded.decoder, read, datasets=[source], report=watch.report)
    watch.started("sensitivity", len(model.matrices))
    reference = Reference(loaded.decoder, texts)
    choices = measure(model, reference, imatrix, report=watch.report, formats=formats)
    allocation = _fitting(choices, budget, head + model.fixed_bytes)
    return Auto(allocation=allocation, choices=choices, imatrix=imatrix, fixed_formats=model.fixed, budget=budget, head=head, fixed=model.fixed_bytes,
                n_weights=model.n_weights, n_tokens=reference.n_tokens)


def check_asked(fit: str, formats: Sequence[str]) -> None:
    """What can be said before a model is read. Raises BadRequest for a budget that is none, or formats that are not written."""
    if unknown := sorted({*formats} - {*FORMATS}):
        raise BadRequest(f"--formats {','.join(unknown)}: not written (written: {', '.join(FORMATS)})", field="formats")
    budget_bytes(fit, 1)


def budget_bytes(fit: str, n_weights: int) -> int:
    """Bytes of a budget such as 4GB, 300 MiB or 4.5bpw (bits per weight, all tensors counted). Raises BadRequest for what is none."""
    found = _BUDGET.fullmatch(fit)
    if found is None or not float(found[1]):
        raise BadRequest(f"--fit {fit!r} is no budget, such as 4GB, 300MB or 4.5bpw (bits per weight)", field="fit")
    if found[2].lower() == "bpw":
        return int(float(found[1]) * n_weights / 8)
    return int(float(found[1]) * _UNITS[found[2].upper().removesuffix("B")])


def head_bytes(checkpoint: Checkpoint, n_tensors: int, n_vocab: int, tokenizer: bool) -> int:
    """No less than what a file takes besides its tensors: metadata, names, padding, and the tokenizer, if one goes along."""
    n = _HEAD + 128 * n_tensors  # a name of 63 bytes, its entry, and padding
    if checkpoint.gguf is not None:
        return n + checkpoint.n_bytes - sum(entry.n_bytes for _, entry in checkpoint.gguf.tensors.values())
    files = [path.stat().st_size for pattern in TOKENIZER_FILES for path in checkpoint.folder.glob(pattern)] if tokenizer else []
    return n + (max(files) + 12 * n_vocab if files else 0)  # GGUF adds lengths, kinds and scores to every token, lengths to every merge


def _fitting(choices: dict[str, list[Choice]], budget: int, taken: int) -> Allocation:
    """The error counts the whole file, as the budget does."""
    least = taken + sum(min(choice.n_bytes for choice in each) for each in choices.values())
    if least > budget:
        raise BadRequest(f"no mix fits {budget:,} bytes: with every matrix in its smallest format this model takes {least:,} bytes ({taken:,} of them are "
                         f"what is never packed, and the file's head). Give a larger --fit, or a smaller model", field="fit")
    return allocate(choices, budget - taken)

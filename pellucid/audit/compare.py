"""Two loaded models and a text -> the report of what the second one lost."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from pellucid.api import Model
from pellucid.audit.damage import Damage, Seen, check_pair, look, measure
from pellucid.audit.held_out import encoded, windows
from pellucid.audit.intervals import Resampled
from pellucid.audit.passages import Passage, n_bytes, worst_passages
from pellucid.audit.tensors import Comparison, compare_tensors
from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer

WINDOW, TOKENS = 1024, 16_384  # a window's length, and tokens scored, unless more are asked for: minutes for a model of a billion parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a comparison found. n_text: tokens of the whole text, of which damage.n_tokens were scored; window: tokens read together."""

    names: tuple[str, str]
    n_bytes: tuple[int, int]
    arithmetic: tuple[str, str]
    n_text: int
    window: int
    damage: Damage
    draws: Resampled
    seen: Seen
    tensors: Comparison
    passages: tuple[Passage, ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """Everything but the tokens one by one, as plain data."""
        draws = self.draws
        intervals = {"level": 0.95, "draws": draws.draws, "blocks": draws.n_blocks, "tokens_per_block": draws.block, "seed": draws.seed}
        return {"a": self.names[0], "b": self.names[1], "bytes_a": self.n_bytes[0], "bytes_b": self.n_bytes[1], "arithmetic_a": self.arithmetic[0],
                "arithmetic_b": self.arithmetic[1], "text_tokens": self.n_text, "window": self.window, **asdict(self.damage), "intervals": intervals,
                "tensors": [asdict(each) for each in self.tensors.changed], "tensors_left_out": self.tensors.left_out,
                "passages": [asdict(each) for each in self.passages], "notes": list(self.notes), "seconds": self.seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told: that a stage of so many steps begins, and of every so many done."""

    started: Callable[[str, int], None] = lambda what, n: None
    report: Callable[[int], None] = lambda n: None


def compare(a: Model, b: Model, text: str, *, names: tuple[str, str] | None = None, tokens: int | None = TOKENS, window: int = WINDOW, seed: int = 0,
            watch: Watch = Watch()) -> Report:
    """The report of b beside a on this text. tokens: score no more than about so many, None for all; seed: of the intervals' draws.

    Raises BadTokenizer, UnsupportedModel for models that cannot be compared, BadRequest for a text that is too short.
    """
    started = time.perf_counter()
    names = names or (a.checkpoint.name, b.checkpoint.name)
    check_pair(a.decoder, b.decoder, names)
    ids, tokenizer, notes = _ids(a, b, text, names)
    length = min(window, a.spec.n_ctx, b.spec.n_ctx)
    texts = windows(ids, length, bos=tokenizer.bos_id if tokenizer.adds_bos else None, most=tokens)
    watch.started("reading", sum(len(each.scored) for each in texts))
    seen = look(a.decoder, b.decoder, texts, watch.report, names)
    damage, draws = measure(seen, torch.tensor([n_bytes(tokenizer, i) for i in seen.ids.tolist()], dtype=torch.float64), seed)
    accepted = [each.settings["accept_unread"] for each in (a, b)]
    tensors = compare_tensors(a.checkpoint, b.checkpoint, accepted, started=lambda n: watch.started("weights", n), report=watch.report)
    arithmetic = tuple(f"{each.report.dtype}, {each.report.ops}" for each in (a, b))
    if a.report.dtype != b.report.dtype:
        notes.append(f"A was computed in {a.report.dtype} and B in {b.report.dtype}: part of the difference is their rounding. Give --dtype float32")
    return Report(names=names, n_bytes=(a.checkpoint.n_bytes, b.checkpoint.n_bytes), arithmetic=(arithmetic[0], arithmetic[1]), n_text=len(ids), window=length,
                  damage=damage, draws=draws, seen=seen, tensors=tensors, passages=tuple(worst_passages(seen, tokenizer)), notes=tuple(notes),
                  seconds=time.perf_counter() - started)


def _ids(a: Model, b: Model, text: str, names: tuple[str, str]) -> tuple[list[int], Tokenizer, list[str]]:
    """The text's ids by the tokenizer of both, or of the one that has one, which is said."""
    mine, other = (_tokenizer(each) for each in (a, b))
    if mine is not None:
        notes = [] if other is not None else [f"{names[1]} has no tokenizer: it is taken to have that of {names[0]}"]
        return encoded(text, mine, other, names), mine, notes
    if other is not None:
        return encoded(text, other, None, names), other, [f"{names[0]} has no tokenizer: it is taken to have that of {names[1]}"]
    raise BadTokenizer(f"neither {names[0]!r} nor {names[1]!r} has a tokenizer, and one is needed to read the text. Put the tokenizer files of the model "
                       f"beside its weights")


def _tokenizer(model: Model) -> Tokenizer | None:
    try:
        return model.tokenizer
    except BadTokenizer:  # raised here only where there is none; one that is not understood stops the load
        return None

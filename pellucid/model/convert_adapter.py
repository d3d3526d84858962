"""An adapter -> the other layout: peft's folder and llama.cpp's GGUF file, both ways, by the tables that place the base's own tensors.

A and B keep their numbers, bit for bit; rows of B go where the matrix's rows go. What is added, scale * B A, stays what it was: where one
`adapter.lora.alpha` cannot say every pair's scale, B takes what is left over, and that is said.
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pellucid.catalog import ancestry, gate, verdict
from pellucid.catalog.ancestry import ANCESTRY, section, text_of
from pellucid.catalog.lineage import Node, plain
from pellucid.errors import BadRequest, HubError, ModelNotFound, UnknownTensors, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import Description, describe_checkpoint
from pellucid.families._gguf_write import architecture_of
from pellucid.model.adapters import Halves, placed, projects
from pellucid.model.convert import Conversion, Kind, Watch, made_by
from pellucid.model.decoder import Decoder
from pellucid.model.report import count
from pellucid.model.to_safetensors import TEMPLATE
from pellucid.ops.choose import choose
from pellucid.records import Record, input_file, record_of, sha256_of
from pellucid.spec import DecoderSpec
from pellucid.weights.adapter import ALPHA, BASE_SHA256, MAGNITUDE, PREFIX, TYPE, WEIGHTS, AdapterFile, is_adapter, open_adapter
from pellucid.weights.adapter import CONFIG as ADAPTER_CONFIG
from pellucid.weights.assemble import joined_low_rank, layout
from pellucid.weights.card import Card, front_matter
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.drafts import Written
from pellucid.weights.gguf_card import LINEAGE, VERSION, general
from pellucid.weights.gguf_write import planned, write_gguf
from pellucid.weights.hub import resolve
from pellucid.weights.names import NameTable, Place, To, for_adapters
from pellucid.weights.packed_rows import PackedRows
from pellucid.weights.safetensors import SPELLED, raw, write
from pellucid.weights.save import move_folder, umask

_PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}  # and general.file_type, LLAMA_FTYPE of llama.h


@dataclass(frozen=True, slots=True)
class _Change:
    """What is added to one tensor of the files: scale * B A. m: of DoRA, how long the rows are then."""

    a: Tensor
    b: Tensor
    scale: float
    place: Place
    m: Tensor | None = None

    @property
    def alpha(self) -> float:
        """What the scale follows from, alpha / r."""
        return self.scale * self.a.shape[-2]


def convert_adapter(source: str | Path, out: str | Path, *, base: str | None = None, to: Kind, permission: str | None = None, overwrite: bool = False,
                    watch: Watch) -> Conversion:
    """Writes the adapter at `source` to `out`: a .gguf file, or a folder as peft saves it.

    base: the model it is for, a path or a repository that was pulled; None = the one that it names. Only its config or metadata is read.
    permission: a reference to one, where a license does not allow what pellucid.toml declares; it is recorded.
    Raises what `open_adapter`, describing the base, and `placed` raise; UnknownTensors for what the other layout has no place for; BadRequest;
    NotAllowed.
    """
    started = time.perf_counter()
    file, out = open_adapter(source), Path(out).expanduser()
    described, base_name = _base(file, base)
    spec = described.spec
    _check(file, Path(source), out, to, overwrite)
    parent = ancestry.of_path(Path(source), file.name)
    passed = gate.check(parent, ("modify",), Path.cwd(), permission)
    made = ancestry.child(parent, {path.name: sha256_of(path) for path in file.files})
    decoder, like, table = _files(spec, to)
    halves = placed(file, projects(decoder), spec, [] if file.format == "gguf" else [described.names])
    changes = _joined(file.name, halves, like, table, spec, to)
    notes = list(passed.notes) if passed else []
    notes += [f"{n} tensor{'s were' if n > 1 else ' was'} packed in {format}, and {'are' if n > 1 else 'is'} F32 now" for format, n in Counter(
        half.format for pair in file.pairs.values() for half in (pair.a, pair.b) if isinstance(half, PackedRows)).items()]
    notes += [f"a copy of the base's {name} in {file.name} is left out: what is written changes the base's own" for name in file.copies]
    lineage = [f"{sha256_of(path)}  {file.name}/{path.name}" for path in file.files]
    made_for = file.base or base_name
    card = Card(license=file.card.license, license_name=file.card.license_name, license_link=file.card.license_link, base_models=(made_for,))
    watch.started(sum(half.nbytes for change in changes.values() for half in (change.a, change.b)))
    if to == "gguf":
        files = _write_gguf(out, changes, card, architecture_of(spec).name, file.name, lineage, made, notes, overwrite, watch)
    else:
        files = _write_peft(out, changes, card, like, table, spec, made_for, lineage, made, "converted")
    types = Counter[str]()
    for change in changes.values():
        for half in (change.a, change.b):
            types[SPELLED[half.dtype]] += half.nbytes
    seconds = time.perf_counter() - started
    record = Record(kind="convert", seed=None, inputs={path.name: input_file(path) for path in file.files}, notes=notes,
                    settings={"source": os.path.abspath(source), "out": os.path.abspath(out), "to": to, "adapter": True, "base": base_name},
                    output={"files": {str(one.path): {"sha256": one.sha256, "bytes": one.n_bytes} for one in files}, "lineage": lineage,
                            "ancestry": plain(made), "license_of_result": verdict.result_license(made)},
                    measured={"seconds": seconds, "bytes": float(sum(one.n_bytes for one in files))}, licenses={file.name: file.card.license_shown})
    path = record_of(out)
    record.save(path)
    return Conversion(out=out, to=to, files=files, kept={"copied": 2 * len(changes), "exact": 0, "rounded": 0}, rounded={}, types=dict(types),
                      notes=tuple(notes), seconds=seconds, record=path, base=base or file.base)


def save_adapter(out: Path, halves: Halves, spec: DecoderSpec, *, base: str, card: Card, lineage: list[str], node: Node,
                 base_sha256: str | None = None, chat_template: str | None = None) -> tuple[Written, ...]:
    """Writes a trained adapter as peft saves one: `halves` are by our names. node: where it comes from.

    base_sha256: of the model that it was trained on, `Model.sha256`. chat_template: the source of the one that it learned with, where that is not its
    base's; beside the adapter, as trl leaves it there with a tokenizer.

    Raises UnknownTensors for what peft's files have no place for.
    """
    _, like, table = _files(spec, "safetensors", dora=_dora(halves))
    return _write_peft(out, _joined(out.name, halves, like, table, spec, "safetensors"), card, like, table, spec, base, lineage, node, "trained",
                       {} if base_sha256 is None else {BASE_SHA256: base_sha256}, {} if chat_template is None else {TEMPLATE: chat_template})


def check_saved(halves: Halves, spec: DecoderSpec) -> None:
    """Raises what `save_adapter` would raise for what has no place in peft's files: before a training, and not after it."""
    _, like, table = _files(spec, "safetensors", dora=_dora(halves))
    _joined("in training", halves, like, table, spec, "safetensors")


def _files(spec: DecoderSpec, to: Kind, *, dora: bool = False) -> tuple[Decoder, dict[str, Tensor], NameTable]:
    """The decoder without numbers, its weights that files have, and what they are called there. dora: which peft has of modules and not of parameters."""
    with torch.device("meta"):
        decoder = Decoder(spec, choose("reference"))
    like: dict[str, Tensor] = {name: p for name, p in decoder.named_parameters() if not (spec.tied and name == "unembed.weight")}
    return decoder, like, NameTable(for_adapters(family(spec.family).WEIGHTS, stacked=not dora) if to == "safetensors" else architecture_of(spec).table)


def _dora(halves: Halves) -> bool:
    return any(pair.m is not None for pair in halves.values())


def _base(file: AdapterFile, base: str | None) -> tuple[Description, str]:
    """What the base is, and its name."""
    named = base or file.base
    if named is None:
        raise BadRequest(f"adapter {file.name!r} does not say which model it is for, and that decides what its tensors are called. Add --base MODEL",
                         field="base")
    try:
        checkpoint = open_checkpoint(resolve(named))
    except (ModelNotFound, HubError) as e:
        if base is not None:
            raise
        raise BadRequest(f"adapter {file.name!r} says that it is for {named!r}, and that is not here ({e}). Give a model of the same sizes with --base MODEL",
                         field="base") from e
    return describe_checkpoint(checkpoint), checkpoint.name


def _check(file: AdapterFile, source: Path, out: Path, to: Kind, overwrite: bool) -> None:
    if (to == "gguf") == (file.format == "gguf"):
        raise BadRequest(f"adapter {file.name!r} is {'a GGUF file' if to == 'gguf' else 'in peft' + chr(39) + 's folder'} already. Copy it", field="out")
    if out.resolve() == source.expanduser().resolve():
        raise BadRequest(f"{out} is what is read, and is not written over. Give another name", field="out")
    if to == "safetensors" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise BadRequest(f"{out} is there, and nothing was written. Give another name, or --force to replace it", field="out")
        if not is_adapter(out):
            raise BadRequest(f"{out} is there and is no adapter (it has no {ADAPTER_CONFIG}); it is left alone, --force or not. Give another name", field="out")


def _joined(name: str, halves: Halves, like: Mapping[str, Tensor], table: NameTable, spec: DecoderSpec, to: Kind) -> dict[str, _Change]:
    """What is written, by the names of the tensors that it changes. Raises UnknownTensors for what has no place there."""
    out: dict[str, _Change] = {}
    for theirs, place in layout(table, like, spec).items():
        if not any(name in halves for name in place.names):
            continue
        pairs = {name: halves[name] for name in place.names if name in halves}
        if len(scales := {pair.scale for pair in pairs.values()}) > 1:
            raise UnknownTensors(f"{theirs} holds {', '.join(place.names[:3])}, and they are changed by scales of their own: {scales}")
        shapes = {name: tuple(like[name].shape) for name in place.names}
        if place.rule.all_experts and any(pair.m is not None for pair in pairs.values()):
            raise UnsupportedModel(f"{theirs} holds all experts, and files of adapters have no magnitudes of DoRA for such a one")
        a, b = joined_low_rank(theirs, {name: (pair.a, pair.b) for name, pair in pairs.items()}, place, spec, shapes)
        out[theirs] = _Change(a.contiguous(), b.contiguous(), scales.pop(), place, _lengths(theirs, pairs, place, spec))
    if lost := sorted(set(halves) - {name for change in out.values() for name in change.place.names}):
        raise UnknownTensors(f"{len(lost)} of {len(halves)} matrices that adapter {name!r} changes have no place in {to}, first: {', '.join(lost[:3])}")
    return out


def _lengths(theirs: str, pairs: Halves, place: Place, spec: DecoderSpec) -> Tensor | None:
    """DoRA's, for the rows of one of the files' tensors: they go where rows of B go."""
    columns = {name: (pair.a.new_zeros(1, 1), pair.m[:, None]) for name, pair in pairs.items() if pair.m is not None}
    return joined_low_rank(theirs, columns, place, spec)[1][:, 0].contiguous() if columns else None


def _write_gguf(out: Path, changes: dict[str, _Change], card: Card, architecture: str, name: str, lineage: list[str], node: Node, notes: list[str],
                overwrite: bool, watch: Watch) -> tuple[Written, ...]:
    if any(change.m is not None for change in changes.values()):
        raise UnsupportedModel(f"adapter {name!r} is of DoRA, and llama.cpp's adapters have no magnitudes. Write the model with it: pellucid merge "
                               f"BASE ADAPTER {out.name}")
    alphas = Counter(round(change.alpha, 9) for change in changes.values())
    alpha = next(change.alpha for change in changes.values() if round(change.alpha, 9) == alphas.most_common(1)[0][0])
    tensors, dtypes = [], Counter[torch.dtype]()
    odd = {"exactly": 0, "rounded": 0}
    for theirs, change in sorted(changes.items()):
        b, left = change.b, change.alpha / alpha
        if not math.isclose(left, 1.0, rel_tol=1e-9):
            b = b * left
            odd["exactly" if math.log2(abs(left)).is_integer() else "rounded"] += 1
        for half, numbers in (("lora_a", change.a), ("lora_b", b)):
            plain = numbers if numbers.dtype in _PLAIN else numbers.float()
            dtypes[plain.dtype] += plain.numel()
            tensors.append(planned(f"{theirs}.{half}", SPELLED[plain.dtype], tuple(plain.shape), lambda plain=plain: [raw(plain)]))
    notes += [f"{n} matri{'ces have' if n > 1 else 'x has'} a scale that {ALPHA}={alpha:g} does not say: B was multiplied by what is left, {how}"
              for how, n in odd.items() if n]
    [(most, _)] = dtypes.most_common(1)
    head = general(card, name=name, architecture=architecture, size_label=count(dtypes.total()).replace(" ", ""), file_type=_PLAIN[most])
    metadata = head | {"general.type": "adapter", TYPE: "lora", ALPHA: float(alpha), VERSION: made_by(), LINEAGE: lineage,
                       ANCESTRY: text_of(node)}
    return write_gguf(out, metadata, tensors, overwrite=overwrite, report=watch.report)


def _write_peft(out: Path, changes: dict[str, _Change], card: Card, like: Mapping[str, Tensor], table: NameTable, spec: DecoderSpec, base: str,
                lineage: list[str], node: Node, how: str, metadata: Mapping[str, str] | None = None,
                texts: Mapping[str, str] = MappingProxyType({})) -> tuple[Written, ...]:
    tensors = {f"{PREFIX}{module}.lora_{x}.weight": half for module, halves in _in_modules(changes).items() for x, half in zip("AB", halves, strict=True)}
    tensors |= {f"{PREFIX}{theirs.removesuffix('.weight')}{MAGNITUDE}": change.m for theirs, change in changes.items() if change.m is not None}
    about = f"# {out.name}\n\nA LoRA adapter for {base}, {how} by {made_by()}.\n\n{section(dataclasses.replace(node, name=out.name), lineage, made_by())}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        draft.mkdir()
        write(draft / WEIGHTS, tensors, {**(metadata or {}), ANCESTRY: text_of(node)})
        (draft / ADAPTER_CONFIG).write_text(json.dumps(_config(changes, like, table, spec, base), indent=2) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(front_matter(card) + about, encoding="utf-8")
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        draft.chmod(0o777 & ~umask())
        move_folder(draft, out)
    return tuple(Written(path=path, n_bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(out.iterdir()))


def _in_modules(changes: Mapping[str, _Change]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the names of peft's modules. What changes all experts lies as `_Parameters` of weights/adapter.py reads it."""
    inside: dict[str, list[str]] = {}
    for theirs, change in changes.items():
        if change.a.ndim == 3:
            inside.setdefault(theirs.rpartition(".")[0], []).append(theirs)
    out = {}
    for theirs, change in changes.items():
        if change.a.ndim == 2:
            out[theirs.removesuffix(".weight")] = change.a, change.b
            continue
        module = theirs.rpartition(".")[0]
        n_around = len(inside[module]) - 1 - inside[module].index(theirs)
        a_XrD, b_XFr = (change.b.mT, change.a.mT) if change.place.rule.turned else (change.a, change.b)
        out[module + ".base_layer" * n_around] = a_XrD.flatten(0, 1).contiguous(), b_XFr.permute(1, 2, 0).flatten(1).contiguous()
    return out


def _config(changes: Mapping[str, _Change], like: Mapping[str, Tensor], table: NameTable, spec: DecoderSpec, base: str) -> dict[str, Any]:
    """adapter_config.json, as LoraConfig of peft 0.21.2 reads it. A module is named by its last word where all of that word are changed, a parameter by
    its module's and its own."""
    dora, apart = any(change.m is not None for change in changes.values()), any(isinstance(r, To) and r.all_experts is True for r in table.table.values())

    def named(theirs: str, place: Place) -> tuple[str, bool]:
        """(what peft calls it, whether that is a parameter's name)."""
        # Where experts lie in one, transformers 5 has routers that are no Linear, and peft 0.21's `_convert_peft_config_moe` takes a dense gate_proj among
        # target_modules for the experts' and leaves it as it was: as parameters both are found.
        parameter = place.rule.all_experts is True or (apart and not dora and place.names[0].split(".")[2:3] in (["mlp"], ["beside"]))
        return theirs if parameter else theirs.removesuffix(".weight"), parameter

    modules = {named(theirs, change.place): change for theirs, change in changes.items()}
    there = {named(theirs, place) for theirs, place in layout(table, like, spec).items() if like[place.names[0]].ndim > 1}
    short = {module: ".".join(module[0].split(".")[-2 if module[1] else -1 :]) for module in modules}
    whole = {word for word in short.values() if all(module in modules for module in there if f".{module[0]}".endswith(f".{word}"))}
    targets = {kind: sorted({short[module] if short[module] in whole else module[0] for module in modules if module[1] == kind}) for kind in (False, True)}
    rank, alpha = (Counter(each).most_common(1)[0][0] for each in ((c.a.shape[-2] for c in modules.values()), (_number(c.alpha) for c in modules.values())))
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "target_modules": targets[False], **({"target_parameters": targets[True]} if targets[True] else {}),
        "rank_pattern": {module: c.a.shape[-2] for (module, _), c in modules.items() if c.a.shape[-2] != rank},
        "alpha_pattern": {module: _number(c.alpha) for (module, _), c in modules.items() if _number(c.alpha) != alpha},
        "fan_in_fan_out": any(c.place.rule.transpose for (_, parameter), c in modules.items() if not parameter), "bias": "none", "use_rslora": False,
        "use_dora": dora, "lora_dropout": 0.0, "init_lora_weights": True, "inference_mode": True, "modules_to_save": None}


def _number(alpha: float) -> float:
    """A whole number as one: what most programs expect there."""
    return int(alpha) if alpha == int(alpha) else alpha

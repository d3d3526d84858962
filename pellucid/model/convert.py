"""One checkpoint -> another: safetensors and GGUF, both ways, one tensor in memory at a time; what became of the numbers is said and recorded."""
from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pellucid import __version__
from pellucid.catalog import ancestry, gate, lineage, verdict
from pellucid.catalog.lineage import Node
from pellucid.errors import BadRequest
from pellucid.families._describe import Description, describe_checkpoint
from pellucid.model.report import size
from pellucid.ops.cast import PLAIN, Cast
from pellucid.records import Input, Record, input_file, record_of
from pellucid.weights.adapter import is_adapter
from pellucid.weights.card import Card
from pellucid.weights.checkpoint import CONFIG, Checkpoint, open_checkpoint
from pellucid.weights.drafts import Written
from pellucid.weights.gguf_card import lineage_of
from pellucid.weights.gguf_write import whole_name
from pellucid.weights.imatrix import Imatrix, read_imatrix
from pellucid.weights.inputs import input_files
from pellucid.weights.mixes import mix_name

Kind = Literal["gguf", "safetensors"]
SLOW_BYTES = 2_000_000_000  # hashing this much takes long enough to say so first
NF4 = "NF4"  # what can be packed in safetensors; everything else is GGUF's
_DTYPES = {**{name.lower(): name for name in PLAIN}, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told: of all bytes that will be written, of the next ones, and of what takes long otherwise."""

    started: Callable[[int], None] = lambda n: None
    report: Callable[[int], None] = lambda n: None
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of some matrices on the way, such as a fine-tune.

    of: our name -> a function of the weight as numbers, float32 or wider, whose result is rounded once, to what is written. kind: of the run record.
    inputs, settings, parents, licenses: what that adds to the record and the lineage; parents are (what they gave, node).
    chat_template: the source of the one that the result has in place of its default, where it was learned with another.
    """

    of: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    kind: str = "convert"
    inputs: Mapping[str, Input] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[tuple[str, Node], ...] = ()
    licenses: Mapping[str, str | None] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    chat_template: str | None = None


NONE = Change()


@dataclass(kw_only=True)
class Job:
    """What is converted, and how. dtype: F32, F16 or BF16, None for what the files hold. quantize: a mix of weights/mixes.py."""

    checkpoint: Checkpoint
    out: Path
    described: Description | None
    dtype: str | None
    quantize: str | None
    overrides: Sequence[tuple[str, str]]
    imatrix: Imatrix | None
    tokenizer: bool
    max_bytes: int | None
    overwrite: bool
    lineage: tuple[str, ...]
    ancestry: Node
    watch: Watch
    change: Change = NONE
    cast: Cast = field(default_factory=Cast)
    notes: list[str] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)

    @property
    def card(self) -> Card:
        """Of the result: the source's own, and with what a change brings to it."""
        return ancestry.card_of_result(self.checkpoint.card, self.ancestry) if self.change.parents else self.checkpoint.card


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written. kept: how many tensors were copied bit for bit, are exact in another format, or were rounded; rounded: "Q4_K -> BF16" -> how many.

    types: format -> bytes. record: its path; everything needed to do it again is in there. base: of an adapter, the model it was placed by.
    """

    out: Path
    to: Kind
    files: tuple[Written, ...]
    kept: dict[str, int]
    rounded: dict[str, int]
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    record: Path
    base: str | None = None

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)


def convert(source: str | Path, out: str | Path, *, name: str | None = None, to: str | None = None, dtype: str | None = None, quantize: str | None = None,
            overrides: Sequence[tuple[str, str]] = (), imatrix: str | Path | None = None, tokenizer: bool = True, max_bytes: int | None = None,
            overwrite: bool = False, accept_unread: Sequence[str] = (), base: str | None = None, permission: str | None = None,
            change: Change = NONE, watch: Watch = Watch()) -> Conversion:
    """Writes the model at `source` to `out`: a .gguf file, or a folder of safetensors; or an adapter, see `convert_adapter`.

    Args:
        name: what to call the model, where the path does not say it.
        to: "gguf" or "safetensors"; by itself what the name of `out` says.
        dtype: f32, f16 or bf16, for every matrix. By itself, what the files hold; what is packed is copied as it is to GGUF, and becomes f32 in
            safetensors, which holds it exactly.
        quantize, overrides, imatrix: a mix by name, single tensors' formats, and the file of an imatrix: see `plan_mix` and `quantize_rows`. Vectors
            stay f32. NF4 goes to safetensors, and takes neither overrides nor imatrix.
        tokenizer: false leaves it out.
        max_bytes: split into files of no more.
        permission: a reference to one, where a license does not allow what pellucid.toml declares; it is recorded.
        base: of an adapter, the model it is for.
        change: what becomes of some matrices on the way. A GGUF file to GGUF takes none: its matrices stay packed.

    Raises what opening and describing a checkpoint raises, BadRequest for what cannot be asked, DiskFull before the first byte; OUT is whole or as it was.
    """
    started = time.perf_counter()
    if is_adapter(Path(source).expanduser()):
        asked = {"--dtype": dtype, "--quantize": quantize, "--tensor-type": overrides, "--imatrix": imatrix, "--split-max-size": max_bytes}
        if given := [option for option, value in asked.items() if value]:
            raise BadRequest(f"{given[0]} is for models, and {source} is an adapter, whose numbers stay as they are. Leave it out", field=given[0].lstrip("-"))
        from pellucid.model.convert_adapter import convert_adapter
        return convert_adapter(source, out, base=base, to=_kind(to, Path(out)), permission=permission, overwrite=overwrite, watch=watch)
    if base is not None:
        raise BadRequest(f"--base {base} is what an adapter is for, and {source} is a model. Leave it out", field="base")
    checkpoint, out = open_checkpoint(source), Path(out).expanduser()
    checkpoint.name = name or checkpoint.name
    kind = _kind(to, out)
    _check(checkpoint, out, kind, dtype, quantize, imatrix, overrides)
    measured = None if imatrix is None else read_imatrix(Path(imatrix).expanduser())
    parent = ancestry.of_path(Path(source) if checkpoint.gguf else checkpoint.folder, checkpoint.name)
    # Whatever goes into it counts: an adapter, the data it learned from.
    passed = gate.check(parent.made_with(change.parents), ("modify",), Path.cwd(), permission)
    described = None
    if change is not NONE and checkpoint.gguf and kind == "gguf":
        raise BadRequest(f"{out} cannot be made from {checkpoint.name} in one step: matrices of a GGUF file stay packed on their way to another. Write a "
                         f"folder of safetensors, and convert that", field="out")
    if not (checkpoint.gguf and kind == "gguf" and quantize is None):  # a copy may be of an architecture that nobody here runs
        described = describe_checkpoint(checkpoint, accept_unread)
    if checkpoint.n_bytes > SLOW_BYTES:
        watch.note(f"hashing {checkpoint.name}, {size(checkpoint.n_bytes)}")
    inputs = {role: input_file(path) for role, path in input_files(checkpoint).items()}
    lines = (*_ancestors(checkpoint), *_lines(checkpoint, inputs), *(f"{file.sha256}  {role}" for role, file in change.inputs.items()))
    weights = {role: file.sha256 for role, file in inputs.items() if role in {each.name for each in checkpoint.files}}
    made = ancestry.child(parent, weights).made_with(change.parents)
    inputs |= change.inputs
    if imatrix is not None:
        inputs["imatrix"] = input_file(imatrix)
    job = Job(checkpoint=checkpoint, out=out, described=described, dtype=None if dtype is None else _DTYPES[dtype.lower()], quantize=quantize,
              overrides=overrides, imatrix=measured, tokenizer=tokenizer, max_bytes=max_bytes, overwrite=overwrite,
              lineage=lines, ancestry=made, watch=watch, change=change, notes=passed.notes if passed else [])
    if kind == "safetensors":
        from pellucid.model.to_safetensors import write
    else:
        from pellucid.model.to_gguf import write
    files = write(job)
    seconds = time.perf_counter() - started
    settings = {"source": os.path.abspath(source), "name": checkpoint.name, "out": os.path.abspath(out), "to": kind, "dtype": dtype, "quantize": quantize,
                "overrides": [list(each) for each in overrides], "imatrix": None if imatrix is None else os.path.abspath(imatrix), "tokenizer": tokenizer,
                "max_bytes": max_bytes, **change.settings}
    record = _record(job, settings, inputs, files, seconds)
    path = record_of(out)
    record.save(path)
    return Conversion(out=files[0].path if kind == "gguf" else out, to=kind, files=files, kept=record.output["kept"], rounded=record.output["rounded"],
                      types=dict(job.types), notes=tuple(job.notes), seconds=seconds, record=path)


def _record(job: Job, settings: dict[str, Any], inputs: dict[str, Input], files: tuple[Written, ...], seconds: float) -> Record:
    change = job.change
    kept = {how: sum(each == how for each in job.cast.kept.values()) for how in ("copied", "exact", "rounded")}
    rounded = {f"{before} -> {after}": n for (before, after), n in job.cast.pairs.most_common()}
    return Record(
        kind=change.kind, settings=settings, seed=change.seed, inputs=inputs,
        measured={"seconds": seconds, "bytes": float(sum(file.n_bytes for file in files)), **change.measured},
        output={"files": {str(file.path): {"sha256": file.sha256, "bytes": file.n_bytes} for file in files}, "kept": kept, "rounded": rounded,
                "types": dict(job.types), "lineage": list(job.lineage), "ancestry": lineage.plain(job.ancestry),
                "license_of_result": verdict.result_license(job.ancestry)},
        accepted_unread=list(job.described.accepted) if job.described else [], notes=job.notes,
        licenses={job.checkpoint.name: job.checkpoint.card.license_shown, **change.licenses})


def _kind(to: str | None, out: Path) -> Kind:
    said = to or ("gguf" if out.suffix == ".gguf" else "safetensors")
    if said not in ("gguf", "safetensors"):
        raise BadRequest(f"--to {said!r} is no format that is written (written: gguf, safetensors)", field="to")
    if (said == "gguf") != (out.suffix == ".gguf"):
        raise BadRequest(f"{out} is to hold {said}, and {'a GGUF file is called NAME.gguf' if said == 'gguf' else 'safetensors lie in a folder'}. "
                         f"Give another name", field="out")
    return "gguf" if said == "gguf" else "safetensors"


def _check(checkpoint: Checkpoint, out: Path, kind: Kind, dtype: str | None, quantize: str | None, imatrix: str | Path | None,
           overrides: Sequence[tuple[str, str]]) -> None:
    if dtype is not None and dtype.lower() not in _DTYPES:
        raise BadRequest(f"--dtype {dtype!r} is none that is written (written: f32, f16, bf16; --quantize packs)", field="dtype")
    if quantize is not None and dtype is not None:
        raise BadRequest(f"--dtype {dtype} and --quantize {quantize} both say what matrices become. Give one", field="dtype")
    if imatrix is not None and quantize is None:
        raise BadRequest(f"--imatrix {imatrix} says where quantizing may err, and nothing is quantized. Add --quantize Q4_K_M", field="imatrix")
    if overrides and quantize is None:
        raise BadRequest(f"--tensor-type {'='.join(overrides[0])} changes a mix, and nothing is quantized. Add --quantize Q4_K_M", field="tensor_type")
    if quantize is not None and (kind == "gguf") == (quantize.upper() == NF4):
        other = f"of safetensors, and {out} is a GGUF file. Write a folder" if kind == "gguf" else \
            f"of GGUF, and {out} is a folder of safetensors. Write NAME.gguf, or NF4 to the folder"
        raise BadRequest(f"--quantize {quantize} is a format {other}", field="quantize")
    if kind != "gguf" and (imatrix is not None or overrides):
        raise BadRequest("--imatrix and --tensor-type name tensors of GGUF, and a folder of safetensors is written. Leave them out", field="quantize")
    if quantize is not None and kind == "gguf":
        mix_name(quantize)
    source, place = checkpoint.folder.resolve(), out.resolve()
    if kind == "gguf":
        same = place.parent == source and whole_name(place) in {whole_name(Path(file.name)) for file in checkpoint.files}
    else:
        same = place == source or place in source.parents
    if same:
        raise BadRequest(f"{out} is what is read, or holds it, and is not written over. Give another name", field="out")
    if kind == "safetensors" and out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise BadRequest(f"{out} is there and is no model (it has no {CONFIG}); it is left alone, --force or not. Give another name", field="out")


def _lines(checkpoint: Checkpoint, inputs: Mapping[str, Input]) -> list[str]:
    return [f"{file.sha256}  {checkpoint.name}/{role}" for role, file in inputs.items()]


def _ancestors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the files that are read say they were made from."""
    if checkpoint.gguf is not None:
        return lineage_of(checkpoint.gguf.metadata)
    record = record_of(checkpoint.folder)
    lines: Any = Record.read(record).output.get("lineage", []) if record.is_file() else []
    return tuple(line for line in lines if isinstance(line, str))


def made_by() -> str:
    return f"pellucid {__version__}"

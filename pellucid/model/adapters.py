"""Adapters onto a decoder, by the tables that place the model's own tensors: all of an adapter attaches, or none of it does, and what did not is named.

An adapter of either format attaches to a model of either format: peft's names are those of the family's safetensors, GGUF's those of its architecture.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.errors import BadRequest, MisshapenTensor, UnknownTensors, UnsupportedModel
from pellucid.families import family
from pellucid.families._gguf_write import architecture_of
from pellucid.model.decoder import Decoder, Unembed
from pellucid.model.low_rank import Adapters, LowRank
from pellucid.model.parts import Project
from pellucid.model.report import size
from pellucid.ops.unpack import unpack
from pellucid.records import sha256_of
from pellucid.spec import DecoderSpec
from pellucid.weights.adapter import AdapterFile, Pair
from pellucid.weights.assemble import low_rank
from pellucid.weights.names import NameTable, Place, To, for_adapters
from pellucid.weights.packed_rows import PackedRows

_NAME = re.compile(r"[\w-]{1,80}", re.ASCII)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Half(NamedTuple):
    """What an adapter does to one of our matrices: A, B, what their product is added times, and of DoRA how long the rows are then."""

    a: Tensor
    b: Tensor
    scale: float
    m: Tensor | None = None


Halves = Mapping[str, Half]  # by our weights' names


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An adapter on a decoder. sha256: of its files, by name, so that what one computed is never taken for another's. base: what it was made for."""

    name: str
    source: str
    format: str
    sha256: str
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    n_matrices: int
    n_parameters: int
    n_bytes: int
    base: str | None
    license: str | None
    notes: tuple[str, ...]

    @property
    def shown(self) -> str:
        """For the load report."""
        rank, scale = (" to ".join(f"{end:.3g}" for end in dict.fromkeys((min(of), max(of)))) for of in (self.ranks, self.scales))
        made_for = f" · made for {self.base}" if self.base else ""
        matrices = f"{self.n_matrices:,} {'matrix' if self.n_matrices == 1 else 'matrices'}"
        return f"{self.name}: {self.format} lora of {self.source}, rank {rank}, scale {scale} · {matrices}, {size(self.n_bytes)}{made_for}"


def attach(decoder: Decoder, file: AdapterFile, name: str, *, tables: Sequence[NameTable] = (), base: str | None = None) -> Attached:
    """Puts an adapter where its names say, for rows of a pass that ask for it by `name`.

    tables: of the model's own files, tried before the family's. base: what the model is called; an adapter made for another is noted.
    Raises BadRequest for a name that cannot be or is taken, UnknownTensors or MisshapenTensor, with the tensors, where any part of it has no place here,
    UnsupportedModel for an adapter of another architecture. Then nothing is attached.
    """
    if not _NAME.fullmatch(name):
        raise BadRequest(f"adapter name {name!r:.80} cannot be: letters, digits, _ and - are what one is made of", field="adapter")
    if name in decoder.adapters:
        raise BadRequest(f"adapter {name!r} is loaded already, of {decoder.adapters[name].source}. Give this one another name", field="adapter")
    halves = placed(file, projects(decoder), decoder.spec, tables)
    notes = [*file.notes, *_compared(file, decoder, [*tables, NameTable(family(decoder.spec.family).WEIGHTS)])]
    own = decoder.embed.weight
    parts: dict[Project, LowRank] = {}
    for ours, (a, b, scale, m) in halves.items():
        matrix = decoder.get_submodule(ours.removesuffix(".weight"))
        assert isinstance(matrix, Project)
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), own.dtype)  # as exact as either: they are small
        a, b, m = (None if half is None else half.to(matrix.weight.device, dtype).contiguous() for half in (a, b, m))  # type: ignore[assignment]
        parts[matrix] = LowRank(matrix.ops, a, b, scale, m)
        parts[matrix].settle(matrix.matrix)
    for matrix, part in parts.items():
        if matrix.adapters is None:
            matrix.adapters = Adapters()
        matrix.adapters.put(name, part)
    if base is not None and file.base is not None and _bare(base) != _bare(file.base):
        notes.append(f"adapter {name!r} says that it was made for {file.base}, and this is {base}: its matrices fit, and whether it is what its authors meant "
                     f"nothing says")
    decoder.adapters[name] = attached = Attached(
        name=name, source=file.name, format=file.format, sha256=_sha256(file), ranks=file.ranks, scales=tuple(sorted({part.scale for part in parts.values()})),
        n_matrices=len(parts), n_parameters=sum(half.numel() for part in parts.values() for half in part.parameters()),
        n_bytes=sum(half.nbytes for part in parts.values() for half in part.parameters()), base=file.base, license=file.card.license_shown, notes=tuple(notes))
    return attached


def _compared(file: AdapterFile, decoder: Decoder, tables: Sequence[NameTable]) -> Iterator[str]:
    """What to say of the adapter's copies of the model's own matrices. Raises UnknownTensors where one is another than the model's."""
    for theirs, copy in file.copies.items():
        place = next(_places(theirs, tables, decoder.spec), None)
        as_it_is = place is not None and place.rule == To(place.rule.names[:1])
        own = decoder.get_submodule(place.names[0].removesuffix(".weight")).weight if place is not None and as_it_is else None
        if not isinstance(own, Tensor):
            yield (f"adapter {file.name!r} has a copy of its base's {theirs}, and whether this model's is the same was not compared: it is packed, or laid out "
                   f"otherwise")
        elif own.shape != copy.shape or not torch.equal(_numbers(theirs, copy).to(own.device, own.dtype), own):
            raise UnknownTensors(f"adapter {file.name!r} has a copy of its base's {theirs} {tuple(copy.shape)}, and this model's {tuple(own.shape)} is "
                                 f"another: nothing of it was attached. Was it made for another model, or one with added tokens?")


def detach(decoder: Decoder, name: str) -> None:
    """The model without this adapter. Raises UnknownAdapter."""
    decoder.check_adapters([name])
    for matrix in projects(decoder).values():
        if matrix.adapters is not None:
            matrix.adapters.drop(name)
            if not len(matrix.adapters.held):
                matrix.adapters = None
    del decoder.adapters[name]


def projects(decoder: Decoder) -> dict[str, Project]:
    """Every matrix that adapters attach to, by its weight's name."""
    found = {f"{name}.weight": module for name, module in decoder.named_modules() if isinstance(module, Project)}
    return {name: matrix for name, matrix in found.items() if not (isinstance(matrix, Unembed) and matrix.unit)}  # whose rows are scaled as they are


def placed(file: AdapterFile, matrices: Mapping[str, Project], spec: DecoderSpec, tables: Sequence[NameTable] = ()) -> Halves:
    """The whole adapter by our names. Raises what `attach` raises."""
    shapes = {name: (matrix.d_out, matrix.d_in) for name, matrix in matrices.items()}
    if file.format == "gguf":
        architecture = architecture_of(spec)
        if architecture.name != file.architecture:
            raise UnsupportedModel(f"adapter {file.name!r} is of architecture {file.architecture!r}, and the model's is {architecture.name!r}. Load the model "
                                   f"that it was made for")
        tables = [NameTable(architecture.table)]
    else:
        tables = [*tables, NameTable(family(spec.family).WEIGHTS), NameTable(for_adapters(family(spec.family).WEIGHTS))]
    out: dict[str, Half] = {}
    lost: dict[str, str] = {}
    misshapen: list[str] = []
    for theirs, pair in file.pairs.items():
        place = next(_places(theirs, tables, spec), None)
        if place is None:
            lost[theirs] = f"no tensor of family {spec.family!r} is called so"
            continue
        try:
            a, b = _numbers(theirs, pair.a), _numbers(theirs, pair.b)
            if place.rule.turned and file.format == "peft":
                a, b = b.mT, a.mT
            found = low_rank(theirs, a, b, place, _Shapes(shapes), spec)
        except _NoMatrix as e:
            lost[theirs] = f"{e} is no matrix that adapters attach to here"
        except UnknownTensors as e:
            lost[theirs] = str(e)
        except MisshapenTensor as e:
            misshapen.append(str(e))
        else:
            if twice := next((name for name in found if name in out), None):
                raise UnknownTensors(f"adapter {file.name!r} changes {twice} twice, the second time as {theirs}. Which of the two is meant, nothing says")
            lengths = {} if pair.m is None else _lengths(theirs, pair, place, shapes, spec)
            out |= {name: Half(a, b, pair.scale, lengths.get(name)) for name, (a, b) in found.items()}
    if lost:
        theirs, why = next(iter(sorted(lost.items())))
        raise UnknownTensors(f"{len(lost)} of {len(file.pairs)} tensors that adapter {file.name!r} changes have no place in this model, so that nothing of it "
                             f"was attached: {', '.join(sorted(lost)[:3])}{', ...' * (len(lost) > 3)} ({theirs}: {why}). Was it made for another model?")
    if misshapen:
        raise MisshapenTensor(f"{len(misshapen)} of {len(file.pairs)} tensors that adapter {file.name!r} changes have other sizes here, so that nothing of it "
                              f"was attached: {misshapen[0]}. Was it made for another model?")
    return out


def _lengths(theirs: str, pair: Pair, place: Place, shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec) -> dict[str, Tensor]:
    """DoRA's lengths of our rows: they go where rows of B go."""
    assert pair.m is not None
    column_F1 = _numbers(theirs, pair.m)[:, None]
    return {name: b[:, 0] for name, (_, b) in low_rank(theirs, column_F1.new_zeros(1, pair.a.shape[-1]), column_F1, place, shapes, spec).items()}


class _NoMatrix(Exception):
    """A name that is placed, and not on a matrix."""


class _Shapes(dict[str, tuple[int, ...]]):
    def __missing__(self, name: str) -> tuple[int, ...]:
        raise _NoMatrix(name)


def _places(theirs: str, tables: Sequence[NameTable], spec: DecoderSpec) -> Iterator[Place]:
    for table in tables:
        place = table.place(theirs)
        if isinstance(place, Place) and place.rule.holds(spec):
            yield place


def _numbers(theirs: str, half: Tensor | PackedRows) -> Tensor:
    """A half as floats. Raises UnsupportedModel for one that is of none."""
    numbers = unpack(half) if isinstance(half, PackedRows) else half
    if numbers.dtype not in _FLOATS:
        raise UnsupportedModel(f"the adapter's part in {theirs} is {str(numbers.dtype).removeprefix('torch.')}, and floats were expected")
    return numbers


def _bare(base: str) -> str:
    return base.rstrip("/").rpartition("/")[2].lower()


def _sha256(file: AdapterFile) -> str:
    """Of all its files."""
    return hashlib.sha256("".join(sorted(f"{path.name} {sha256_of(path)}\n" for path in file.files)).encode()).hexdigest()

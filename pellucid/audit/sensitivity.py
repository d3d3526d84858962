"""What quantizing each tensor costs: measured on text, one tensor after the other, in KL from the model as it is.

For small errors KL is a quadratic form of them, and errors of different tensors have nothing to do with one another, so that their damages add up. Of one
tensor it then grows with its squared error, each column counted by the mean square of its input: KL with the tensor in one format is measured, and that of the
other formats follows from their errors. benchmarks/quantize_auto.py says how well. Where there are many tensors, those of a kind in neighboring layers are
measured together and share what is found by their errors.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.audit.damage import AT_ONCE, device_of, log_softmax
from pellucid.audit.held_out import Window
from pellucid.errors import BadCheckpoint
from pellucid.families._describe import Description
from pellucid.families._gguf_write import architecture_of
from pellucid.model.decoder import Decoder
from pellucid.model.on_demand import Tensors
from pellucid.model.parts import hold
from pellucid.ops.cast import unpacked
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.allocate import Choice
from pellucid.weights.assemble import joined, layout
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.gguf_write import type_bytes
from pellucid.weights.imatrix import Imatrix
from pellucid.weights.mixes import FORMATS, packable
from pellucid.weights.names import NameTable

MOST = 96  # measurements: of more tensors, those of a kind in neighboring layers are taken together
SAMPLE = 1 << 18  # numbers of a tensor by which the errors of its formats are compared
HELD = 1 << 28  # numbers of the reference's log-probabilities that are held, float32: 1 GB
# Those that are worth having: of formats of a size the one that errs least. Rows that 256 does not divide take the second list.
LARGE, SMALL = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"), ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
PROBES = ("Q3_K", "Q4_0")  # coarse enough to be seen above all rounding, and fine enough for damages to add up


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor of the GGUF file that may be packed, the format it has, and those of ours that it holds."""

    name: str
    shape: tuple[int, ...]
    stored: str
    ours: tuple[str, ...]

    @property
    def formats(self) -> tuple[str, ...]:
        """Those it may get, the one it has last: that one costs nothing."""
        wide = self.shape[-1]
        several = LARGE if wide % 256 == 0 else SMALL if wide % 32 == 0 else ()
        best = self.stored if self.stored in FORMATS and self.stored != "F32" else "F16"
        most = type_bytes(best, self.shape)
        return (*(format for format in several if type_bytes(format, self.shape) < most), best)

    def among(self, formats: Sequence[str]) -> list[str]:
        """Those of these that it may get, and the one it has."""
        return [format for format in self.formats if format in formats or format == self.formats[-1]]

    @property
    def probe(self) -> str:
        return next(format for format in (*PROBES, self.formats[0]) if format in self.formats)


class Model:
    """A checkpoint as the GGUF file that will be made of it: `matrices` that may be packed, and the bytes of all else."""

    def __init__(self, checkpoint: Checkpoint, described: Description) -> None:
        self.source = Tensors(checkpoint, described)
        shapes, ours = self._of_gguf(checkpoint) if checkpoint.gguf is not None else self._to_gguf(described)
        self.matrices = [Matrix(name, shape, self.source.stored[ours[name][0]], ours[name]) for name, shape in shapes.items()
                         if packable(name, shape) and ours[name] and all(self.source.shapes[each][-1] == shape[-1] for each in ours[name])]
        chosen = {matrix.name for matrix in self.matrices}
        # What is turned in the file, or nothing of the decoder's, is not measured: it stays what it is packed as, or in 16 bits.
        self.fixed = {name: self._kept(name, checkpoint) if packable(name, shape) else "F32" for name, shape in shapes.items() if name not in chosen}
        self.fixed_bytes = sum(type_bytes(format, shapes[name]) for name, format in self.fixed.items())
        self.n_weights = sum(torch.Size(shape).numel() for shape in shapes.values())

    @staticmethod
    def _kept(name: str, checkpoint: Checkpoint) -> str:
        stored = checkpoint.unpacked[name].dtype if checkpoint.gguf is not None else "F16"
        return stored if stored in FORMATS and stored != "F32" else "F16"

    def read(self, name: str) -> Tensor:
        """One of our tensors, float32."""
        [weight] = self.source.read([name]).values()
        numbers = unpacked(weight).float()
        self.source.release()
        return numbers

    def _of_gguf(self, checkpoint: Checkpoint) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
        assert checkpoint.gguf is not None
        shapes = {name: entry.shape for name, (_, entry) in checkpoint.gguf.tensors.items()}
        return shapes, {name: tuple(self.source.held.get(name, ())) for name in shapes}

    def _to_gguf(self, described: Description) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
        spec = described.spec
        like = {name: torch.empty(shape, device="meta") for name, shape in self.source.shapes.items()}
        places = layout(NameTable(architecture_of(spec).table), like, spec)
        shapes = {theirs: tuple(joined({name: like[name] for name in place.names}, place, spec).shape) for theirs, place in places.items()}
        return shapes, {theirs: place.names for theirs, place in places.items()}


class Reference:
    """The model as it is on the text, and KL from it when some of its tensors are replaced."""

    def __init__(self, decoder: Decoder, texts: Sequence[Window]) -> None:
        self.decoder, self.texts = decoder, texts
        self.n_tokens = sum(len(window.scored) for window in texts)
        self._logs = [logs.float() for logs in self._read()]

    def kl(self, replaced: Mapping[str, Tensor]) -> float:
        """The mean over the tokens, in nats. replaced: by our names. Raises BadCheckpoint where the model then computes no numbers."""
        total = 0.0
        with replacing(self.decoder, replaced):
            for p_NV, q_NV in zip(self._logs, self._read(), strict=True):
                p_NV = p_NV.double()
                total += (p_NV.exp() * (p_NV - q_NV)).sum().item()
        if not total == total:
            raise BadCheckpoint(f"with {', '.join(replaced)} quantized the model computes NaN on this text. Do the weights overflow? pellucid show MODEL")
        return max(0.0, total / self.n_tokens)

    @torch.inference_mode()
    def _read(self) -> Iterator[Tensor]:
        for window in self.texts:
            hidden_TD = self.decoder(torch.tensor(window.ids, device=device_of(self.decoder)))[window.n_context - 1 : -1]
            yield from (log_softmax(self.decoder, part) for part in hidden_TD.split(max(1, AT_ONCE // self.decoder.spec.n_vocab)))


@contextmanager
def replacing(decoder: Decoder, replaced: Mapping[str, Tensor]) -> Iterator[None]:
    """The decoder with these weights in place of its own, while it lasts."""
    kept = []
    for name, tensor in replaced.items():
        path, _, leaf = name.rpartition(".")
        for module in [decoder.get_submodule(path), *([decoder.unembed] if name == "embed.weight" and decoder.spec.tied else [])]:
            old = getattr(module, leaf)
            kept.append((module, leaf, old))
            hold(module, leaf, tensor.to(device=old.device, dtype=old.dtype))
    try:
        yield
    finally:
        for module, leaf, old in reversed(kept):
            hold(module, leaf, old)


def units(matrices: Sequence[Matrix], most: int = MOST) -> list[list[Matrix]]:
    """What is measured together: each alone, or those of a kind in so many neighboring layers that no more than about `most` are measured."""
    kinds: dict[str, list[Matrix]] = {}
    for matrix in sorted(matrices, key=lambda each: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", each.name)]):
        kinds.setdefault(re.sub(r"\d+", "N", matrix.name), []).append(matrix)
    together = next(n for n in range(1, len(matrices) + 1) if sum(-(-len(kind) // n) for kind in kinds.values()) <= max(most, len(kinds)))
    return [kind[start : start + together] for kind in kinds.values() for start in range(0, len(kind), together)]


def measure(model: Model, reference: Reference, imatrix: Imatrix | None, *, report: Callable[[int], None] = lambda n: None,
            formats: Sequence[str] = FORMATS) -> dict[str, list[Choice]]:
    """GGUF name -> the choices of a matrix, damage in nats a token. formats: no others are given but those a matrix has. report: is told of every matrix."""
    out: dict[str, list[Choice]] = {}
    for unit in units(model.matrices):
        errors = {matrix.name: _errors(model, matrix, imatrix, formats) for matrix in unit}
        packed = {name: numbers for matrix in unit for name, numbers in _probed(model, matrix, imatrix)}
        kl = reference.kl(packed)
        whole = sum(errors[matrix.name][matrix.probe] for matrix in unit)
        for matrix in unit:
            each = errors[matrix.name]
            out[matrix.name] = [Choice(format, type_bytes(format, matrix.shape), kl * each[format] / whole if whole else 0.0)
                                for format in matrix.among(formats)]
            report(1)
    return out


def _probed(model: Model, matrix: Matrix, imatrix: Imatrix | None) -> Iterator[tuple[str, Tensor]]:
    for name, importance in zip(matrix.ours, _importance(matrix, imatrix), strict=True):
        numbers = model.read(name)
        yield name, numbers if matrix.probe == matrix.stored else unpack(quantize_rows(numbers, matrix.probe, importance, name=matrix.name))


def _errors(model: Model, matrix: Matrix, imatrix: Imatrix | None, formats: Sequence[str]) -> dict[str, float]:
    """Of each format, the squared error in squares of the numbers, columns by their importance; of rows spread over the tensor."""
    every = max(1, len(matrix.ours) // 4)  # of many experts, some
    lost, whole = dict.fromkeys(matrix.formats, 0.0), 0.0
    chosen = list(zip(matrix.ours, _importance(matrix, imatrix), strict=True))[::every]
    for name, importance in chosen:
        numbers = model.read(name)
        rows = max(1, SAMPLE // len(chosen) // numbers.shape[-1])
        numbers = numbers[:: max(1, len(numbers) // rows)].contiguous()
        by = torch.ones(numbers.shape[-1]) if importance is None else importance
        whole += (numbers.square() * by).sum().item()
        for format in matrix.formats:
            if format != matrix.stored and (format in formats or format == matrix.probe):
                packed = unpack(quantize_rows(numbers, format, importance, name=matrix.name))
                lost[format] += ((packed - numbers).square() * by).sum().item()
    return {format: error / whole if whole else 0.0 for format, error in lost.items()}


def _importance(matrix: Matrix, imatrix: Imatrix | None) -> list[Tensor | None]:
    """Of each of our tensors in it."""
    found = None if imatrix is None else imatrix.importance(matrix.name, matrix.shape)
    if found is None or found.ndim == 1:
        return [found] * len(matrix.ours)
    each = len(matrix.ours) // len(found)  # of every expert so many
    return [found[i // each] for i in range(len(matrix.ours))]


def tokens_held(n_vocab: int) -> int:
    """So many tokens' log-probabilities are held at most."""
    return HELD // n_vocab

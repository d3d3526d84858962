"""A checkpoint's tensors by our names, read when they are asked for: what streams through, one tensor at a time, comes from here."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import BadCheckpoint
from pellucid.families._describe import Description
from pellucid.model.decoder import Decoder
from pellucid.ops.choose import choose
from pellucid.ops.unpack import unpack
from pellucid.spec import DecoderSpec
from pellucid.weights import gguf_file, safetensors
from pellucid.weights.assemble import assemble, holders
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.names import LeftOut, NameTable, Place
from pellucid.weights.packed_rows import PackedRows, PackedWeight


class Tensors:
    """What a decoder of this description takes from a checkpoint: `shapes` and `stored` (the format in the files) by our names, the rest on demand.

    left_out: reason -> names in the files of what no decoder takes. change: what becomes of a tensor's numbers when it is read.
    Raises what `assemble` raises for a checkpoint that does not fit, with none of its data read but that of tied tables.
    """

    def __init__(self, checkpoint: Checkpoint, described: Description, change: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> None:
        self.checkpoint, self.spec, self._names, self._change = checkpoint, described.spec, described.names, change or {}
        self.shapes = parameter_shapes(self.spec)
        used = [name for name in checkpoint.unpacked if not isinstance(self._names.place(name), LeftOut)]
        self._numbers = {name: torch.tensor(number) for name, number in described.numbers.items()}  # which the metadata has in place of tensors
        self._holders = holders(self._names, [*used, *self._numbers], self.spec)
        self.held: dict[str, list[str]] = {}
        for ours, by in self._holders.items():
            for each in by:
                self.held.setdefault(each, []).append(ours)
        tables = ("embed.weight", "unembed.weight") if self.spec.tied else ()  # which are compared, where the files hold both
        ends = {name for name in used if isinstance(place := self._names.place(name), Place) and place.names[0] in tables}
        looked_at = ends | set(checkpoint.quantization.biases if checkpoint.quantization else ())
        probes = ((name, checkpoint.tensor(name) if name in looked_at else _like(checkpoint, name)) for name in checkpoint.unpacked)
        _, self.left_out = assembled(checkpoint, self._names, chain(probes, self._numbers.items()), self.shapes, self.spec)
        self.stored = {ours: "F32" if theirs[0] in self._numbers else checkpoint.unpacked[theirs[0]].dtype for ours, theirs in self._holders.items()}

    def read(self, names: Sequence[str]) -> dict[str, Tensor | PackedWeight]:
        """The tensors of these names, views of the files where they can be; what is packed stays so."""
        theirs = dict.fromkeys(each for name in names for each in self._holders[name])
        held = {ours: self.shapes[ours] for each in theirs for ours in self.held[each] if theirs.keys() >= set(self._holders[ours])}
        stored = ((each, self._numbers[each] if each in self._numbers else self.checkpoint.tensor(each)) for each in theirs)
        ours, _ = assemble(self._names, stored, held, self.spec)
        return {name: self._change[name](numbers(ours[name])) if name in self._change else ours[name] for name in names}

    def offset(self, name: str) -> float:
        """What was added to the numbers of this tensor where they are stored: see `To.offset`."""
        place = self._names.place(self._holders[name][0])
        return place.rule.offset if isinstance(place, Place) else 0.0

    def release(self) -> None:
        """Gives back the memory of what was read."""
        self.checkpoint.release()


def numbers(weight: Tensor | PackedWeight) -> Tensor:
    """What a weight means, in float32 or wider."""
    plain = unpack(weight) if isinstance(weight, PackedWeight) else weight
    return plain.to(torch.promote_types(plain.dtype, torch.float32))


def parameter_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every parameter of a decoder by its name; of tied matrices the embedding only."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Decoder(spec, choose("auto")).named_parameters()}


def assembled(checkpoint: Checkpoint, names: NameTable, tensors: Iterable[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]],
              spec: DecoderSpec) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What `assemble` makes of a checkpoint, its errors in the words of the format: a GGUF file has no config.json."""
    try:
        ours, out = assemble(names, tensors, shapes, spec, zeros=checkpoint.quantization.biases if checkpoint.quantization else ())
        for name, why in checkpoint.left_out.items():
            out.setdefault(why, []).append(name)
        return ours, out
    except BadCheckpoint as e:
        if checkpoint.format != "gguf":
            raise
        raise type(e)(str(e).replace("model_type in config.json", "general.architecture").replace("config.json", "its metadata")) from None


def _like(checkpoint: Checkpoint, name: str) -> Tensor | PackedWeight:
    """A tensor of the same kind and shape that has no numbers."""
    stored = checkpoint.unpacked[name]
    if name in checkpoint.packed:  # of packed rows only shapes and the way they are cut count, which all formats share
        return PackedRows(torch.empty((*stored.shape[:-1], 4 * stored.shape[-1]), dtype=torch.uint8, device="meta"), "F32")
    plain = (gguf_file.DTYPES if checkpoint.format == "gguf" else safetensors.DTYPES).get(stored.dtype)
    if plain is None and checkpoint.format == "gguf":
        *rows, columns = stored.shape
        of = BY_NAME[stored.dtype]
        return PackedRows(torch.empty((*rows, columns // of.n_numbers * of.n_bytes), dtype=torch.uint8, device="meta"), stored.dtype)
    return torch.empty(stored.shape, dtype=plain or torch.float32, device="meta")

"""compressed-tensors, the format of llm-compressor and vLLM: whole numbers and FP8, a scale for a tensor, a row, a group or a block. No torch above functions.

    pack-quantized                    X.weight_packed I32 (rows, columns * bits / 32), the lowest codes first; the middle code is zero
                                      X.weight_shape I64 (2,); X.weight_zero_point I32 (rows * bits / 32, groups), packed along the rows
    int-, float-, naive-quantized     X.weight I8 or F8_E4M3 (rows, columns); X.weight_zero_point I8, of the scale's shape
    all                               X.weight_scale (1,), (rows, 1), (rows, groups) or a number for each block; X.weight_g_idx I32 (columns,)

number = (code - zero) * scale. https://github.com/neuralmagic/compressed-tensors/tree/52792be02ec09e59f3517104e755a02d0e003fbb/src/compressed_tensors:
compressors/quantized_compressors/pack_quantized.py, quantization/lifecycle/forward.py, quantization/quant_args.py, utils/match.py
"""
from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.errors import BadConfig, MisshapenTensor, UnsupportedModel
from pellucid.weights.quantization import FLOATS, Packed, Peek, Quantization, Settings, Stored, beside, check, grouped, matches, per

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")
_BYTES = {"I8": "int", "F8_E4M3": "float"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What a config group says of its weights. block: of strategy "block" its (rows, columns)."""

    targets: tuple[str, ...]
    bits: int
    kind: str  # int or float
    strategy: str
    group: int
    block: tuple[int, int]
    ordered: bool
    packed: bool
    activations: str  # how their authors round them; empty where they do not

    @property
    def shown(self) -> str:
        reach = {"tensor": "a scale for each matrix", "channel": per(-1), "group": per(self.group), "block": f"in blocks of {self.block[0]} x {self.block[1]}"}
        return f"{self.name}, {reach[self.strategy]}{', columns in the order of activation' * self.ordered}"

    @property
    def name(self) -> str:
        return f"int{self.bits}" if self.kind == "int" else "fp8"


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How every matrix of whole numbers or FP8 is packed; None where there are none. Raises what `check` raises, and BadConfig for one of no group."""
    modules = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    modules += [name.removesuffix(".weight") for name, t in stored.items() if name.endswith(".weight") and t.dtype in _BYTES]
    if not modules:
        return None
    settings.choice("quant_method", among=("compressed-tensors",), default="compressed-tensors")
    format = settings("format", default=None)
    settings.choice("quantization_status", among=("compressed", "frozen"), default="compressed")
    sparsity = settings("sparsity_config", default={})
    if sparsity and (not isinstance(sparsity, Mapping) or sparsity.get("format") != "dense"):
        raise UnsupportedModel(f"{settings.where} has a setting that is not read: sparsity_config={sparsity!r:.80} (only the format 'dense')")
    settings.expect("weights that were turned cannot be multiplied with as they are", transform_config={})
    settings.inert("which modules are packed, their tensors say", "ignore")
    settings.inert("says how small the files are, or who wrote them", "global_compression_ratio version run_compressed")
    cache = settings("kv_cache_scheme", default=None)
    groups = settings("config_groups")
    if not isinstance(groups, Mapping):
        raise BadConfig(f"{settings.where}: config_groups is {groups!r:.60}, and an object of groups was expected")
    schemes = [scheme for name, raw in groups.items() if (scheme := _scheme(settings.part(raw, name), format)) is not None]
    of = {module: _of(module, schemes, settings.where) for module in modules}
    used = [scheme for scheme in schemes if scheme in of.values()]
    matrices = {f"{module}.weight": _packed(module, scheme, stored, peek, settings.where) if scheme.packed else _plain(module, scheme, stored, settings.where)
                for module, scheme in of.items()}
    rounded = sorted({scheme.activations for scheme in used if scheme.activations})
    notes = tuple(f"its authors run it with activations in {each}; here --activations decides" for each in rounded)
    notes += ("its authors keep its cache in 8 bits; here it is kept as --cache says",) if cache else ()
    facts = [{"format": scheme.name, "strategy": scheme.strategy, "bits": scheme.bits, "group_size": scheme.group if scheme.strategy == "group" else None,
              "block": list(scheme.block) if scheme.strategy == "block" else None} for scheme in used]
    return Quantization(method="compressed-tensors", shown=f"compressed-tensors: {' and '.join(scheme.shown for scheme in used)}", matrices=matrices,
                        facts={"groups": facts}, left_out=beside(stored), notes=notes)


def _scheme(part: Settings, format: Any) -> Scheme | None:
    """A config group; None for one that says nothing of weights."""
    targets, weights = part("targets"), part("weights", default=None)
    part.inert("what leaves a matrix is not rounded so here", "output_activations")
    activations = part("input_activations", default=None)
    format = part("format", default=format)
    if weights is None:
        return None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise BadConfig(f"{part.where}: targets is {targets!r:.60}, and a list of names was expected")
    if format not in FORMATS:
        raise UnsupportedModel(f"{part.where} has a setting that is not read: format={format!r:.60} (read: {', '.join(map(repr, FORMATS))})")
    w = part.part(weights, "weights")
    kind = w.choice("type", among=("int", "float"), default="int")
    bits = w.count("num_bits", default=8, among=(8,) if kind == "float" else (4, 8))
    group = w.count("group_size", default=0)
    strategy = w.choice("strategy", among=STRATEGIES, default="group" if group > 0 else "channel" if group else "tensor")
    ordered = w("actorder", default=None)
    if ordered not in (None, True, False, "group", "weight", "static", "dynamic"):
        raise UnsupportedModel(f"{w.where} has a setting that is not read: actorder={ordered!r:.60} (read: group, weight, static, dynamic)")
    w.expect(dynamic=False)
    w.inert("how the codes were found", "observer observer_kwargs symmetric scale_dtype zp_dtype")
    return Scheme(targets=tuple(targets), bits=bits, kind=kind, strategy=strategy, group=group, block=_block(w, strategy), packed=format == "pack-quantized",
                  ordered=ordered in (True, "group", "dynamic"), activations=_activations(part, activations))


def _block(w: Settings, strategy: str) -> tuple[int, int]:
    said = w("block_structure", default=None)
    if strategy != "block":
        return 0, 0
    sizes = said.split("x") if isinstance(said, str) else said  # older files say "128x128"
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(str(n).isdecimal() and int(n) > 0 for n in sizes):
        raise BadConfig(f"{w.where}: block_structure is {said!r:.60}, and two sizes were expected, as [128, 128]")
    return int(sizes[0]), int(sizes[1])


def _activations(part: Settings, raw: Any) -> str:
    if raw is None:
        return ""
    a = part.part(raw, "input_activations")
    bits, kind, dynamic = a("num_bits", default=8), a("type", default="int"), a("dynamic", default=False)
    a.inert("activations are not rounded so here", "strategy symmetric group_size block_structure observer observer_kwargs actorder scale_dtype zp_dtype")
    return f"{bits}-bit {'numbers' if kind == 'int' else 'floats'}, {'a scale for each token' if dynamic else 'one scale for all'}"


def _of(module: str, schemes: list[Scheme], where: str) -> Scheme:
    """The group of a module: the first whose targets name it, or match it, or name its class."""
    for fits in (lambda target: target == module, lambda target: target.startswith("re:") and matches(target[3:], module, where),
                 lambda target: target == "Linear"):
        if scheme := next((scheme for scheme in schemes if any(map(fits, scheme.targets))), None):
            return scheme
    raise BadConfig(f"{where}: {module} is packed, and no group of config_groups has it among its targets "
                    f"({', '.join(target for scheme in schemes for target in scheme.targets)[:80]}). Are files and config of one model?")


def _packed(module: str, scheme: Scheme, stored: Stored, peek: Peek, where: str) -> Packed:
    weight, each = f"{module}.weight_packed", 32 // scheme.bits
    if weight not in stored:
        raise UnsupportedModel(f"{module}.weight is {stored[f'{module}.weight'].dtype}, and {where} calls it pack-quantized: {weight} was expected")
    check(stored, weight, weight, (stored[weight].shape,), ("I32",))
    check(stored, f"{module}.weight_shape", weight, ((2,),), ("I64", "I32"))
    said = peek(f"{module}.weight_shape")
    rows, columns = struct.unpack("<2q" if len(said) == 16 else "<2i", said)
    if stored[weight].shape != (rows, -(-columns // each)):
        raise MisshapenTensor(f"{weight} has shape {stored[weight].shape}, and {module}.weight_shape of ({rows}, {columns}) makes it "
                              f"({rows}, {-(-columns // each)})")
    return _matrix(module, weight, scheme, (rows, columns), -(-rows // each), stored, where)


def _plain(module: str, scheme: Scheme, stored: Stored, where: str) -> Packed:
    weight = f"{module}.weight"
    if weight not in stored or _BYTES.get(stored[weight].dtype) != scheme.kind:
        found = stored.get(weight, stored.get(f"{weight}_packed"))
        assert found is not None
        raise UnsupportedModel(f"{weight} is {found.dtype}, and {where} makes it {scheme.name}. Do the two belong together?")
    shape = stored[weight].shape
    if len(shape) != 2:
        raise MisshapenTensor(f"{weight} has shape {shape}, and a matrix was expected")
    return _matrix(module, weight, scheme, (shape[0], shape[1]), None, stored, where)


def _matrix(module: str, weight: str, scheme: Scheme, shape: tuple[int, int], zero_rows: int | None, stored: Stored, where: str) -> Packed:
    """Checks the parts of one matrix. zero_rows: rows of words that hold its zeros, where they are packed as the codes are."""
    rows, columns = shape
    if scheme.strategy == "block":
        block = scheme.block
    else:
        block = (rows if scheme.strategy == "tensor" else 1, grouped(scheme.group if scheme.strategy == "group" else -1, columns, weight, where))
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    shapes = (grid, (1,), ()) if scheme.strategy == "tensor" else (grid,)
    check(stored, f"{module}.weight_scale", weight, shapes, FLOATS)
    parts = {"codes": weight, "scales": f"{module}.weight_scale"}
    if zero_rows is not None:
        parts["shape"] = f"{module}.weight_shape"
    if (zeros := f"{module}.weight_zero_point") in stored:
        if zero_rows is not None and stored[zeros].dtype == "I32":
            check(stored, zeros, weight, ((zero_rows, grid[1]),), ("I32",))
        else:
            check(stored, zeros, weight, shapes, ("I8",))
        parts["zeros"] = zeros
    if (index := f"{module}.weight_g_idx") in stored:
        check(stored, index, weight, ((columns,),), ("I32", "I64"))
        parts["index"] = index
    return Packed(format=scheme.name, parts=parts, shape=shape, build=partial(_build, index, scheme, shape, block, zero_rows is not None))


def _build(index: str, scheme: Scheme, shape: tuple[int, int], block: tuple[int, int], packed: bool, parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import GroupRows, arranged, by_blocks, constant, spread
    rows, columns = shape
    codes = parts["codes"].contiguous().view(torch.uint8)[:, : -(-columns * (scheme.bits if packed else 8) // 8)]
    middle, zeros = 1 << scheme.bits - 1 if packed else 0, parts.get("zeros")
    of_rows: Tensor | int = middle
    if zeros is not None and zeros.dtype == torch.int32:
        of_rows = constant(spread(zeros.T.contiguous(), scheme.bits)[:, :rows].T.contiguous())
    elif zeros is not None:
        of_rows = constant(by_blocks(zeros.short() + middle, rows, block[0]))
    byte = torch.uint8 if packed else torch.int8 if scheme.kind == "int" else torch.float8_e4m3fn
    matrix = GroupRows(codes=codes, scales=by_blocks(parts["scales"], rows, block[0]), group=min(block[1], columns), n_columns=columns,
                       width=scheme.bits if packed else 8, byte=byte, zeros=of_rows)
    order = parts.get("index")
    if order is not None and bool((order == -1).any()):  # written where columns stand in their own order
        order = None
    return arranged(matrix, order, ordered=scheme.ordered, name=index)

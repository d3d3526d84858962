"""Which tensor of a model is packed in which format: the mixes that llama.cpp's users know by name. No torch here.

The rules are those of llama_tensor_get_type_impl, tensor_allows_quantization and tensor_type_fallback, for the formats that are written here:
https://github.com/ggml-org/llama.cpp/blob/007dbbf3fd17eefe9b47fee45f48f7ba5e62b714/src/llama-quant.cpp. Tensors go by their GGUF names, shapes have the
columns last. benchmarks/quantize.py holds the plans against the types that llama.cpp's own quantizer gives.
"""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.weights.gguf import BY_NAME

# Of one format, or of several: what most tensors become, and the mix's number in general.file_type (enum llama_ftype of llama.h).
MIXES: Mapping[str, tuple[str, int]] = {
    "F32": ("F32", 0), "F16": ("F16", 1), "BF16": ("BF16", 32), "Q8_0": ("Q8_0", 7), "Q6_K": ("Q6_K", 18),
    "Q5_K_M": ("Q5_K", 17), "Q5_K_S": ("Q5_K", 16), "Q5_1": ("Q5_1", 9), "Q5_0": ("Q5_0", 8),
    "Q4_K_M": ("Q4_K", 15), "Q4_K_S": ("Q4_K", 14), "Q4_1": ("Q4_1", 3), "Q4_0": ("Q4_0", 2), "IQ4_NL": ("IQ4_NL", 25), "IQ4_XS": ("IQ4_XS", 30),
    "MXFP4_MOE": ("MXFP4", 38), "Q3_K_L": ("Q3_K", 13), "Q3_K_M": ("Q3_K", 12), "Q3_K_S": ("Q3_K", 11), "Q2_K": ("Q2_K", 10), "Q2_K_S": ("Q2_K", 21)}
FORMATS = tuple(dict.fromkeys(format for format, _ in MIXES.values()))  # those that tensors can be packed in
_ALSO = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M", "MXFP4": "MXFP4_MOE"}  # as llama-quantize reads them
_DENSE = ("F32", "F16", "BF16")
_FALLBACK = {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 256 -> of 32
# Small, and asked often: norms, routers, positions, short convolutions.
_KEPT = re.compile(r"_norm\.weight$|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv|^position_embd|^token_types|"
                   r"indexer\.[kq]_proj\.weight|attn_rel_b|\.position_embd|\.rel_pos|\.patch_embd")
_KINDS = {"output.weight": "output", "token_embd.weight": "embed", "per_layer_token_embd.weight": "embed"}
# In this order: what is named twice goes by the first.
_PARTS = {"attn_qkv.weight": "v", "attn_kv_b.weight": "v", "attn_v.weight": "v", "attn_k.weight": "k", "attn_output.weight": "o", "ffn_down": "down"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules ask of a model: its architecture's GGUF name and four counts; n_experts is 0 without experts."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @property
    def n_grouped(self) -> int:
        return self.n_heads // max(1, self.n_kv_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Name -> format of every tensor, and what it weighs. fell_back: name -> the format that its rows are too short for."""

    mix: str
    file_type: int  # general.file_type
    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    fell_back: Mapping[str, str] = field(default_factory=dict)

    def n_bytes(self, name: str) -> int:
        of = BY_NAME[self.types[name]]
        return math.prod(self.shapes[name]) // of.n_numbers * of.n_bytes

    @property
    def total_bytes(self) -> int:
        """Of the tensors alone, without header and padding."""
        return sum(map(self.n_bytes, self.types))

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total_bytes / sum(map(math.prod, self.shapes.values()))

    @property
    def shown(self) -> str:
        """`Q4_K 38, Q6_K 7, F32 13`: how many tensors are in which format."""
        return ", ".join(f"{format} {n}" for format, n in Counter(self.types.values()).most_common())


def plan_mix(mix: str, tensors: Mapping[str, tuple[int, ...]], facts: Facts, *, overrides: Sequence[tuple[str, str]] = (),
             important: bool = False) -> Plan:
    """The plan of a mix by name, in any case.

    overrides: (pattern, format), a regular expression found in a tensor's name; the first that fits a matrix decides. important: an imatrix will be
    used, by which some rules go.
    Raises BadRequest for a mix or format that is not written, a pattern that is none or fits no matrix, rows that an override's blocks do not divide.
    """
    mix = mix_name(mix)
    base, number = MIXES[mix]
    chosen = _Overrides(overrides)
    rules = _Rules(mix, base, tensors, facts, important)
    types, fell_back = {}, {}
    for name in sorted(tensors, key=_in_order):
        shape = tensors[name]
        if not packable(name, shape):
            types[name] = "F32"
            continue
        wanted, type = rules.type_of(name, shape), chosen.type_of(name, shape)
        types[name] = type or _fitting(wanted, shape)
        if type is None and types[name] != wanted:
            fell_back[name] = wanted
    chosen.check(tensors)
    return Plan(mix=mix, file_type=number, types={name: types[name] for name in tensors}, shapes=dict(tensors), fell_back=fell_back)


def mix_name(asked: str) -> str:
    """The name as MIXES has it. Raises BadRequest."""
    name = asked.upper().replace("-", "_")
    if (name := _ALSO.get(name, name)) not in MIXES:
        raise BadRequest(f"{asked!r} is no mix of formats that is written here (written: {', '.join(MIXES)}).{did_you_mean(nearest(name, MIXES))}",
                         field="quantize")
    return name


def packable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of the matrices that are packed; all else stays in float32."""
    return len(shape) >= 2 and name.endswith("weight") and not _KEPT.search(name)


def _fitting(format: str, shape: tuple[int, ...]) -> str:
    """The format, or the next one by whose blocks these rows can be divided."""
    if shape[-1] % BY_NAME[format].n_numbers == 0:
        return format
    smaller = _FALLBACK.get(format, "F16")
    return smaller if shape[-1] % BY_NAME[smaller].n_numbers == 0 else "F16"


def _in_order(name: str) -> tuple[int, str]:
    """Block after block, as llama.cpp counts them."""
    return _block(name), name


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of n, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class _Rules:
    """A mix, asked for one tensor after another in the order of the blocks: what comes how often is counted."""

    def __init__(self, mix: str, base: str, tensors: Mapping[str, tuple[int, ...]], facts: Facts, important: bool) -> None:
        self.mix, self.base, self.facts, self.important = mix, base, facts, important
        self.tied = "output.weight" not in tensors
        self.n_v = sum(_kind(name) == "v" for name in tensors)
        self.met: Counter[str] = Counter()
        self.falcon = facts.architecture == "falcon"

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        if self.base in _DENSE:
            return self.base
        kind = _kind(name)
        at = self.met[kind]
        self.met[kind] += 1
        if kind == "output" or (kind == "embed" and self.tied):
            return self._output(shape)
        if self.mix == "MXFP4_MOE":  # matrices of experts, which stand in one tensor; all others in Q8_0
            return "MXFP4" if len(shape) == 3 and shape[0] > 1 else "Q8_0"
        if kind == "v":
            return self._v(at)
        if kind == "k":
            return "Q8_0" if self.facts.n_experts == 8 else self.base  # small, and used by all of them
        if kind == "down":
            return self._down(_block(name) if self.facts.n_experts > 1 else at, self.facts.n_layers)
        return self._o() if kind == "o" else self.base

    def _output(self, shape: tuple[int, ...]) -> str:
        if self.mix == "MXFP4_MOE" or self.falcon or shape[-1] % BY_NAME[self.base].n_numbers or self.base == "Q8_0":
            return "Q8_0"
        return "Q6_K"

    def _v(self, i: int) -> str:
        """Of values, which are small where heads share them."""
        if self.facts.n_experts == 8:
            return "Q8_0"
        shared = self.facts.n_grouped >= 4
        type = self.base
        if self.mix == "Q2_K":
            type = "Q4_K" if shared else "Q3_K"
        elif self.mix == "Q2_K_S" and shared:
            type = "Q4_K"
        elif self.mix == "Q3_K_M":
            type = "Q5_K" if i < 2 else "Q4_K"
        elif self.mix == "Q3_K_L" or (self.mix in ("IQ4_NL", "IQ4_XS") and shared) or (self.mix == "Q4_K_S" and i < 4):
            type = "Q5_K"
        elif self.mix in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self.n_v):
            type = "Q6_K"
        # LLM_TYPE_70B: Llama's, Qwen's and others' of 80 layers whose heads share values
        return "Q5_K" if self.facts.n_layers == 80 and self.facts.n_grouped > 1 and type in ("Q3_K", "Q4_K") else type

    def _down(self, i: int, n: int) -> str:
        more, first = _more_bits(i, n), i < n // 8
        if self.mix == "Q2_K":
            return "Q3_K"
        if self.mix == "Q2_K_S":
            return "Q4_K" if first else self.base
        if self.mix == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K" if not self.falcon or more else self.base
        if self.mix == "Q3_K_L":
            return "Q4_K" if self.falcon else "Q5_K"
        if self.mix == "Q4_K_M" and self.falcon:
            return "Q6_K" if i < n // 16 else "Q5_K" if more else self.base
        if self.mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else self.base
        if first and ((self.mix in ("IQ4_NL", "IQ4_XS") and not self.important) or (self.mix == "Q4_K_S" and not self.falcon)):
            return "Q5_K"
        if first and self.important and self.mix in ("Q4_0", "Q5_0"):
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[self.mix]
        return self.base

    def _o(self) -> str:
        if self.falcon:
            return "Q4_K" if self.mix == "Q3_K_L" else self.base
        if self.facts.n_experts == 8:
            return "Q5_K" if self.mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS") else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)


def _kind(name: str) -> str:
    return _KINDS.get(name) or next((kind for part, kind in _PARTS.items() if part in name), "other")


class _Overrides:
    """What was asked for single tensors."""

    def __init__(self, asked: Sequence[tuple[str, str]]) -> None:
        self.asked: list[tuple[re.Pattern[str], str]] = []
        for pattern, format in asked:
            try:
                self.asked.append((re.compile(pattern), format.upper()))
            except re.error as e:
                raise BadRequest(f"--tensor-type {pattern}={format}: {pattern!r} is no regular expression ({e}). Write, for one: "
                                 f"'blk\\.[0-3]\\.attn_v=Q8_0'", field="tensor_type") from None
            if format.upper() not in FORMATS:
                raise BadRequest(f"--tensor-type {pattern}={format}: no tensor is written in {format!r} (written: {', '.join(FORMATS)})", field="tensor_type")

    def type_of(self, name: str, shape: tuple[int, ...]) -> str | None:
        for pattern, format in self.asked:
            if pattern.search(name):
                if shape[-1] % (n := BY_NAME[format].n_numbers):
                    raise BadRequest(f"--tensor-type {pattern.pattern}={format}: {name} has rows of {shape[-1]:,} numbers, and {format} packs {n} together. "
                                     f"Its next smaller blocks: {_fitting(format, shape)}", field="tensor_type")
                return format
        return None

    def check(self, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Raises BadRequest for a pattern that says nothing of this model."""
        for pattern, format in self.asked:
            met = [name for name in tensors if pattern.search(name)]
            if not any(packable(name, tensors[name]) for name in met):
                told = f"fits only what is never packed: {', '.join(met[:3])}" if met else "fits no tensor of this model"
                raise BadRequest(f"--tensor-type {pattern.pattern}={format} {told}. The matrices are called: "
                                 f"{', '.join([name for name in tensors if packable(name, tensors[name])][:4])}, ...", field="tensor_type")

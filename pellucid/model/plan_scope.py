"""Which decoders there are native plans for, and for passes of how many tokens: every fact of a spec that a plan knows, by name."""
from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.model.decoder import Decoder
from pellucid.model.experts import Router
from pellucid.model.parts import Embed, Project
from pellucid.ops.attention import KINDS
from pellucid.ops.interface import Weight
from pellucid.ops.native import Native
from pellucid.ops.panels import Panels, native
from pellucid.spec import (
    Alibi,
    Attention,
    DecoderSpec,
    Dynamic,
    Experts,
    FeedForward,
    Layer,
    Linear,
    Llama3,
    LogTemperature,
    LongRope,
    Norm,
    Ntk,
    Proportional,
    Rope,
    Temperature,
    Yarn,
)
from pellucid.weights.group_rows import Affine, GroupRows, Reordered
from pellucid.weights.packed_rows import PackedRows

FEW = 16  # tokens: up to so many a plan of dense weights is no slower than the decoder; what a pass costs beside its products decides
FEW_OF_LARGE = 4  # the same where products in 16 bits decide: torch rounds activations to 16 bits too, and multiplies twice as many in that time
FEW_IN_TILES = 32  # the same where the processor multiplies bfloat16 in tiles: weights are read once, and for more torch is ahead (docs/LOG.md)
LARGE = 1 << 26  # bytes of weights, more than most processors keep near
SHORT, MEDIUM = 512, 1 << 30  # of so many bytes of weights in tiles, passes whose texts end within so many tokens: past that torch's attention is ahead

# The facts that steps are written from. What is not named here must be as the spec's default has it.
UNDERSTOOD: dict[type, set[str]] = {
    DecoderSpec: {"family", "n_vocab", "n_ctx", "d_model", "layers", "norm", "parallel", "shared_norm", "norm_in", "norm_out", "norm_stream",
                  "residual_scale", "d_embed", "learned_positions", "position_offset", "embed_scale", "embed_norm", "final_norm", "logit_scale",
                  "logit_softcap", "tied", "unembed_bias"},
    Layer: {"mixer", "mlp", "beside", "scaled"},
    Attention: {"n_heads", "n_kv_heads", "d_head", "scale", "rope", "alibi", "window", "chunk", "sinks", "softcap", "qkv_bias", "out_bias", "clip",
                "qk_norm", "qk_norm_over", "value_norm", "values_from_keys", "shares", "qk_norm_late", "temperature"},
    Experts: {field.name for field in fields(Experts)},
    FeedForward: {"d_ff", "act", "gated", "bias", "slope", "limit", "up_offset"},
    **{kind: {field.name for field in fields(kind)}  # type: ignore[arg-type]
       for kind in (Norm, Rope, Linear, Dynamic, Llama3, Yarn, LongRope, Ntk, Proportional, Temperature, LogTemperature, Alibi)},
}
ACTS = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "linear")


class Declined(Exception):
    """There is no plan for this decoder. It runs all the same; the message says what a plan would not do."""


def understood(fact: Any) -> None:
    """Raises Declined for the first fact of a spec, or of a part of it, that no step is written from."""
    if isinstance(fact, tuple):
        for part in fact:
            understood(part)
    if not is_dataclass(fact):
        return
    kind = type(fact)
    if kind not in UNDERSTOOD:
        raise Declined(kind.__name__)
    for field in fields(fact):
        value = getattr(fact, field.name)
        if field.name in UNDERSTOOD[kind]:
            understood(value)
        elif field.default is MISSING or value != field.default:
            raise Declined(f"{kind.__name__}.{field.name}={value!r}")
    if isinstance(fact, FeedForward) and fact.act not in ACTS:
        raise Declined(f"FeedForward.act={fact.act!r}")
    if isinstance(fact, Rope) and fact.d_rotary % 2:
        raise Declined(f"Rope.d_rotary={fact.d_rotary}, which is odd")


def check(decoder: Decoder) -> None:
    """Raises Declined where there is no plan for this decoder."""
    understood(decoder.spec)
    if decoder.devices is not None:
        raise Declined("layers on two devices")
    if not isinstance(decoder.ops, Native) or not all(parameter.is_cpu for parameter in decoder.parameters()):
        raise Declined(f"the backend {decoder.ops.name}")
    looked_up = decoder.embed if not decoder.spec.tied else None  # by the decoder's own operations, if the plan has none
    for module in decoder.modules():
        if not isinstance(module, Project | Embed) or isinstance(module, Router) or module is looked_up:
            continue  # a router's weight is unpacked: see `_write_experts`
        if not (isinstance(module.weight, Panels) or is_dense(module.weight) or is_plain(module.weight)):
            raise Declined(f"weights {_held(module.weight)}")


def _held(weight: Weight) -> str:
    """How a weight that no plan multiplies with is held."""
    if isinstance(weight, Tensor) and weight.dtype in KINDS:
        return "column by column"  # as GPT-2's files have them
    if isinstance(weight, Reordered | Affine):
        return "in another order of columns" if isinstance(weight, Reordered) else "with zeros or scales beside their blocks"
    return "in groups" if isinstance(weight, GroupRows) else f"in {getattr(weight, 'format', None) or weight.dtype}"


def is_whole(decoder: Decoder) -> bool:
    """Whether a plan is the faster way for passes of any length: all of its matrices are packed."""
    return all(isinstance(weight, Panels) for weight in _weights(decoder))


def _weights(decoder: Decoder) -> list[Weight]:
    """Those of the layers' matrices that decide what a pass takes: no router's, and no gate's of one row."""
    return [m.weight for m in decoder.blocks.modules() if isinstance(m, Project) and not isinstance(m, Router) and m.weight.shape[0] > 1]


def few(decoder: Decoder) -> int:
    """How many tokens a pass may have for a plan of these dense weights to be the faster way."""
    weights = _weights(decoder)
    assert isinstance(decoder.ops, Native)
    if native.tiled(decoder.ops.variant) and all(weight.dtype == torch.bfloat16 for weight in weights if isinstance(weight, Tensor)):
        return FEW_IN_TILES
    return FEW_OF_LARGE if sum(w.nbytes for w in weights if w.dtype != torch.float32) > LARGE else FEW


def short(decoder: Decoder) -> int:
    """Within how many tokens of its text's beginning each row of a pass has to end for the plan to be the faster way, however many there are."""
    return SHORT if few(decoder) == FEW_IN_TILES and sum(weight.nbytes for weight in _weights(decoder)) <= MEDIUM else 0


def describe(decoder: Decoder) -> str:
    """What runs a pass of the engine, for the load report; nothing where no plan could be expected."""
    if not isinstance(decoder.ops, Native):
        return ""
    try:
        check(decoder)
    except Declined as why:
        return f" · layer by layer: no plan knows {why}"
    if is_whole(decoder):
        return " · one native plan a pass"
    return f" · one native plan a pass of up to {few(decoder)} tokens{f' or within the first {n} of each text' if (n := short(decoder)) else ''}"


def is_dense(weight: Weight) -> bool:
    """Whether a plan multiplies with this tensor where it lies."""
    return isinstance(weight, Tensor) and weight.dtype in KINDS and weight.is_contiguous()


def is_plain(weight: Weight) -> bool:
    """Rows of a file that are plain numbers already, such as the gate of a shared expert."""
    return isinstance(weight, PackedRows) and weight.format == "F32" and weight.bytes.is_contiguous()

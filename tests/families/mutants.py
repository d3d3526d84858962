"""Every fact of a spec, changed, one at a time: a walk over its frozen dataclasses that no future field can escape.

A kind of value the walker does not know how to change is an error, so a new field brings its mutant or fails the tests.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pellucid.spec import (
    Alibi,
    Attention,
    DecoderSpec,
    Dynamic,
    Experts,
    FeedForward,
    LatentAttention,
    LayerInputs,
    Linear,
    Llama3,
    LogTemperature,
    LongRope,
    Matrix,
    Mixer,
    Norm,
    Ntk,
    Proportional,
    Rope,
    Temperature,
    Yarn,
)

Change = tuple[str, Any]  # where and what, and the changed value

# What None becomes, by type. Small enough to act on any case: a cap below the scores, a window below the lengths.
INSTEAD_OF_NONE: dict[Any, Any] = {
    float: 1.5,
    int: 3,
    Norm: Norm(eps=1e-5),
    Rope: Rope(theta=100.0, d_rotary=4),
    Temperature: Temperature(every=5, by=0.7, first=1),
    Alibi: Alibi(steepness=3.0),
    LogTemperature: LogTemperature(original=5),
    Linear: Linear(factor=2.0),
    Dynamic: Dynamic(original=9, factor=2.0),
    Llama3: Llama3(factor=3.0, low=0.5, high=3.0, original=17),
    Yarn: Yarn(factor=3.0, original=17, gain=1.2),
    LongRope: LongRope(short=(1.1, 1.3), long=(2.0, 3.0), original=17, gain=1.2),
    Ntk: Ntk(alpha=3.0),
    Proportional: Proportional(turning=1, factor=2.0),
    Experts: Experts(n_experts=3, n_active=1, renormalize=False, each=FeedForward(d_ff=7)),
    FeedForward: FeedForward(d_ff=7),
    Matrix: Matrix(),
    LayerInputs: LayerInputs(d_input=5, n_vocab=101, act="silu"),
    Attention: Attention(n_heads=2, n_kv_heads=1, d_head=6, scale=0.5),
    LatentAttention: LatentAttention(n_heads=2, d_plain=6, d_value=5, d_latent=7, d_query_latent=None, scale=0.5, rope=Rope(theta=100.0, d_rotary=4),
                                     norm=Norm(eps=1e-5)),
}


def mutants(spec: DecoderSpec) -> Iterator[Change]:
    """(path of the fact and its change, mutated spec or Refused), for every fact of the spec."""
    yield from changes(spec, DecoderSpec, "")


def changes(value: Any, kind: Any, path: str) -> Iterator[Change]:
    """Every value that could stand here instead."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        yield from _of_union(value, get_args(kind), path)
    elif origin is Literal:
        yield from ((f"{path}: {value} -> {other}", other) for other in get_args(kind) if other != value)
    elif origin is tuple:
        yield from _of_layers(value, get_args(kind)[0], path)
    elif dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        for f in dataclasses.fields(kind):
            for label, new in changes(getattr(value, f.name), hints[f.name], f"{path}.{f.name}".lstrip(".")):
                yield label, new if isinstance(new, Refused) else _made(value, f.name, new)
    else:
        yield from ((f"{path}: {value} -> {other}", other) for other in _of_scalar(value, kind, path))


@dataclasses.dataclass(frozen=True)
class Refused:
    """A mutant that the spec itself would not let be made."""

    why: str


def _made(value: Any, field: str, new: Any) -> Any:
    try:
        return dataclasses.replace(value, **{field: new})
    except ValueError as refusal:
        return Refused(str(refusal))


def _of_scalar(value: Any, kind: Any, path: str) -> list[Any]:
    if kind is bool:
        return [not value]
    if kind is int:
        return [value + 1, value - 1] if value > 0 else [value + 1]
    if kind is float:
        return [value * 100 if path.endswith("eps") else value * 1.05 or 0.05]
    if kind is str:
        return [value + "x"]
    raise TypeError(f"{path} is a {kind}, which the mutants do not know how to change: teach tests/families/mutants.py")


def _of_union(value: Any, kinds: tuple[Any, ...], path: str) -> Iterator[Change]:
    """None instead of a value, a sample of every other member, and every change inside the member that is there."""
    for kind in kinds:
        if kind is type(None):
            if value is not None:
                yield f"{path}: dropped", None
        elif get_origin(kind) is Literal:
            yield from changes(value, kind, path)  # every name that is not the value, which may be None
        elif value is not None and isinstance(value, int | float if kind is float else kind):
            yield from changes(value, kind, path)
        elif kind in INSTEAD_OF_NONE:
            yield f"{path}: {type(value).__name__} -> {INSTEAD_OF_NONE[kind]}", INSTEAD_OF_NONE[kind]
        else:
            raise TypeError(f"{path} may be a {kind}, of which the mutants have no sample: teach tests/families/mutants.py")


def _of_layers(layers: tuple[Any, ...], kind: Any, path: str) -> Iterator[Change]:
    """All layers of one kind changed, two layers of different kinds exchanged, and one layer fewer or more."""
    firsts = {layer: i for i, layer in reversed(list(enumerate(layers)))}
    for layer, i in firsts.items():
        for label, new in changes(layer, kind, f"{path}[{i}]"):
            yield label, new if isinstance(new, Refused) else tuple(new if other == layer else other for other in layers)
    for i, j in itertools.combinations(sorted(firsts.values()), 2):
        swapped = list(layers)
        swapped[i], swapped[j] = layers[j], layers[i]
        yield f"{path}: {i} and {j} exchanged", tuple(swapped)
    yield f"{path}: the last dropped", layers[:-1]
    yield f"{path}: the last repeated", (*layers, layers[-1])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def essence(spec: DecoderSpec, length: int) -> DecoderSpec:
    """The spec less the facts that cannot matter to any pass of this length, each by a rule.

    Two specs of one essence compute the same thing; a mutant that leaves the essence alone need not be noticed.
    """
    mutes: dict[str, Any] = {
        "family": "",  # a label
        "n_ctx": 1,  # what the engine enforces; the decoder computes past it
        "layers": tuple(dataclasses.replace(layer, mixer=_attention_essence(layer.mixer, length), mlp=_mlp_essence(layer.mlp, spec.norm_out),
                                      beside=_mlp_essence(layer.beside, norm_out=True)) for layer in spec.layers),
        "norm": _norm_essence(spec.norm),
    }
    if not spec.norm_in:
        mutes["shared_norm"] = False  # there is no norm to share
    if not spec.learned_positions and not spec.sinusoidal_positions:
        mutes["position_offset"] = 0  # there is no table to be late in
    return dataclasses.replace(spec, **mutes)


def _norm_essence(norm: Norm) -> Norm:
    return norm if norm.weight else dataclasses.replace(norm, offset=0.0)  # the offset is added to the weight


def _mlp_essence(mlp: FeedForward | Experts | Matrix | None, norm_out: bool) -> FeedForward | Experts | Matrix | None:
    if not isinstance(mlp, Experts):
        return dataclasses.replace(mlp, act="silu") if isinstance(mlp, FeedForward) and mlp.xielu else mlp  # it stands in place of act
    mutes: dict[str, Any] = {} if mlp.router_norm is None else {"router_norm": _norm_essence(mlp.router_norm)}
    if norm_out and mlp.shared is None and not mlp.scale_input:
        mutes["share_scale"] = 1.0  # the norm of what they write undoes it
    if mlp.n_active == mlp.n_experts and mlp.scoring == "softmax":
        mutes["renormalize"] = False  # all shares of a softmax sum to one already
    if mlp.n_active_groups == mlp.n_groups or (mlp.group_score == "best" and mlp.n_active <= mlp.n_active_groups):
        # Every group is active, however it is scored; or the best experts are too few to lie outside of the groups they make the best.
        mutes |= {"group_score": "best"} if mlp.spread else {"n_groups": 1, "n_active_groups": 1, "group_score": "best"}
    if mlp.n_groups == 1 or mlp.n_active == mlp.n_experts:
        mutes["spread"] = False  # one group, or all experts, leave nothing to spread
    return dataclasses.replace(mlp, **mutes)


def _attention_essence(mixer: Mixer | Matrix | None, length: int) -> Mixer | Matrix | None:
    if mixer is None or isinstance(mixer, Matrix):
        return mixer
    if isinstance(mixer, LatentAttention):
        return dataclasses.replace(mixer, rope=_rope_essence(mixer.rope, length), norm=_norm_essence(mixer.norm))
    mutes: dict[str, Any] = {}
    if isinstance(mixer.temperature, LogTemperature) and mixer.temperature.original >= length + 1:
        mutes["temperature"] = None  # no query sees more, nor one token later
    if mixer.window is not None and mixer.window >= length:
        mutes["window"] = None  # no token lies outside
    if mixer.chunk is not None and mixer.chunk >= length:
        mutes["chunk"] = None  # there is only one
    if mixer.qk_norm is None or mixer.rope is None or _keeps_length(mixer.qk_norm, mixer.rope):
        mutes["qk_norm_late"] = False  # nothing to come after, or no difference
    if mixer.qk_norm is None:
        mutes["qk_norm_over"] = "head"  # nothing to spread over
    elif mixer.qk_norm_over == "each_head" and (mixer.n_heads == 1 or not (mixer.qk_norm.weight or mixer.qk_norm.bias)):
        mutes["qk_norm_over"] = "head"
    if mixer.qk_norm is not None:
        mutes["qk_norm"] = _norm_essence(mixer.qk_norm)
    if mixer.value_norm is not None:
        mutes["value_norm"] = _norm_essence(mixer.value_norm)
    if mixer.rope is not None:
        rope = mixer.rope
        if mixer.qk_norm is not None and mixer.qk_norm_late and rope.d_rotary == mixer.d_head and isinstance(rope.scaling, Yarn | LongRope):
            rope = dataclasses.replace(rope, scaling=dataclasses.replace(rope.scaling, gain=1.0))  # the norm undoes it
        mutes["rope"] = _rope_essence(rope, length)
    return dataclasses.replace(mixer, **mutes)


def _keeps_length(norm: Norm, rope: Rope) -> bool:
    """Turning by this rope and dividing by the length may change places: a rotation has no gain, and neither has the norm."""
    return norm.kind == "rms" and not norm.weight and not norm.bias and not (isinstance(rope.scaling, Yarn | LongRope) and rope.scaling.gain != 1.0)


def _rope_essence(rope: Rope, length: int) -> Rope:
    mutes: dict[str, Any] = {}
    if rope.d_rotary == 2:
        mutes["pairing"] = "half"  # the only pair there is
    if isinstance(rope.scaling, Yarn):
        mutes["scaling"] = (rope.scaling.factor, rope.scaling.gain, _yarn_ramp(rope, rope.scaling))
    if isinstance(rope.scaling, LongRope):
        mutes["scaling"] = (rope.scaling.gain, rope.scaling.long if length > rope.scaling.original else rope.scaling.short)
    if isinstance(rope.scaling, Dynamic):
        stretched = tuple(_alpha(rope.scaling, n) for n in (length, length + 1))
        mutes["scaling"] = None if stretched == (1, 1) else stretched
    return dataclasses.replace(rope, **mutes)


def _alpha(s: Dynamic, length: int) -> float:
    """What the base of a row of this length is stretched by: all that the three fields do."""
    times = max(length / s.original, 1)
    return 1 + s.factor * ((2 ** math.ceil(math.log2(times)) if s.doubling else times) - 1)


def _yarn_ramp(rope: Rope, s: Yarn) -> tuple[float, ...]:
    """How far each pair is stretched: all that four of the fields do. https://arxiv.org/abs/2309.00071, section 3.2."""
    ends = [rope.d_rotary * math.log(s.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta)) for turns in (s.fast, s.slow)]
    first, last = (math.floor(ends[0]), math.ceil(ends[1])) if s.whole_pairs else ends
    first, last = max(first, 0), min(last, rope.d_rotary - 1)
    return tuple(min(max((pair - first) / (last - first or 1e-3), 0), 1) for pair in range(rope.d_rotary // 2))

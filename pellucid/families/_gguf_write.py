"""A spec -> the metadata of a GGUF file that says the same, by the tables that read it. No torch here.

What is to be written is read back first: a fact that the architecture's files cannot say is an error that names it, not a file that means another model.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.families._gguf import Architecture, check, config, facts_of, of_family
from pellucid.families._gguf_keys import KEYS, Free
from pellucid.families._gguf_tensors import FACTORS, LONG, SHORT
from pellucid.spec import Attention, DecoderSpec, LatentAttention, Layer, Llama3, LongRope, Ntk, Proportional, Rope


def architecture_of(spec: DecoderSpec) -> Architecture:
    """The architecture as which this model stands in a GGUF file. Raises UnsupportedModel for a family that has none."""
    fitting = [architecture for architecture in of_family(family(spec.family)) if architecture.fits(spec)]
    if not fitting:
        raise UnsupportedModel(f"family {spec.family!r} has no architecture in GGUF files that llama.cpp would read (docs/families.md lists those which "
                               f"have). Save it as safetensors.")
    return fitting[0]


def metadata(spec: DecoderSpec, shapes: Mapping[str, tuple[int, ...]], numbers: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
    """Every key of the architecture, whole, and general.architecture: whole numbers, floats, bools, texts, or lists with one of them for each layer.

    Args:
        shapes: the tensors that the file will have, by their names there, those of `factors` too.
        numbers: what the tensors of ours hold that the architecture keeps in its metadata, by our names (`Architecture.numbers`).

    Raises UnsupportedModel for a family without architecture, or a fact of the spec that its files cannot say, with the values.
    """
    architecture, written = architecture_of(spec), as_written(spec)
    out: dict[str, Any] = {"general.architecture": architecture.name}
    keys = dict.fromkeys((*architecture.reads, *_ROPE, *architecture.also))
    if "attention.key_length" in keys:  # llama.cpp takes either one that is absent for the share of a head
        keys["attention.value_length"] = None
    for key in keys:
        value = (architecture.of.get(key) or KEYS[key])(written)
        value = value.value if isinstance(value, Free) else value
        if value is not None:
            out[f"{architecture.name}.{key}"] = value
    for key, ours in architecture.numbers.items():
        if (each := [numbers[name] for i in range(len(spec.layers)) if (name := ours.format(i=i)) in numbers]):
            out[key] = each
    _read_back(written, out, shapes)
    return out


def factors(spec: DecoderSpec) -> dict[str, list[float]]:
    """Tensors beside the weights, by their names there: what the frequency of each pair of channels is divided by."""
    for rope in _ropes(spec):
        if isinstance(rope.scaling, Proportional):  # pairs that stand still turn by nothing that a float32 can say
            return {FACTORS: [rope.scaling.factor] * rope.scaling.turning + [1e30] * (rope.d_rotary // 2 - rope.scaling.turning)}
    scaling = next((rope.scaling for rope in _ropes(as_written(spec)) if isinstance(rope.scaling, LongRope)), None)
    if scaling is None:
        return {}
    if scaling.short == scaling.long and scaling.gain == 1.0:
        return {FACTORS: list(scaling.short)}
    return {LONG: list(scaling.long), SHORT: list(scaling.short)}


def as_written(spec: DecoderSpec) -> DecoderSpec:
    """The same model, its ropes as GGUF says them: Llama 3's scaling as a factor a pair, a base that was stretched once as that base."""
    layers: dict[Layer, Layer] = {layer: dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, rope=_rope(layer.mixer.rope, spec.n_ctx)))
                                  for layer in spec.layers if isinstance(layer.mixer, Attention | LatentAttention) and layer.mixer.rope is not None}
    return dataclasses.replace(spec, layers=tuple(layers.get(layer, layer) for layer in spec.layers))


_ROPE = ("rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
            "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")


def _rope(rope: Rope, n_ctx: int) -> Rope:
    if isinstance(rope.scaling, Ntk):
        return dataclasses.replace(rope, theta=rope.theta * rope.scaling.alpha ** (rope.d_rotary / (rope.d_rotary - 2)), scaling=None)
    if not isinstance(rope.scaling, Llama3):
        return rope
    divisors = tuple(_llama3(rope.theta ** (2 * i / rope.d_rotary), rope.scaling) for i in range(rope.d_rotary // 2))
    return dataclasses.replace(rope, scaling=LongRope(short=divisors, long=divisors, original=n_ctx, gain=1.0))


def _llama3(pace: float, s: Llama3) -> float:
    """What Llama 3 divides the frequency 1 / pace by. https://github.com/meta-llama/llama-models, apply_scaling"""
    turns = s.original / (2 * math.pi * pace)
    kept = min(1.0, max(0.0, (turns - s.low) / (s.high - s.low)))
    return 1 / ((1 - kept) / s.factor + kept)


def _ropes(spec: DecoderSpec) -> list[Rope]:
    return [mixer.rope for mixer in spec.mixers if mixer.rope is not None]


def _read_back(spec: DecoderSpec, said: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    made = factors(spec)
    facts = facts_of("what would be written", said, shapes, made.__getitem__)
    try:
        raw, architecture = config(facts)
        again = describe(raw, where="what would be written").spec
        check(facts, architecture, again)
    except BadConfig as e:
        raise UnsupportedModel(f"a GGUF file of architecture {facts.name!r} cannot say what this model is: {e} Save it as safetensors.") from e
    if differing := next(_differences(dataclasses.replace(spec, family=again.family), again, ""), None):
        path, ours, theirs = differing
        raise UnsupportedModel(f"a GGUF file of architecture {architecture.name!r} cannot say {path}={ours!r:.80}: it would be read as {theirs!r:.80}. "
                               f"Save it as safetensors.")


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, other value) wherever two specs differ by more than a float32's rounding."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        for f in dataclasses.fields(a):
            yield from _differences(getattr(a, f.name), getattr(b, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{path}.{i}")
    elif not (a == b or (type(a) is float and type(b) in (int, float) and math.isclose(a, b, rel_tol=1e-6))):
        yield path, a, b

"""Which layers compute on a GPU and which stay on the CPU: from sizes alone, before anything is copied.

The last layers go to the GPU, with both ends: embedding, final norm, unembedding and the sampler. What crosses is the stream between two layers, a few KB a
token, from the GPU to the first layer on the CPU and back. Weights, keys and values stay where their layer is.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pellucid import cost
from pellucid.errors import BadRequest, OutOfMemoryBudget
from pellucid.model.memory import CACHE_TOKENS, SHARE
from pellucid.model.report import size
from pellucid.spec import Attention, DecoderSpec

SPARE = 512 << 20  # bytes that a step's own tensors and CUDA's libraries take, at the least; a guess, until it is measured
_LAYER = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model's parts: of all that is no layer's, of each layer's weights, and of each layer's cache of so many tokens as are planned for."""

    ends: int
    layers: tuple[int, ...]
    cache: tuple[int, ...]

    @classmethod
    def of(cls, spec: DecoderSpec, weights: Mapping[str, int], bytes_per_number: int) -> Sizes:
        """weights: bytes of each tensor by our names. bytes_per_number: of the cache, for 4,096 tokens or as many as the model takes."""
        ends, layers = 0, [0] * len(spec.layers)
        for name, n_bytes in weights.items():
            if (i := layer_of(name)) is None:
                ends += n_bytes
            else:
                layers[i] += n_bytes
        tokens = min(spec.n_ctx, CACHE_TOKENS)
        cache = [0 if layer.mixer is None or not layer.mixer.n_cached else cost.seen(layer.mixer, tokens) * layer.mixer.n_cached * bytes_per_number
                 for layer in spec.layers]
        return cls(ends=ends, layers=tuple(layers), cache=tuple(cache))

    def needed(self, n: int) -> int:
        """Bytes of a GPU for the last n layers and both ends: a cache is given a share of what weights leave, and a step takes the rest."""
        first = len(self.layers) - n
        return self.ends + sum(self.layers[first:]) + max(SPARE, int(sum(self.cache[first:]) / SHARE))


def layer_of(name: str) -> int | None:
    """Which layer a tensor is of; None for those of the ends."""
    found = _LAYER.match(name)
    return None if found is None else int(found[1])


def splits(spec: DecoderSpec) -> tuple[int, ...]:
    """How many of the last layers can be elsewhere than those before: none of a pair where one reads the other's keys and values."""
    n_layers = len(spec.layers)
    pairs = [(i, layer.mixer.shares) for i, layer in enumerate(spec.layers) if isinstance(layer.mixer, Attention) and layer.mixer.shares is not None]
    return tuple(n for n in range(n_layers + 1) if all((i >= n_layers - n) == (j >= n_layers - n) for i, j in pairs))


def fitting(sizes: Sizes, free: int | None, possible: tuple[int, ...]) -> int:
    """The most of the last layers, out of the numbers that are possible, that fit with both ends; 0 where none do. free: bytes, None = nobody says."""
    return max((n for n in possible if free is None or sizes.needed(n) <= free), default=0) if possible else 0


def check_asked(asked: object, n_layers: int | None = None) -> None:
    """Raises BadRequest for a number of layers that cannot be."""
    if asked is None or asked == "auto":
        return
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        raise BadRequest(f"gpu_layers={asked!r} is not a number of layers, from 0, or 'auto'", field="gpu_layers")
    if n_layers is not None and asked > n_layers:
        raise BadRequest(f"gpu_layers={asked}, and this model has {n_layers} layers. Ask for at most {n_layers}, or 'auto'", field="gpu_layers")


def chosen(name: str, spec: DecoderSpec, sizes: Sizes, asked: int | str, free: int | None, device: str) -> int:
    """How many of the last layers go to the device: as many as asked for, or as fit under "auto".

    Raises BadRequest for a number that cannot be, OutOfMemoryBudget for one that does not fit; both say which numbers would do.
    """
    check_asked(asked, len(spec.layers))
    possible = splits(spec)
    fit = fitting(sizes, free, possible)
    if not isinstance(asked, int):
        return fit
    if asked not in possible:
        near = sorted(possible, key=lambda n: abs(n - asked))[:2]
        raise BadRequest(f"gpu_layers={asked} would part layers that read the same keys and values. Ask for {' or '.join(map(str, sorted(near)))}, or 'auto'",
                         field="gpu_layers")
    if asked and free is not None and sizes.needed(asked) > free:
        raise OutOfMemoryBudget(f"{name!r} needs {size(sizes.needed(asked))} for {asked} layers, both ends, a cache and a step's own tensors, {size(free)} are "
                                f"free on {device}. Try --gpu-layers {fit}, which fit{'s' * (fit == 1)}, or close what holds memory.",
                                needed_bytes=sizes.needed(asked), available_bytes=free)
    return asked


def check_rest(name: str, sizes: Sizes, n: int, free: int | None, *, repacked: bool) -> None:
    """Raises OutOfMemoryBudget where the first layers do not fit the CPU's memory. repacked: their weights are copied, and not read where files are mapped."""
    rest = len(sizes.layers) - n
    needed = repacked * sum(sizes.layers[:rest]) + sum(sizes.cache[:rest])
    if free is not None and needed > free:
        raise OutOfMemoryBudget(f"{name!r} needs {size(needed)} of the CPU's memory for {rest} layers, and {size(free)} are free. Put more of them on the "
                                f"GPU, or take a smaller model", needed_bytes=needed, available_bytes=free)


def shown(n: int) -> str:
    """Which layers stay on the CPU, for the load report."""
    return "layer 0" if n == 1 else f"layers 0 to {n - 1}"

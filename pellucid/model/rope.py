"""Rotary positions: the frequencies of each scaling, the tables a forward pass turns queries and keys with, and how scores sharpen with position."""
from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pellucid.spec import DecoderSpec, Dynamic, Linear, Llama3, LogTemperature, LongRope, Ntk, Proportional, Rope, Temperature, Yarn

ByLength = LongRope | Dynamic  # the scalings whose angles, at all positions of a row, depend on how long the row is


def frequencies(rope: Rope, length: int = 0) -> tuple[Tensor, float]:
    """Radians per position for each rotating pair of a row of `length` tokens, shape (R/2,), float32, and the gain for cos and sin.

    Sources: linear https://arxiv.org/abs/2306.15595; llama3 https://github.com/meta-llama/llama-models (apply_scaling);
    ntk, yarn and dynamic https://arxiv.org/abs/2309.00071, sections 3.1 to 3.3; longrope https://arxiv.org/abs/2402.13753. Same numbers as transformers 5.23.
    """
    R, scaling = rope.d_rotary, rope.scaling
    freq = 1.0 / rope.theta ** (torch.arange(0, R, 2, dtype=torch.float32) / R)
    match scaling:
        case None:
            return freq, 1.0
        case Linear():
            return freq / scaling.factor, 1.0
        case Llama3():
            turns = scaling.original * freq / (2 * math.pi)
            keep = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
            return freq * (keep + (1 - keep) / scaling.factor), 1.0
        case LongRope():
            return freq / torch.tensor(scaling.long if length > scaling.original else scaling.short), scaling.gain
        case Proportional():
            return freq * (torch.arange(R // 2) < scaling.turning) / scaling.factor, 1.0
        case Ntk() | Dynamic():
            alpha = scaling.alpha if isinstance(scaling, Ntk) else scaling.alpha(length)
            return 1.0 / (rope.theta * alpha ** (R / (R - 2))) ** (torch.arange(0, R, 2, dtype=torch.float32) / R), 1.0
        case Yarn():
            stretch = _yarn_ramp(rope, scaling)
            return freq / scaling.factor * stretch + freq * (1 - stretch), scaling.gain


def _yarn_ramp(rope: Rope, scaling: Yarn) -> Tensor:
    """How far each pair is stretched, 0 to 1, shape (R/2,): a ramp between the pairs that turn `fast` and `slow` times."""
    def pair(turns: float) -> float:
        """The (fractional) pair index that turns this often in `original` tokens."""
        return rope.d_rotary * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.d_rotary - 1)
    # A ramp of no width would divide by zero; 1e-3 is what the paper's authors use.
    return ((torch.arange((rope.d_rotary + 1) // 2, dtype=torch.float32) - first) / (last - first or 1e-3)).clamp(0, 1)


def by_length(spec: DecoderSpec) -> tuple[ByLength, ...]:
    """The scalings of this model by which a row's length decides how it turns; of most models none."""
    scalings = (mixer.rope.scaling for mixer in spec.mixers if mixer.rope is not None)
    return tuple(dict.fromkeys(scaling for scaling in scalings if isinstance(scaling, ByLength)))


def turns_as(scalings: tuple[ByLength, ...], length: int) -> tuple[int, ...]:
    """Equal for two lengths exactly where rows of the two turn alike, so that what one holds in a cache is right for the other."""
    return tuple(scaling.turns_as(length) for scaling in scalings)


def planned(scalings: tuple[ByLength, ...], length: int, end: int) -> int:
    """How long to plan a row that has `length` tokens and may grow to `end` of them.

    As long as it is, where few lengths turn by other angles: then every token is what a full pass gives. Where each length would, which is past
    the original one of dynamic scaling, as long as it may become: the row is then computed anew once, not for every token.
    """
    return max(length, end) if any(isinstance(s, Dynamic) and not s.doubling and length > s.original for s in scalings) else length


def tables(frequency_R: Tensor, gain: float, positions_T: Tensor, pairing: Literal["half", "adjacent"] = "half") -> tuple[Tensor, Tensor]:
    """cos and sin for `Ops.rotate`: (T, R) each, float32, times the gain; one number a channel, a pair's first sine negated.

    The frequencies are (R/2,), or (T, R/2) where tokens turn by different ones.
    """
    angle_TP = positions_T[:, None].float() * frequency_R  # P = R/2 pairs
    cos_TP, sin_TP = angle_TP.cos() * gain, angle_TP.sin() * gain
    if pairing == "half":
        return torch.cat([cos_TP, cos_TP], -1), torch.cat([-sin_TP, sin_TP], -1)
    return torch.stack([cos_TP, cos_TP], -1).flatten(-2), torch.stack([-sin_TP, sin_TP], -1).flatten(-2)


def sharpness(t: Temperature | LogTemperature, positions_T: Tensor) -> Tensor:
    """What queries are multiplied by, (T, 1, 1), float32."""
    if isinstance(t, LogTemperature):
        return (torch.log1p(positions_T[:, None, None].float()) / math.log(t.original)).clamp_min(1)
    return 1 + t.by * torch.log1p(torch.floor((positions_T[:, None, None].float() + t.first) / t.every))

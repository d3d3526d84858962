"""Positions that are added to the embedding and computed, not learned."""
from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions_T: Tensor, width: int) -> Tensor:
    """(T, width), float32: the sines of all frequencies, then the cosines; an odd last channel stays zero.

    The frequencies fall from 1 to exactly 1/10000 radians a token, as tensor2tensor has them; https://arxiv.org/abs/1706.03762 stops one step short.
    """
    n = width // 2
    frequency_P = torch.exp(torch.arange(n, device=positions_T.device, dtype=torch.float32) * (-math.log(10_000) / (n - 1)))
    angle_TP = positions_T[:, None].float() * frequency_P
    return torch.nn.functional.pad(torch.cat([angle_TP.sin(), angle_TP.cos()], 1), (0, width % 2))

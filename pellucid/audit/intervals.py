"""How sure a number is: intervals by resampling blocks of text, since neighboring tokens are hard or easy together.

Blocks follow one another without gaps and are drawn with replacement, as many as there are; what lies between the 2.5th and the 97.5th percentile of what
the draws give is the interval. Percentile bootstrap: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; blocks after
E. Carlstein, Annals of Statistics 14 (1986), 1171-1179. The same draws serve every number, so that differences between them are those of one text.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 1000  # the ends of an interval are then known to a tenth of its width or so
LEAST_BLOCK, MOST_BLOCKS = 64, 200  # tokens of a block; blocks, of which more would say little and take time
LEVEL = 0.95
_AT_ONCE = 1 << 23  # numbers held while draws are sorted


@dataclass(frozen=True, slots=True)
class Interval:
    """What was measured, and between which values it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def mapped(self, by: float = 1.0) -> Interval:
        return Interval(self.value * by, self.low * by, self.high * by)

    def exp(self) -> Interval:
        return Interval(math.exp(self.value), math.exp(self.low), math.exp(self.high))


class Resampled:
    """Draws of blocks of N tokens in a row. seed: the same one draws the same blocks."""

    def __init__(self, n: int, seed: int = 0, draws: int = DRAWS) -> None:
        self.n, self.seed, self.draws = n, seed, draws
        self.block = max(LEAST_BLOCK, -(-n // MOST_BLOCKS))
        self.n_blocks = max(1, n // self.block)
        # What is left at the end belongs to the last block.
        self.of_token = (torch.arange(n) // self.block).clamp_(max=self.n_blocks - 1)
        drawn = torch.randint(self.n_blocks, (draws, self.n_blocks), generator=torch.Generator().manual_seed(seed))
        self._times = torch.zeros(draws, self.n_blocks, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))

    def sums(self, values_N: Tensor) -> Tensor:
        """Of each block."""
        return torch.zeros(self.n_blocks, dtype=torch.float64).scatter_add_(0, self.of_token, values_N.double())

    def ratio(self, above_N: Tensor, below_N: Tensor) -> Interval:
        """sum(above) / sum(below)."""
        above, below = self.sums(above_N), self.sums(below_N)
        return self._between((above.sum() / below.sum()).item(), (self._times @ above) / (self._times @ below))

    def mean(self, values_N: Tensor) -> Interval:
        return self.ratio(values_N, torch.ones(self.n))

    def percentile(self, values_N: Tensor, share: float) -> Interval:
        """The smallest value that at least this share of the tokens do not pass."""
        ordered, order = values_N.double().sort()
        blocks = self.of_token[order]
        rows = max(1, _AT_ONCE // self.n)
        found = [ordered[_reached(self._times[start : start + rows, blocks], share)] for start in range(0, self.draws, rows)]
        return self._between(ordered[_reached(torch.ones(1, self.n, dtype=torch.float64), share)].item(), torch.cat(found))

    def _between(self, value: float, drawn: Tensor) -> Interval:
        low, high = drawn.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=drawn.dtype)).tolist()
        return Interval(value, low, high)

    @property
    def shown(self) -> str:
        return f"{LEVEL:.0%} intervals from {self.draws:,} resamplings of {self.n_blocks} blocks of {self.block} tokens, seed {self.seed}"


def _reached(weights_RN: Tensor, share: float) -> Tensor:
    """In each row, the first place up to which this share of its weight lies."""
    sums_RN = weights_RN.cumsum(-1)
    return torch.searchsorted(sums_RN, (share * sums_RN[:, -1:] - 1e-9).contiguous())[:, 0]

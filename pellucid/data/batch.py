"""Items -> the decoder's flat batch. Rows lie one after another without padding, each with positions and attention of its own, so packing is nothing else."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from pellucid.data.example import Example, Item, examples, n_tokens

IGNORED = -100  # torch's own ignore_index: a position whose next token is not learned


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens_T, int64: all rows one after another. target_T[t]: the next token of the same row where that is learned, else IGNORED.

    Shape letters are those of model/decoder.py.
    """

    tokens_T: Tensor
    target_T: Tensor
    lengths: tuple[int, ...]
    items: tuple[Item, ...]

    @classmethod
    def of(cls, items: Sequence[Item], device: torch.device | str = "cpu") -> Self:
        """The rows of these items, in order: see `example.examples`."""
        rows = [example for item in items for example in examples(item)]
        tokens = torch.tensor(list(chain.from_iterable(row.ids for row in rows)), dtype=torch.int64, device=device)
        target = torch.tensor(list(chain.from_iterable(map(targets, rows))), dtype=torch.int64, device=device)
        return cls(tokens, target, tuple(len(row.ids) for row in rows), tuple(items))


def targets(example: Example) -> list[int]:
    """For each position the token after it, where that is learned; IGNORED else, and after the last."""
    return [token if learned else IGNORED for token, learned in zip(example.ids[1:], example.learned[1:], strict=True)] + [IGNORED]


def micro(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """The items in their order, split so that no part has more tokens, unless one item alone does."""
    parts: list[list[Item]] = []
    filled = 0
    for item in items:
        n = n_tokens(item)
        if not parts or filled + n > max_tokens:
            parts.append([])
            filled = 0
        parts[-1].append(item)
        filled += n
    return parts

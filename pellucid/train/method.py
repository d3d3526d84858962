"""What a way of training is: which rows it reads, what it divides by, and its loss."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.example import Item
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows


class Method(Protocol):
    """takes: the kind of item. name: of the recipe."""

    name: str
    takes: type[Item] | tuple[type[Item], ...]

    def weight(self, item: Item) -> float:
        """What this item adds to what the loss of a step is divided by. Known before anything is computed, so that a step in parts is the whole step."""
        ...

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, summed, and other sums to be told, each divided like it."""
        ...

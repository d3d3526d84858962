"""What a way of training is: which rows it reads, what it divides by, and its loss."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from pellucid.data.batch import Batch
from pellucid.data.example import Example, Item
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows


class Method(Protocol):
    """takes: the kind of item. name: of the recipe. What has a body here may be inherited."""

    name: str
    takes: type[Item] | tuple[type[Item], ...]

    def weight(self, item: Item) -> float:
        """What this item adds to what the loss of a step is divided by. Known before anything is computed, so that a step in parts is the whole step."""
        ...

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, summed, and other sums to be told, each divided like it."""
        ...

    def begin(self, decoder: Decoder, items: Sequence[Item], adapter: str | None, max_tokens: int) -> None:
        """Looks at all items of a step, or of an evaluation, before the first part of it: for losses that depend on more than their own item.

        adapter: what rows ask for so that they pass through what is trained. max_tokens: how many to compute at a time.
        """

    def referred(self, items: Sequence[Item]) -> list[Example]:
        """The rows whose log-probabilities by the untrained model a step of these items asks for."""
        return []

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained beside the decoder: a head."""
        return {}

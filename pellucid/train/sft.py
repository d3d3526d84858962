"""Supervised fine-tuning and continued pretraining: the next token, where it is learned."""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.example import Example, Item
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.train.loss import cross_entropy
from pellucid.train.method import Method


class NextToken(Method):
    """The mean negative log-probability of all learned tokens of a step, each counting the same, whatever rows they stand in."""

    takes = Example

    def __init__(self, name: str = "sft") -> None:
        self.name = name

    def weight(self, item: Item) -> float:
        assert isinstance(item, Example)
        return item.n_learned

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        return cross_entropy(decoder, decoder(batch.tokens_T, rows=rows), batch.target_T, rows), {}

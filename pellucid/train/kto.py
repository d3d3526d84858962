"""Learning from verdicts: answers that were called good or bad, each alone. https://arxiv.org/abs/2402.01306

Shape letters as in model/decoder.py. v, of an answer, log p - log r as in train/preference.py; z: how far the model has left the reference in general,

    z      max(0, mean over the step's prompts of log p - log r of an answer that belongs to another prompt)
    good   λ_good (1 - σ(β (v - z)))
    bad    λ_bad  (1 - σ(β (z - v)))
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.example import Example, Item, Verdict
from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.train.loss import by_row, token_log_probs
from pellucid.train.method import Method
from pellucid.train.recipe import part
from pellucid.train.reference import Reference, each_log_prob


@part
class Kto:
    """beta: how dear it is to leave the reference. good, bad: what the two kinds weigh; the paper (equation 8) wants good * n_good between 1 and 4/3 times
    bad * n_bad. reference: as in train/preference.py."""

    beta: float = Field(default=0.1, gt=0)
    good: float = Field(default=1.0, gt=0)
    bad: float = Field(default=1.0, gt=0)
    reference: Literal["auto", "beside", "ahead"] = "auto"


class Verdicts(Method):
    """z is of the whole step and takes no gradient; a part of a step uses the step's. Each item counts one."""

    name = "kto"
    takes = Verdict

    def __init__(self, settings: Kto, reference: Reference, n_ctx: int) -> None:
        self.settings, self.reference, self.n_ctx = settings, reference, n_ctx
        self._z = 0.0
        self._of_kind: dict[bool, float] = {}  # of the step: what turns a sum over one kind's items into one that is divided by all of them

    def weight(self, item: Item) -> float:
        return 1.0

    def begin(self, decoder: Decoder, items: Sequence[Item], adapter: str | None, max_tokens: int) -> None:
        """Finds z. Raises BadRequest for a step of one item, whose answer belongs to no other prompt."""
        rows = mismatched(items, self.n_ctx)
        training = decoder.training
        decoder.eval()  # z is no sample
        change = each_log_prob(decoder, rows, adapter, max_tokens) - self.reference.each(rows, max_tokens)
        decoder.train(training)
        self._z = max(0.0, float(change.mean()))
        kinds = Counter(item.good for item in items if isinstance(item, Verdict))
        self._of_kind = {good: len(items) / n for good, n in kinds.items()}

    def referred(self, items: Sequence[Item]) -> list[Example]:
        return [item.example for item in items if isinstance(item, Verdict)] + mismatched(items, self.n_ctx)

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        good_B = torch.tensor([isinstance(item, Verdict) and item.good for item in batch.items], device=batch.tokens_T.device)
        log_p_N = token_log_probs(decoder, decoder(batch.tokens_T, rows=rows), batch.target_T, rows)
        v_B = by_row(log_p_N, batch.target_T, batch.lengths) - self.reference.log_probs(batch)
        return self.losses(v_B, good_B).sum(), self._told(self.settings.beta * v_B.detach(), good_B)

    def losses(self, v_B: Tensor, good_B: Tensor) -> Tensor:
        """(B,), of z as `begin` found it."""
        side_B = torch.where(good_B, 1.0, -1.0)
        share_B = torch.where(good_B, self.settings.good, self.settings.bad)
        return share_B * torch.sigmoid(-self.settings.beta * side_B * (v_B - self._z))

    def _told(self, reward_B: Tensor, good_B: Tensor) -> dict[str, Tensor]:
        """accuracy: how many are on their own side of z. z is told once an item, so that the mean is z."""
        right_B = (reward_B > self.settings.beta * self._z) == good_B
        by_kind = {f"{'good' if good else 'bad'}_reward": reward_B[good_B == good].sum() * share for good, share in self._of_kind.items()}
        return {**by_kind, "accuracy": right_B.float().sum(), "z": torch.tensor(self._z * len(good_B))}


def mismatched(items: Sequence[Item], n_ctx: int) -> list[Example]:
    """Each prompt with the answer of the item before it, the first with the last one's, cut where the context ends."""
    rows = [item.example for item in items if isinstance(item, Verdict)]
    if len(rows) < 2:
        raise BadRequest(f"KTO measures a step's drift by prompts with the answers of other prompts, and this step has {len(rows)} item. Set batch to at "
                         f"least 2, and keep two rows or none out (data.held_out)", field="batch")
    out = []
    for prompt, answer in zip(rows, [rows[-1], *rows[:-1]], strict=True):
        p, a = prompt.learned.index(True), answer.learned.index(True)
        ids, learned = prompt.ids[:p] + answer.ids[a:], (False,) * p + answer.learned[a:]
        out.append(Example(ids[:n_ctx], learned[:n_ctx], prompt.origin))
    return out

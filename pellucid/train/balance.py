"""The loss that keeps a mixture's experts equally busy, beside any method's. https://arxiv.org/abs/2101.03961, equations 4 to 6."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.data.batch import Batch, micro
from pellucid.data.example import Item
from pellucid.model.decoder import Decoder
from pellucid.model.experts import MixtureOfExperts
from pellucid.model.parts import Rows

_KEYS = ("router_aux_loss_coef", "aux_loss_alpha", "moe_loss_weight")


def coefficient_of(config: Mapping[str, Any]) -> tuple[str, float] | None:
    """The key of a config that has one, and its number; None where none does, or it is zero. `output_router_logits` says whether transformers adds the loss."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return next(((key, float(part[key])) for part in parts for key in _KEYS if part.get(key)), None)


class Balance:
    """X times the sum over experts of (share of choices that fell on it) times (mean probability of it), layers and tokens of a step taken together, as
    transformers takes them (load_balancing_loss_func of modeling_mixtral.py). Scores of a sigmoid are probabilities once divided by their sum.

    Which experts are chosen has no gradient, so with the shares of the whole step the loss of its parts adds up to that of the whole: where there are several
    parts they are counted first, in a pass of their own.
    """

    def __init__(self, decoder: Decoder, coefficient: float, n_processes: int = 1) -> None:
        self.decoder, self.coefficient, self.n_processes = decoder, coefficient, n_processes
        self.mixtures = [module for module in decoder.modules() if isinstance(module, MixtureOfExperts)]
        self._weight = 0.0
        self._chosen: dict[int, tuple[Tensor, int]] | None = None  # by the number of experts: choices of each, and how many tokens chose, layers added up

    def begin(self, items: Sequence[Item], weight: float, adapter: str | None, max_tokens: int) -> None:
        """Before the first part of a step. weight: what its loss is divided by."""
        parts = micro(items, max_tokens)
        self._weight, self._chosen = weight, None
        if len(parts) == 1 and self.n_processes == 1:
            return
        chosen: dict[int, tuple[Tensor, int]] = {}
        for part in parts:
            batch = Batch.of(part, self.decoder.embed.weight.device)
            rows = Rows.of(*batch.lengths, adapter=adapter)
            with torch.no_grad(), self.watching() as seen:
                self.decoder(batch.tokens_T, rows=rows)
            for X, (counted_X, _, n) in _counted(seen).items():
                chosen[X] = (chosen[X][0] + counted_X, chosen[X][1] + n) if X in chosen else (counted_X, n)
        self._chosen = chosen

    @contextmanager
    def watching(self) -> Iterator[list[tuple[MixtureOfExperts, Tensor]]]:
        """What the routers say within it: (mixture, logits (T, X)) of each. Passes without gradients count where all within it is without."""
        seen: list[tuple[MixtureOfExperts, Tensor]] = []
        hooks = [mixture.router.register_forward_hook(_kept(seen, mixture, torch.is_grad_enabled())) for mixture in self.mixtures]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, seen: Sequence[tuple[MixtureOfExperts, Tensor]]) -> tuple[Tensor, Tensor]:
        """(what the part's summed loss grows by, the same without the coefficient), in units of the step's weight."""
        total = torch.zeros((), device=seen[0][1].device)
        for X, (chosen_X, probability_X, n) in _counted(seen).items():
            if self._chosen is not None:
                chosen_X, n = self._chosen[X]
            total = total + X * (chosen_X / n * probability_X / n).sum()
        return total * (self.coefficient * self._weight), total.detach() * self._weight


def _counted(seen: Sequence[tuple[MixtureOfExperts, Tensor]]) -> dict[int, tuple[Tensor, Tensor, int]]:
    """By the number of experts: how often each was chosen, (X,), the sum of its probabilities, (X,), and of how many tokens, layers added up."""
    found: dict[int, tuple[Tensor, Tensor, int]] = {}
    for mixture, logits_TX in seen:
        X = mixture.spec.n_experts
        scores_TX = logits_TX.softmax(-1) if mixture.spec.scoring == "softmax" else logits_TX.sigmoid()
        _, expert_TA = mixture.ops.route(logits_TX.detach(), mixture.router.correction, mixture.spec)
        new = torch.bincount(expert_TA.flatten(), minlength=X).float(), (scores_TX / scores_TX.sum(-1, keepdim=True)).sum(0), len(logits_TX)
        found[X] = (found[X][0] + new[0], found[X][1] + new[1], found[X][2] + new[2]) if X in found else new
    return found


def _kept(seen: list[tuple[MixtureOfExperts, Tensor]], mixture: MixtureOfExperts, learning: bool) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], logits_TX: Tensor) -> None:
        if torch.is_grad_enabled() == learning:  # else a pass of a reference, beside the one that is learned from
            seen.append((mixture, logits_TX))

    return keep

"""Learning from comparisons: DPO, IPO, ORPO and SimPO. Two answers to one prompt, the better one known.

Shape letters as in model/decoder.py, and P pairs. w and l: a pair's chosen and rejected answer. log p: the log-probability of an answer given its prompt,
summed over its tokens; log r: the same by the reference, the model before training; |y|: an answer's tokens.

    DPO      -log σ(β h),   h = (log p_w - log r_w) - (log p_l - log r_l)
    IPO      (h - 1/2β)²,   both sides of h divided by |y|
    SimPO    -log σ(β (log p_w/|y_w| - log p_l/|y_l|) - γ)
    ORPO     -log p_w/|y_w| - β log σ(odds_w - odds_l),   odds = log(q / (1 - q)) of q = exp(log p/|y|)
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pellucid.data.batch import IGNORED, Batch
from pellucid.data.example import Comparison, Example, Item, examples
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.train.loss import by_row, token_log_probs
from pellucid.train.method import Method
from pellucid.train.recipe import part
from pellucid.train.reference import Reference


@dataclass(frozen=True, slots=True)
class Answers:
    """One side of P pairs. log_p_P: of all tokens together; n_P: how many they are; log_r_P: by the reference, None where a method asks for none."""

    log_p_P: Tensor
    n_P: Tensor
    log_r_P: Tensor | None = None

    @property
    def change_P(self) -> Tensor:
        """log p - log r: how much likelier training has made them."""
        assert self.log_r_P is not None
        return self.log_p_P - self.log_r_P

    @property
    def mean_P(self) -> Tensor:
        """log p a token."""
        return self.log_p_P / self.n_P


class Objective(Protocol):
    """What is asked of pairs. refers: whether of the reference, too. sft: times which the chosen answers' mean loss a token is added."""

    refers: ClassVar[bool]

    @property
    def sft(self) -> float: ...

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(P,)."""
        ...

    def rewards(self, answers: Answers) -> Tensor:
        """(P,): how good the model in training calls them; what is compared is told as accuracy and margin."""
        ...


@part
class Dpo:
    """Direct preference optimization: https://arxiv.org/abs/2305.18290, equation 7. beta: how dear it is to leave the reference.

    sft: what https://arxiv.org/abs/2404.19733 adds, so that the chosen answer does not become unlikelier along with the rejected one.
    reference: how its log-probabilities are had. beside: at each step, of the model without its adapter, or of a second model where all of it is trained;
    ahead: in one pass before the first step, and kept; auto: beside with adapters, else ahead.
    """

    refers: ClassVar[bool] = True
    beta: float = Field(default=0.1, gt=0)
    sft: float = Field(default=0.0, ge=0)
    reference: Literal["auto", "beside", "ahead"] = "auto"

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        return -F.logsigmoid(self.rewards(chosen) - self.rewards(rejected))

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.change_P


@part
class Ipo:
    """Identity preference optimization: https://arxiv.org/abs/2310.12036, equation 17; beta is its τ. The margin is drawn to 1/2β and not beyond.

    per_token: changes are divided by the answers' tokens. The paper does not say so; its authors did it, as trl 1.16 has from them (dpo_trainer.py, "ipo").
    Without it a margin of the same β means less in a longer answer.
    """

    refers: ClassVar[bool] = True
    beta: float = Field(default=0.1, gt=0)
    per_token: bool = True
    sft: float = Field(default=0.0, ge=0)
    reference: Literal["auto", "beside", "ahead"] = "auto"

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        return (self._change(chosen) - self._change(rejected) - 1 / (2 * self.beta)).square()

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * self._change(answers)

    def _change(self, answers: Answers) -> Tensor:
        return answers.change_P / answers.n_P if self.per_token else answers.change_P


@part
class SimPo:
    """Simple preference optimization: https://arxiv.org/abs/2405.14734, equation 6. gamma: the margin that is asked for. No reference."""

    refers: ClassVar[bool] = False
    beta: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=1.0, ge=0)
    sft: float = Field(default=0.0, ge=0)

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        return -F.logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.gamma)

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.mean_P


@part
class Orpo:
    """Odds ratio preference optimization: https://arxiv.org/abs/2403.07691, equations 6 and 7; beta is its λ. No reference, and no fine-tuning before it.

    learn_prompt: the first term is also of the prompt's tokens, as in the authors' code (https://github.com/xfactlab/orpo) and in trl; the paper has p(y|x).
    """

    refers: ClassVar[bool] = False
    sft: ClassVar[float] = 1.0
    beta: float = Field(default=0.1, gt=0)
    learn_prompt: bool = False

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        return -self.beta * F.logsigmoid(log_odds(chosen.mean_P) - log_odds(rejected.mean_P))

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.mean_P


def log_odds(log_q: Tensor) -> Tensor:
    """log(q / (1 - q)) of log q < 0. 1 - q is taken where it is exact: as expm1 for q near one, as log1p for q near zero."""
    near = log_q > -0.6931471805599453  # -log 2, where the two are equally good: Mächler 2012, "Accurately computing log(1 - exp(-|a|))"
    rest = torch.where(near, torch.log(-torch.expm1(torch.where(near, log_q, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, log_q))))
    return log_q - rest


class Preference(Method):
    """A method for each objective. A step's loss is the mean over its pairs, and where `sft` is not zero that many times the mean over the chosen tokens of all
    its pairs together."""

    takes = Comparison

    def __init__(self, name: str, objective: Objective, reference: Reference | None = None) -> None:
        assert objective.refers == (reference is not None), f"{name} and its reference"
        self.name, self.objective, self.reference = name, objective, reference
        self.learn_prompt = isinstance(objective, Orpo) and objective.learn_prompt
        self._pairs_a_token = 0.0  # of the step: what turns a sum over chosen tokens into one that, like the pairs', is divided by the number of pairs

    def weight(self, item: Item) -> float:
        return 1.0

    def begin(self, decoder: Decoder, items: Sequence[Item], adapter: str | None, max_tokens: int) -> None:
        """Of all items of a step, before its first part."""
        chosen = [item.chosen for item in items if isinstance(item, Comparison)]
        self._pairs_a_token = len(chosen) / sum(len(row.ids) - 1 if self.learn_prompt else row.n_learned for row in chosen)

    def referred(self, items: Sequence[Item]) -> list[Example]:
        """The rows of a step whose reference log-probabilities it will ask for."""
        return [row for item in items for row in examples(item)] if self.reference is not None else []

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        target_T = self._targets(batch)
        log_p_N = token_log_probs(decoder, decoder(batch.tokens_T, rows=rows), target_T, rows)
        asked_N = batch.target_T[target_T != IGNORED] != IGNORED
        log_p_B = by_row(log_p_N * asked_N, target_T, batch.lengths)
        n_B = by_row(asked_N.to(log_p_B.dtype), target_T, batch.lengths)
        log_r_B = None if self.reference is None else self.reference.log_probs(batch)
        chosen, rejected = (Answers(log_p_B[i::2], n_B[i::2], None if log_r_B is None else log_r_B[i::2]) for i in (0, 1))
        loss = self.objective.losses(chosen, rejected).sum()
        told = _told(self.objective.rewards(chosen), self.objective.rewards(rejected))
        if self.objective.sft:
            nll = -by_row(log_p_N, target_T, batch.lengths)[0::2].sum() if self.learn_prompt else -chosen.log_p_P.sum()
            loss = loss + self.objective.sft * self._pairs_a_token * nll
            told["chosen_loss"] = self._pairs_a_token * nll.detach()
        return loss, told

    def _targets(self, batch: Batch) -> Tensor:
        """The batch's, and where prompts are learned, too, all of the chosen rows'."""
        if not self.learn_prompt:
            return batch.target_T
        target_T, start = batch.target_T.clone(), 0
        for i, n in enumerate(batch.lengths):
            if i % 2 == 0:
                target_T[start : start + n - 1] = batch.tokens_T[start + 1 : start + n]
            start += n
        return target_T


def _told(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, Tensor]:
    """Sums over pairs: rewards, their difference, and how many are in the right order."""
    chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
    return {"chosen_reward": chosen_P.sum(), "rejected_reward": rejected_P.sum(), "margin": (chosen_P - rejected_P).sum(),
            "accuracy": (chosen_P > rejected_P).float().sum()}

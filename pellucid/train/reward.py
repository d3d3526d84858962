"""A model that says how good an answer is: a decoder with one number in place of logits, trained by comparisons, saved as others save theirs.

    RewardModel.load("out").scores([[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]])
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pellucid.data.batch import Batch, micro
from pellucid.data.example import Comparison, Example, Item
from pellucid.data.render import Rendering
from pellucid.data.shapes import Conversation, Message
from pellucid.errors import BadRequest, EmptyPrompt, LostTuning, MissingTensors, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import describe_checkpoint
from pellucid.families._tokenizer import checkpoint_tokenizer
from pellucid.model.decoder import Decoder
from pellucid.model.load import load_decoder
from pellucid.model.parts import Project, Rows
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer.save import tokenizer_files
from pellucid.train.method import Method
from pellucid.train.recipe import part
from pellucid.weights.checkpoint import CONFIG, GENERATION, Checkpoint, Stored, open_checkpoint
from pellucid.weights.drafts import Written
from pellucid.weights.hub import resolve
from pellucid.weights.inputs import input_files
from pellucid.weights.packed import BESIDE as QUANTIZED
from pellucid.weights.save import save_files

KEPT = 0.9  # of the variance of scores: what has to be in what is written
SCORE = "score.weight"  # as transformers calls it in every *ForSequenceClassification


@part
class Reward:
    """center: times which the squared sum of a pair's two scores is added, so that scores stay around zero: https://arxiv.org/abs/2312.09244, equation 2."""

    center: float = Field(default=0.0, ge=0)


class BradleyTerry(Method):
    """-log σ(s_w - s_l), the mean over a step's pairs; s: the score at an answer's last token. https://arxiv.org/abs/2203.02155, equation 1, of pairs."""

    name = "reward"
    takes = Comparison

    def __init__(self, settings: Reward, head: Project) -> None:
        self.settings, self.head = settings, head

    def weight(self, item: Item) -> float:
        return 1.0

    def parameters(self) -> Mapping[str, nn.Parameter]:
        assert isinstance(self.head.weight, nn.Parameter)
        return {SCORE: self.head.weight}

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        s_B = scored(decoder, self.head, batch.tokens_T, rows)
        chosen_P, rejected_P = s_B[0::2], s_B[1::2]
        loss = -F.logsigmoid(chosen_P - rejected_P).sum()
        if self.settings.center:
            loss = loss + self.settings.center * (chosen_P + rejected_P).square().sum()
        w, worse = chosen_P.detach(), rejected_P.detach()
        return loss, {"chosen_score": w.sum(), "rejected_score": worse.sum(), "margin": (w - worse).sum(), "accuracy": (w > worse).float().sum()}


def new_head(decoder: Decoder, seed: int) -> Project:
    """A matrix to one number, float32, drawn with deviation 1 / sqrt(D + 1), as in https://arxiv.org/abs/2009.01325: small, and not zero."""
    d_embed = decoder.unembed.d_in
    head = Project(decoder.ops, d_embed, 1, bias=False)
    drawn = torch.empty(1, d_embed).normal_(0, (d_embed + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    head.weight = nn.Parameter(drawn.to(decoder.unembed.weight.device))
    return head


def scored(decoder: Decoder, head: Project, tokens_T: Tensor, rows: Rows) -> Tensor:
    """(B,), float32: each row's score, at its last token."""
    last_B = torch.tensor(list(accumulate(rows.lengths)), device=tokens_T.device) - 1
    hidden_BD = decoder(tokens_T, rows=rows).index_select(0, last_B)
    scores: Tensor = head(hidden_BD.to(head.weight.dtype))[:, 0].float()
    return scores


def save_reward(folder: Path, base: Checkpoint, ours: Mapping[str, Tensor], head_1D: Tensor, *, tokenizer: Tokenizer | None,
                metadata: Mapping[str, str] | None = None, texts: Mapping[str, str] | None = None) -> tuple[Written, ...]:
    """Writes a reward model in transformers' layout: the base's tensors, which training may have changed, without its unembedding, and the head.

    ours: by our names. tokenizer: the base's, whose files are copied along, or made where the base is one GGUF file. texts: files beside, by name.
    Raises what `save_files` raises.
    """
    described = describe_checkpoint(base)
    spec = replace(described.spec, tied=True)  # an unembedding that is none of its own is not written
    causal = (base.config.get("architectures") or [""])[0]
    label = {"architectures": [causal.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"],
             "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    weights = {file.name for file in base.files} | {CONFIG, GENERATION, *QUANTIZED}
    beside = [path for name, path in input_files(base).items() if name not in weights]
    made = tokenizer_files(tokenizer, spec.n_ctx) if base.gguf is not None and tokenizer is not None else {}
    table = family(spec.family).WEIGHTS | {SCORE: SCORE}
    tensors = {name: tensor.detach().cpu() for name, tensor in ours.items() if name != "unembed.weight"} | {SCORE: head_1D.detach().cpu()}
    return save_files(folder, spec, table, tensors, {**described.config, **label}, beside=beside, texts={**made, **(texts or {})}, metadata=metadata)


def check_scores(folder: Path, decoder: Decoder, head: Project, adapter: str | None, rows: Sequence[Example]) -> None:
    """Loads what was written. Raises LostTuning where it scores these rows otherwise than the model in training."""
    batch = Batch.of(rows, decoder.embed.weight.device)
    with torch.no_grad():
        decoder.eval()
        expected_B = scored(decoder, head, batch.tokens_T, Rows.of(*batch.lengths, adapter=adapter))
    found_B = torch.tensor(RewardModel.load(folder).scores([row.ids for row in rows]))
    apart, spread = (found_B - expected_B.cpu()).square().sum().item(), (expected_B - expected_B.mean()).square().sum().item()
    if apart > (1 - KEPT) * spread + 1e-6:
        raise LostTuning(f"what was written scores {len(rows)} rows otherwise than the model in training: the squared differences sum to {apart:.3g}, and "
                         f"those between the rows' own scores to {spread:.3g}; nothing was kept. Train longer, or in float32 (model.dtype: float32)",
                         share=1 - apart / max(spread, 1e-12))


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Scores of answers: the higher, the better; only differences between answers to one prompt mean something."""

    decoder: Decoder
    head: Project
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    name: str

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto", accept_unread: Iterable[str] = ()) -> RewardModel:
        """A *ForSequenceClassification of one label, ours or another's.

        Raises UnsupportedModel for more labels, MissingTensors where there is no head, and what `load_decoder` raises.
        """
        found = open_checkpoint(resolve(source))
        if SCORE not in found.stored:
            raise MissingTensors(f"{found.name!r} has no {SCORE}, which a reward model's score is made by. Is it a language model? Tune one with "
                                 f"method: reward")
        n_labels = found.stored[SCORE].shape[0]
        if n_labels != 1:
            raise UnsupportedModel(f"{found.name!r} gives {n_labels} numbers ({SCORE} is {list(found.stored[SCORE].shape)}), and a reward is one")
        body = _Body(**{field.name: getattr(found, field.name) for field in fields(found)})
        body.config = {**found.config, "tie_word_embeddings": True}  # it has no unembedding, and this way none is looked for
        decoder, _ = load_decoder(body, device=device, dtype=dtype, activations="exact", accept_unread=accept_unread)
        head = Project(decoder.ops, decoder.unembed.d_in, 1, bias=False)
        head.weight = nn.Parameter(found.tensor(SCORE).to(decoder.embed.weight.device, torch.float32), requires_grad=False)
        tokenizer = checkpoint_tokenizer(found)
        ends = {*found.eos_ids, *(() if tokenizer is None else (tokenizer.eos_id, *tokenizer.end_ids))}
        return cls(decoder, head, tokenizer, frozenset(i for i in ends if i is not None), found.name)

    def scores(self, answers: Iterable[Sequence[Message] | str | Sequence[int]], *, max_tokens: int = 4096) -> list[float]:
        """One number each, of conversations that end with the answer, texts, or ids as they are; so many tokens at a time.

        A conversation is rendered by the model's own template and scored where its answer ends, as in training. Raises EmptyPrompt, and BadRequest for what is
        longer than the model's context.
        """
        rows = [self._row(answer, f"answer {i}") for i, answer in enumerate(answers, 1)]
        out: list[float] = []
        for few in micro(rows, max_tokens):
            batch = Batch.of(few, self.decoder.embed.weight.device)
            with torch.no_grad():
                out += scored(self.decoder, self.head, batch.tokens_T, Rows.of(*batch.lengths)).tolist()
        return out

    def _row(self, answer: Sequence[Message] | str | Sequence[int], origin: str) -> Example:
        n_ctx = self.decoder.spec.n_ctx
        if not len(answer):
            raise EmptyPrompt(f"{origin} is empty: there is no token to score it at", field="answers")
        if not isinstance(answer, str) and isinstance(answer[0], Mapping):
            how = Rendering(tokenizer=self._tokenizer, stop_ids=self.stop_ids, max_length=n_ctx, reasoning="learn", tool_calls="learn")
            said = Conversation(tuple(answer), origin, n_prompt=len(answer) - 1)  # type: ignore[arg-type]
            ids = next((item.ids for item in how.items(said) if isinstance(item, Example)), ())
            n = how.too_long_rows.get(origin, len(ids))
        else:
            ids = tuple(self._tokenizer.encode(answer, special=True)) if isinstance(answer, str) else tuple(answer)  # type: ignore[arg-type]
            n = len(ids)
        if n > n_ctx:
            raise BadRequest(f"{origin} has {n:,} tokens, and this model's context is {n_ctx:,}. Shorten it", field="answers")
        return Example(ids, (False,) * len(ids), origin)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise BadRequest(f"{self.name!r} has no tokenizer, so it scores token ids only", field="answers")
        return self.tokenizer


class _Body(Checkpoint):
    """The checkpoint without its head."""

    @cached_property
    def stored(self) -> dict[str, Stored]:  # type: ignore[override]
        return {name: tensor for name, tensor in super().stored.items() if name != SCORE}

    def _agree(self, file: str, names: Iterable[str]) -> None:
        pass  # `super().stored` saw it whole already

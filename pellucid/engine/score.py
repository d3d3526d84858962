"""What a model says of ids that are given: log-probabilities of continuations, of whole texts, and vectors for texts."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.engine.request import Alternatives, token_ids
from pellucid.engine.sampler import not_numbers, score, scores
from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.model.decoder import Decoder

POOLINGS = ("mean", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A continuation's log-probabilities, natural logarithms under the model's own distribution, one an id.

    greedy: whether each id is the likeliest in its place.
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    top_logprobs: tuple[Alternatives, ...] | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What logits say of the ids that did come: `Score`, in parts."""

    logprobs: list[float]
    greedy: list[bool]
    top_logprobs: list[Alternatives]


def log_probabilities(logits_NV: Tensor, ids: Sequence[int], n_top: int = 0) -> Told:
    """Of each row, the id that came after it: the same numbers the sampler tells of an id that it chooses."""
    ids_N = torch.tensor(list(ids), device=logits_NV.device)
    told = [scores(row, n_top) for row in score(logits_NV, ids_N, n_top > 0).tolist()]
    greedy_N = logits_NV.argmax(-1) == ids_N
    return Told([logprob for logprob, _ in told], greedy_N.tolist(), [top for _, top in told] if n_top else [])


class Embedding:
    """A text's vector: the mean of its hidden states, or the last one, of length one if it is normalized. `vector` is (D,), float32."""

    def __init__(self, ids: Sequence[int], pooling: str, normalize: bool) -> None:
        if pooling not in POOLINGS:
            raise BadRequest(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}", field="pooling")
        self.ids, self.pooling, self.normalize = token_ids(ids, "ids"), pooling, normalize
        self._sum: Tensor | None = None
        self._last: Tensor | None = None
        self._n_read = 0

    def read(self, start: int, hidden_TD: Tensor) -> None:
        """Hidden states as they are computed, those that were read before left out. Raises PellucidError where they are no numbers."""
        if hidden_TD.shape[1] == 0:
            raise BadRequest("this activation is not one vector a token: its module puts out something else, or is not called. Take one that is, such as "
                             "blocks.0.attn", field="activation")
        hidden_TD = hidden_TD[max(0, self._n_read - start):]  # the engine may have begun anew, or been interrupted
        if not len(hidden_TD):
            return
        self._n_read = max(self._n_read, start) + len(hidden_TD)
        sum_D = hidden_TD.double().sum(0)
        if not sum_D.isfinite().all():
            raise not_numbers("hidden states that are not numbers")
        self._sum = sum_D if self._sum is None else self._sum + sum_D
        self._last = hidden_TD[-1].clone()  # a view would hold the whole step's

    @property
    def vector(self) -> Tensor:
        """Once the engine is done with it."""
        assert self._sum is not None
        assert self._last is not None
        pooled_D = (self._sum / len(self.ids)).float() if self.pooling == "mean" else self._last.float().clone()  # not of inference mode
        return torch.nn.functional.normalize(pooled_D, dim=0) if self.normalize else pooled_D


class Tap:
    """What the module of this name puts out, pass by pass, while it is attached. Raises BadRequest for a name that is not there."""

    def __init__(self, decoder: Decoder, activation: str) -> None:
        modules = dict(decoder.named_modules())
        if activation not in modules:
            raise BadRequest(f"activation {activation!r} is not a module of this model.{did_you_mean(nearest(activation, modules))} They are named as its "
                             f"weights are: blocks.0, blocks.0.attn, blocks.0.mlp.down ...", field="activation")
        self._module = modules[activation]
        self._output: object = None
        self._thread = 0

    def __enter__(self) -> Tap:
        self._thread = threading.get_ident()  # which holds the engine: what another has the model compute beside it is not wanted
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if threading.get_ident() == self._thread:
            self._output = output

    def take(self, hidden_TD: Tensor) -> Tensor:
        """What it put out in the pass that gave these hidden states: (T, D), or (T, 0) where that is not one vector a token."""
        output, self._output = self._output, None
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(hidden_TD):
            return hidden_TD[:, :0]
        return output.flatten(1)


def windows(ids: Sequence[int], n_ctx: int, overlap: int) -> list[tuple[list[int], list[int]]]:
    """A long text as (context, continuation) pairs that fit n_ctx and hold every id but the first once as continuation.

    Every window but a short text's is as long as it may be; each but the first begins with at least `overlap` ids that were scored before.
    """
    if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 < overlap < n_ctx:
        raise BadRequest(f"overlap={overlap!r} is no count from 1 to {n_ctx - 1}, what a context of {n_ctx} leaves", field="overlap")
    plain = token_ids(ids, "ids")
    pairs, start = [], 1
    while start < len(plain):
        stop = min(len(plain), n_ctx if start == 1 else start + n_ctx - overlap)
        pairs.append((plain[max(0, stop - n_ctx) : start], plain[start:stop]))
        start = stop
    return pairs

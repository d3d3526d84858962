"""One sequence continued token by token over a key/value cache."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pellucid.engine.request import Alternatives, FinishReason, Request, Result
from pellucid.engine.sampler import WORD, Row, Sampler
from pellucid.errors import BadRequest, EmptyPrompt, PromptTooLong
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.model.rope import by_length, planned

CHUNK = 512  # prompt tokens a pass: bounds the memory of attention scores, and is past where longer chunks gain speed on a CPU


class Memory:
    """The keys and values of one sequence, and the ids they belong to, to be continued by a later request.

    A conversation passes the same Memory each turn: what the new prompt shares with the last one is not computed again.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.ids: list[int] = []
        self.cache = Cache(decoder.spec)
        self._scalings = by_length(decoder.spec)

    def keep(self, prompt_ids: Sequence[int], end: int) -> int:
        """Forget everything past the tokens shared with this prompt, its last token not among them; how many those are.

        The last token is computed again in any case: its logits are what generation starts from.
        """
        n = 0
        for ours, theirs in zip(self.ids, prompt_ids[:-1], strict=False):
            if ours != theirs:
                break
            n += 1
        del self.ids[n:]
        self.cache.truncate(0, n)
        self.plan(len(prompt_ids), end)
        return len(self.ids)

    def plan(self, n_tokens: int, end: int) -> list[int]:
        """Says that the sequence is going to be so long, and `end` tokens at most; the ids that were forgotten because its rope changes there."""
        forgotten: list[int] = []
        if not self.cache.plan(0, planned(self._scalings, n_tokens, end)):
            forgotten, self.ids = self.ids, []
        return forgotten


class Generation(Iterator[int]):
    """The ids that continue a request, as they come; `result()` says afterwards what came and why it ended.

    The caller may end it at any point with `stop()`. Raises EmptyPrompt, PromptTooLong (with both counts) or BadRequest before anything
    is computed.
    """

    def __init__(self, decoder: Decoder, request: Request, memory: Memory | None = None, *, chunk: int = CHUNK) -> None:
        n, n_ctx = len(request.prompt_ids), decoder.spec.n_ctx
        if not n:
            raise EmptyPrompt("the prompt has no tokens: there is nothing to start from. Give at least one, such as the model's BOS", field="prompt")
        if n >= n_ctx:
            raise PromptTooLong(f"the prompt has {n:,} tokens; this model's context holds {n_ctx:,} with at least one left to generate. "
                                f"Shorten the prompt by {n - n_ctx + 1:,}", n_prompt=n, n_ctx=n_ctx)
        if memory is not None and memory.decoder is not decoder:
            raise BadRequest("memory is another model's: its keys and values mean nothing to this one. Take one from this model's memory()", field="memory")
        self.decoder, self.request, self.chunk = decoder, request, chunk
        self.memory = Memory(decoder) if memory is None else memory
        self.device = decoder.embed.weight.device
        if request.n_generated > 1 or request.prompt_logprobs is not None:
            name = "prompt_logprobs" if request.prompt_logprobs is not None else "n" if request.best_of is None else "best_of"
            raise BadRequest(f"{name}={getattr(request, name)} is more than a sequence generated alone can have. Leave it out", field=name)
        self.row, self.sampler = Row(request, decoder.spec.n_vocab), Sampler(decoder.spec.n_vocab, self.device)
        self.constraint = None if request.constraint is None else request.constraint.start()
        self.room = n_ctx - n
        self.end = n - 1 + min(self.room, request.max_tokens or self.room)  # tokens the memory holds at most: the last id is never fed
        self.logprobs: list[float] = []
        self.top_logprobs: list[Alternatives] = []
        self.finish_reason: FinishReason | None = None
        self.n_reused = 0
        self.seconds = self.prefill_seconds = 0.0
        self._last_1 = torch.empty(0, dtype=torch.int64)  # the newest id, still on its device

    def __next__(self) -> int:
        if self.finish_reason is not None:
            raise StopIteration
        start = time.perf_counter()
        chosen = self._step()
        self.seconds += time.perf_counter() - start
        if len(self.ids) == 1:
            self.prefill_seconds = self.seconds
        if chosen in self.request.stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) == self.request.max_tokens:
            self.finish_reason = "length"
        elif len(self.ids) == self.room:
            self.finish_reason = "context"
        return chosen

    @property
    def ids(self) -> list[int]:
        """What has come so far."""
        return self.row.output_ids

    def stop(self) -> None:
        """End here because something the engine does not know, such as a stop string, was met."""
        self.finish_reason = "stop"

    def result(self) -> Result:
        """What came. Only once it has ended: a RuntimeError before that is a bug of the caller."""
        if self.finish_reason is None:
            raise RuntimeError("a generation has no result before it has ended")
        return Result(token_ids=tuple(self.ids), finish_reason=self.finish_reason, logprobs=tuple(self.logprobs) if self.request.logprobs else None,
                      top_logprobs=tuple(self.top_logprobs) if self.request.top_logprobs else None, n_prompt=len(self.request.prompt_ids),
                      n_reused=self.n_reused, prefill_seconds=self.prefill_seconds, seconds=self.seconds)

    # inference_mode is entered for a step at a time: held across yields it would leak into the caller's code.
    @torch.inference_mode()
    def _step(self) -> int:
        logits_1V = self._next() if self.ids else self._prefill()
        sampled = self.sampler(logits_1V, [self.row], self._mask())
        for error in sampled.errors.values():
            raise error
        if self.constraint is not None:
            self.constraint.advance(sampled.ids[0])
        if (logprob := sampled.logprobs[0]) is not None:
            self.logprobs.append(logprob)
            self.top_logprobs.append(sampled.top_logprobs[0] or ())
        self._last_1 = sampled.ids_B
        return sampled.ids[0]

    def _mask(self) -> Tensor | None:
        if self.constraint is None:
            return None
        words_1W = torch.zeros(1, -(-self.decoder.spec.n_vocab // WORD), dtype=torch.int32)
        self.constraint.mask(words_1W[0])
        return words_1W

    def _prefill(self) -> Tensor:
        """Logits (1, V) after the prompt, computed in chunks from where the memory ends."""
        ids = self.request.prompt_ids
        start = self.n_reused = self.memory.keep(ids, self.end)
        return self._feed_in_chunks(ids[start:])

    def _feed_in_chunks(self, ids: Sequence[int]) -> Tensor:
        for i in range(0, len(ids), self.chunk):
            part = ids[i : i + self.chunk]
            logits_1V = self._feed(torch.tensor(part, dtype=torch.int64, device=self.device), part)
        return logits_1V

    def _next(self) -> Tensor:
        """Logits (1, V) after the newest id."""
        if forgotten := self.memory.plan(len(self.memory.ids) + 1, self.end):
            return self._feed_in_chunks([*forgotten, self.ids[-1]])
        return self._feed(self._last_1, self.ids[-1:])

    def _feed(self, ids_T: Tensor, ids: Sequence[int]) -> Tensor:
        """Logits (1, V) after these tokens, which the memory now holds."""
        hidden_TD = self.decoder(ids_T, None, Rows((len(ids),), (0,)), self.memory.cache)
        self.memory.ids += ids
        logits_1V: Tensor = self.decoder.unembed(hidden_TD[-1:])
        return logits_1V


def generate(decoder: Decoder, request: Request, memory: Memory | None = None) -> Result:
    """The whole of it, for a caller who need not watch."""
    generation = Generation(decoder, request, memory)
    for _ in generation:
        pass
    return generation.result()

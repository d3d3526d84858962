"""A completion as it comes: ids from the engine, made into text, cut at stop strings, thinking told from answer."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pellucid.api.completion import Completion, Usage
from pellucid.api.text import Kind, StopStrings, Thinking
from pellucid.engine.generation import Generation
from pellucid.engine.grammar import Compiled
from pellucid.engine.verdict import judge
from pellucid.tokenizer import Tokenizer


class Stream(Iterator[str]):
    """Pieces of the text, none empty, as they come; after the last, `result` is the whole Completion.

    continues: ids of a text that this one goes on from: a space between them belongs to this one.
    `parts()` also gives the thinking, each piece with its kind. Both take from the same source: use one. `stop()` ends it early, and
    `interrupted` says whether it did.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, *, stops: Sequence[str] = (), thinking: Thinking | None = None,
                 continues: Sequence[int] = (), settings: Mapping[str, Any]) -> None:
        self.generation, self.settings = generation, settings
        self._stops, self._thinking = StopStrings(stops), thinking
        self._decoder = tokenizer.stream(after=continues)
        self._marks = _special_marks(tokenizer, thinking)
        self._said: dict[Kind, list[str]] = {"text": [], "thinking": []}
        self._parts = self._run()
        self.interrupted = False

    def __next__(self) -> str:
        return next(piece for kind, piece in self._parts if kind == "text")

    def parts(self) -> Iterator[tuple[Kind, str]]:
        """("thinking" or "text", piece), in order."""
        return self._parts

    def stop(self) -> None:
        """End it here, which changes nothing once it has ended; what was held back is still to be taken. The result says "interrupt"."""
        if self.generation.finish_reason is None:
            self.interrupted = True
            self.generation.stop()

    @property
    def result(self) -> Completion:
        """The whole completion; what was not taken yet is generated now."""
        for _ in self._parts:
            pass
        result = self.generation.result()
        usage = Usage(prompt_tokens=result.n_prompt, completion_tokens=len(result.token_ids), reused_tokens=result.n_reused)
        thinking = "".join(self._said["thinking"])
        compiled, by = self.generation.request.constraint, self._stopped_by()
        verdict = None
        if isinstance(compiled, Compiled):
            verdict = judge(compiled.text(result.token_ids), compiled, result.finish_reason, by if isinstance(by, str) else None)
        return Completion(
            text="".join(self._said["text"]), token_ids=result.token_ids, finish_reason=result.finish_reason, usage=usage, seconds=result.seconds,
            prefill_seconds=result.prefill_seconds, seed=self.generation.request.sampling.seed, thinking=thinking or None,
            stopped_by=by, verdict=verdict, logprobs=result.logprobs, top_logprobs=result.top_logprobs, prompt_logprobs=result.prompt_logprobs,
            prompt_top_logprobs=result.prompt_top_logprobs, prompt_ids=tuple(self.generation.request.prompt_ids), settings=self.settings)

    def _run(self) -> Iterator[tuple[Kind, str]]:
        stop_ids = self.generation.request.stop_ids
        for i in self.generation:
            if i not in stop_ids:
                yield from self._show(self._stops.push(self._decoder.push(i) + self._marks.get(i, "")))
        yield from self._show(self._stops.push(self._decoder.finish()))
        yield from self._show(self._stops.finish())
        if self._thinking is not None:
            yield from self._noted(self._thinking.finish())

    def _show(self, text: str) -> Iterator[tuple[Kind, str]]:
        if self._stops.met is not None:
            self.generation.stop()
        if text:
            yield from self._noted([("text", text)] if self._thinking is None else self._thinking.push(text))

    def _noted(self, parts: Sequence[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
        for kind, piece in parts:
            self._said[kind].append(piece)
            yield kind, piece

    def _stopped_by(self) -> str | int | None:
        if self._stops.met is not None:
            return self._stops.met
        if self.interrupted:
            return "interrupt"
        ids = self.generation.ids
        return ids[-1] if ids and ids[-1] in self.generation.request.stop_ids else None


def together(streams: Iterable[Stream]) -> None:
    """Takes everything of several streams in turn, so that none runs far past a stop string that only its own text shows."""
    left = list(streams)
    while left:
        left = [stream for stream in left if next(stream.parts(), None) is not None]


def _special_marks(tokenizer: Tokenizer, thinking: Thinking | None) -> dict[int, str]:
    """Thinking marks that decoding would leave out, because the vocabulary counts them as special: id -> text."""
    if thinking is None:
        return {}
    ids = {tokenizer.id_of(mark): mark for mark in (thinking.opening, thinking.closing)}
    return {i: mark for i, mark in ids.items() if i is not None and i in tokenizer.special_ids}

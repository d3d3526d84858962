"""A completion as it comes: ids from the engine, made into text, cut at stop strings, thinking told from answer."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pellucid.api.completion import Completion, Usage
from pellucid.api.text import Kind, StopStrings, Thinking
from pellucid.engine.engine import Engine
from pellucid.engine.generation import Generation
from pellucid.engine.grammar import Compiled
from pellucid.engine.verdict import judge
from pellucid.tokenizer import Tokenizer


class Stream(Iterator[str]):
    """Pieces of the text, none empty, as they come; after the last, `result` is the whole Completion.

    continues: ids of a text that this one goes on from: a space between them belongs to this one. marks: special tokens that show in the text.
    `parts()` also gives the thinking, each piece with its kind. Both take from the same source: use one. `stop()` ends it early, and
    `interrupted` says whether it did. One that is dropped is cancelled at once.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, *, stops: Sequence[str] = (), thinking: Thinking | None = None,
                 continues: Sequence[int] = (), marks: Sequence[str] = (), settings: Mapping[str, Any]) -> None:
        self.generation, self.settings = generation, settings
        self._stops, self._thinking = StopStrings(stops), thinking
        self._decoder = tokenizer.stream(after=continues)
        self._marks = _special_marks(tokenizer, (*marks, *(() if thinking is None else (thinking.opening, thinking.closing))))
        self._said: dict[Kind, list[str]] = {"text": [], "thinking": []}
        # No generator of its own is kept here: its frame would hold the stream, and a stream that is dropped would wait for the garbage collector.
        self._read: deque[tuple[Kind, str]] = deque()  # and not taken yet
        self._ended = self.interrupted = False
        self._n_thinking = self._n_open = 0  # ids of the thinking, and those of which it is not known yet

    def __next__(self) -> str:
        return next(piece for kind, piece in self.parts() if kind == "text")

    def parts(self) -> Iterator[tuple[Kind, str]]:
        """("thinking" or "text", piece), in order."""
        while self._read or not self._ended:
            if self._read:
                yield self._read.popleft()
            else:
                self._read_one()

    def read_ready(self) -> bool:
        """Reads the ids that have come, up to a stop string, and computes none. False once it has ended."""
        while not self._ended and (self.generation.finished or self.generation.n_ready):
            self._read_one()
        return not self._ended

    def ready(self) -> list[tuple[Kind, str]]:
        """The parts that have come and were not taken; computes none."""
        self.read_ready()
        parts = list(self._read)
        self._read.clear()
        return parts

    @property
    def ended(self) -> bool:
        """Whether all of it was read from the engine."""
        return self._ended

    def stop(self) -> None:
        """End it here, which changes nothing once it has ended; what was held back is still to be taken. The result says "interrupt"."""
        if self.generation.finish_reason is None:
            self.interrupted = True
            self.generation.stop()

    @property
    def result(self) -> Completion:
        """The whole completion; what was not taken yet is generated now."""
        for _ in self.parts():
            pass
        result = self.generation.result()
        usage = Usage(prompt_tokens=result.n_prompt, completion_tokens=len(result.token_ids), reused_tokens=result.n_reused,
                      thinking_tokens=self._n_thinking)
        thinking = "".join(self._said["thinking"])
        compiled, by = self.generation.request.constraint, self._stopped_by()
        verdict = None
        if isinstance(compiled, Compiled) and compiled.source.kind != "tags":  # whose text is free
            verdict = judge(compiled.text(result.token_ids), compiled, result.finish_reason, by if isinstance(by, str) else None)
        return Completion(
            text="".join(self._said["text"]), token_ids=result.token_ids, finish_reason=result.finish_reason, usage=usage, seconds=result.seconds,
            prefill_seconds=result.prefill_seconds, seed=self.generation.request.sampling.seed, thinking=thinking or None,
            stopped_by=by, verdict=verdict, logprobs=result.logprobs, top_logprobs=result.top_logprobs, prompt_logprobs=result.prompt_logprobs,
            prompt_top_logprobs=result.prompt_top_logprobs, prompt_ids=tuple(self.generation.request.prompt_ids), settings=self.settings)

    def _read_one(self) -> None:
        """The next id as text, or what was held back after the last one."""
        for i in self.generation:
            if i not in self.generation.request.stop_ids:
                before = self._thinking is not None and self._thinking.thought
                self._show(self._stops.push(self._decoder.push(i) + self._marks.get(i, "")))
                self._count(before)
            return
        self._ended = True
        self._show(self._stops.push(self._decoder.finish()))
        self._show(self._stops.finish())
        if self._thinking is not None:
            self._note(self._thinking.finish())

    def _show(self, text: str) -> None:
        if self._stops.met is not None:
            self.generation.stop()
        if text:
            self._note([("text", text)] if self._thinking is None else self._thinking.push(text))

    def _count(self, before: bool | None) -> None:
        """One id more, before which it was this that was thought: the id that ends the thinking belongs to it."""
        if self._thinking is None or before is False:
            return
        self._n_open += 1
        if before or self._thinking.thought:
            self._n_thinking, self._n_open = self._n_thinking + self._n_open, 0

    def _note(self, parts: Sequence[tuple[Kind, str]]) -> None:
        for kind, piece in parts:
            self._said[kind].append(piece)
            self._read.append((kind, piece))

    def _stopped_by(self) -> str | int | None:
        if self._stops.met is not None:
            return self._stops.met
        if self.interrupted:
            return "interrupt"
        ids = self.generation.ids
        return ids[-1] if ids and ids[-1] in self.generation.request.stop_ids else None


def together(engine: Engine, streams: Iterable[Stream]) -> None:
    """Reads all of several streams of an engine, a step at a time, so that none runs past a stop string that only its own text shows.

    What one raises cancels the others.
    """
    asked = list(streams)
    try:
        left = asked
        while left := [stream for stream in left if stream.read_ready()]:
            engine.step()
    except BaseException:
        for stream in asked:
            stream.generation.cancel()
        raise


def _special_marks(tokenizer: Tokenizer, marks: Iterable[str]) -> dict[int, str]:
    """Those that decoding would leave out, because the vocabulary counts them as special: id -> text."""
    ids = {tokenizer.id_of(mark): mark for mark in marks}
    return {i: mark for i, mark in ids.items() if i is not None and i in tokenizer.special_ids}

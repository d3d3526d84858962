"""One model at work for many callers: a thread of its own steps the engine, and what comes reaches the callers' event loop as it comes.

The loop never waits for the engine: prompts are made ready in other threads, begun and given up by the working thread between two steps.
"""
from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.api import Completion, Model, Stream
from pellucid.api.text import Kind
from pellucid.engine.request import Alternatives
from pellucid.errors import PellucidError

STEP_SECONDS = 10.0  # for a step that is under way, when all is to end
ANSWER_TOKENS = 100  # after so many something has ended, as a rule: what a refused caller is told to wait
Start = Callable[[], Stream]
Prepare = Callable[[], tuple[list[Start], int]]  # also how many tokens all prompts have
Token = tuple[int, float, Alternatives]  # an id, its log-probability and the likeliest in its place


class Busy(PellucidError):
    """As many wait as may. `retry_seconds`: when it is worth asking again."""

    def __init__(self, n: int, most: int, retry_seconds: int) -> None:
        super().__init__(f"{n} outputs are under way and wait, of at most {most}. Ask again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class Closing(PellucidError):
    """The server is about to stop and takes nothing new."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one output said in a step. prompt: its prompt's tokens, with the first. completion: the whole of it, once it has ended."""

    index: int
    n_tokens: int
    parts: Sequence[tuple[Kind, str]]
    tokens: Sequence[Token]  # where log-probabilities are asked for
    completion: Completion | None = None
    prompt: Sequence[tuple[int, float | None, Alternatives]] = ()


class Ticket:
    """A caller's outputs. Used as `async with`: whatever ends the block gives up what has not ended, and its pages are free before the next step."""

    def __init__(self, desk: Desk, starts: Sequence[Start], n_prompt: int) -> None:
        self._desk, self.starts, self.n_prompt = desk, starts, n_prompt
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Said | BaseException] = asyncio.Queue()
        self.streams: dict[int, Stream] = {}  # by number, those that have not ended; the working thread's own
        self.n_left = len(starts)  # the loop's own, as is what follows
        self.n_written = 0  # tokens

    async def __aenter__(self) -> Ticket:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.n_left:
            self._desk.leave(self)

    async def said(self) -> AsyncIterator[Said]:
        """What its outputs say, as it comes, until all have ended. Raises what ended one of them, which ends the others."""
        while self.n_left:
            news = await self._news.get()
            if isinstance(news, BaseException):
                raise news
            self.n_left -= news.completion is not None
            self.n_written += news.n_tokens
            yield news

    async def completions(self) -> list[Completion]:
        """All of them, whole, in order."""
        done: dict[int, Completion] = {}
        async for said in self.said():
            if said.completion is not None:
                done[said.index] = said.completion
        return [done[i] for i in range(len(self.starts))]

    def tell(self, news: Sequence[Said | BaseException]) -> None:
        """From the working thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever would read this
            self._loop.call_soon_threadsafe(self._hear, news)

    def _hear(self, news: Sequence[Said | BaseException]) -> None:
        for one in news:
            self._news.put_nowait(one)


@dataclass(slots=True)
class _Counts:
    n_asked: int = 0  # outputs, ever
    n_refused: int = 0
    n_failed: int = 0
    n_left: int = 0  # given up by their callers
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class Desk:
    """Takes what callers ask of one model, up to `max_waiting` outputs beside those the engine runs at once.

    Must be closed: `close` waits for what is under way, as long as it may.
    """

    def __init__(self, model: Model, *, max_waiting: int = 256) -> None:
        self.model, self.max_waiting = model, max_waiting
        self.most = model.engine.scheduler.max_rows + max_waiting
        self.counts = _Counts()
        self.n_under_way = 0  # outputs; the loop's own
        self._changed = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._gone: deque[Ticket] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._open: set[Ticket] = set()
        self._closing = self._stopped = False
        self._until: float | None = None  # when a close gives up what is left
        self._thread = threading.Thread(target=self._work, name="pellucid-desk", daemon=True)
        self._thread.start()

    # On the event loop

    @contextlib.asynccontextmanager
    async def ask(self, prepare: Prepare) -> AsyncIterator[Ticket]:
        """A ticket for the outputs that `prepare`, called in another thread, makes ready. Raises what it raises, Busy and Closing."""
        self._let_in()
        starts, n_prompt = await asyncio.to_thread(prepare)
        self._refuse_more(len(starts))
        self.n_under_way += len(starts)
        self.counts.n_asked += len(starts)
        try:
            async with Ticket(self, starts, n_prompt) as ticket:
                self._post(self._arrived, ticket)
                yield ticket
        finally:
            self.n_under_way -= len(starts)

    def _let_in(self) -> None:
        if self._closing:
            raise Closing("the server is stopping and takes no more requests")
        self._refuse_more(1)

    def _refuse_more(self, n: int) -> None:
        if self.n_under_way + n > self.most:
            self.counts.n_refused += n
            seconds = self.model.engine.books.facts()["token_seconds"] * ANSWER_TOKENS
            raise Busy(self.n_under_way, self.most, max(1, min(60, round(seconds))))

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """A place among what is under way, for work that is `call`ed. Raises Busy and Closing."""
        self._let_in()
        self.n_under_way += 1
        try:
            yield
        finally:
            self.n_under_way -= 1

    async def call(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, called by the working thread between two steps: for what the engine does besides writing. Whatever is written waits for it."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not done.cancelled():
                done.set_exception(error) if error is not None else done.set_result(result)

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)
        if self._stopped:
            raise Closing("the server stopped before this was finished")
        self._post(self._calls, run)
        return await done

    def leave(self, ticket: Ticket) -> None:
        """Its caller wants nothing any more."""
        self.counts.n_left += ticket.n_left
        self._post(self._gone, ticket)

    async def close(self, seconds: float) -> int:
        """Takes nothing new, waits so long for what is under way, and gives up the rest: how many outputs that were."""
        self._closing = True
        self._until = asyncio.get_running_loop().time() + seconds if self._until is None else self._until
        while self.n_under_way and asyncio.get_running_loop().time() < self._until:
            await asyncio.sleep(0.02)
        left = self.n_under_way
        with self._changed:
            self._stopped = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, STEP_SECONDS)
        return left

    def _post(self, queue: deque[Any], item: Any) -> None:
        with self._changed:
            queue.append(item)
            self._changed.notify()

    # The working thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._gone or self._calls or self._open or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    break
                arrived, gone, calls = list(self._arrived), list(self._gone), list(self._calls)
                self._arrived.clear(), self._gone.clear(), self._calls.clear()
            for ticket in arrived:
                self._begin(ticket)
            for ticket in gone:
                self._give_up(ticket)
            for call in calls:
                call()
            if self._open:
                self._step()
        for call in list(self._calls):  # somebody waits for each
            call()
        for ticket in [*self._open, *self._arrived]:
            self._give_up(ticket)
            ticket.tell([Closing("the server stopped before this was finished")])

    def _begin(self, ticket: Ticket) -> None:
        try:
            for i, start in enumerate(ticket.starts):
                ticket.streams[i] = start()
            self._open.add(ticket)
        except Exception as error:
            self._fail(ticket, error)

    def _give_up(self, ticket: Ticket) -> None:
        self._open.discard(ticket)
        for stream in ticket.streams.values():
            stream.generation.cancel()
        ticket.streams.clear()

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        self.counts.n_failed += 1
        self._give_up(ticket)
        ticket.tell([error])

    def _step(self) -> None:
        try:
            self.model.engine.step()
        except Exception as error:  # nobody's in particular: every caller is told, and the desk goes on
            for ticket in list(self._open):
                self._fail(ticket, error)
            return
        for ticket in list(self._open):
            try:
                news = [said for i, stream in list(ticket.streams.items()) if (said := _read(i, stream)) is not None]
            except Exception as error:
                self._fail(ticket, error)
                continue
            for said in news:
                if said.completion is not None:
                    del ticket.streams[said.index]
            if not ticket.streams:
                self._open.discard(ticket)
            if news:
                ticket.tell(news)


def _read(index: int, stream: Stream) -> Said | None:
    """What an output has said since; None where that is nothing."""
    generation = stream.generation
    before, parts = generation.n_taken, stream.ready()
    tokens = generation.scored(before) if generation.request.logprobs else []
    if generation.n_taken == before and not parts and not stream.ended:
        return None
    prompt = generation.prompt_scored() if not before else ()
    return Said(index, generation.n_taken - before, parts, tokens, stream.result if stream.ended else None, prompt)

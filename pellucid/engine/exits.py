"""How sequences leave the engine: done, given up, or with an error that ends them alone."""
from __future__ import annotations

from collections.abc import Iterable

from pellucid.engine.pages import Names
from pellucid.engine.report import Books
from pellucid.engine.scheduler import Scheduler
from pellucid.engine.sequence import Sequence
from pellucid.engine.speculate import Speculation


class Exits:
    """Frees what a sequence held, and writes it down."""

    def __init__(self, books: Books, scheduler: Scheduler, speculation: Speculation | None) -> None:
        self.books, self.scheduler, self.speculation = books, scheduler, speculation

    def leave(self, sequence: Sequence, *, scrub: bool = False) -> None:
        """scrub: what it computed is wiped, but for what others use."""
        self.books.left(sequence)
        self.scheduler.remove(sequence, scrub=scrub)
        sequence.row, sequence.constraint, sequence.names = None, None, Names()  # a result may be kept for long
        if self.speculation is not None:
            self.speculation.forget(sequence)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """It ends alone; what it computed is not used for others."""
        sequence.error = error
        self.leave(sequence, scrub=True)

    def fail_all(self, sequences: Iterable[Sequence], error: Exception) -> None:
        """Those of them that are not done."""
        for sequence in sequences:
            if not sequence.done:
                self.fail(sequence, error)

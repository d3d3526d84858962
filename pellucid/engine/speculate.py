"""Drafts: what may come next, to be checked in one pass with what is computed anyway."""
from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

from pellucid.engine.sequence import Sequence


class Proposer(Protocol):
    """Guesses the ids that follow. A wrong guess costs time and changes nothing else."""

    def propose(self, sequences: Rows[Sequence]) -> list[list[int]]:
        """For each sequence the ids that may follow its own, likeliest first in time; none where guessing does not pay."""
        ...

    def told(self, sequence: Sequence, n_drafted: int, n_right: int) -> None:
        """How many of a sequence's drafts were right."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence is done."""
        ...

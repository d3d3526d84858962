"""A lock that its own holder may take again, and that tells a finalizer whether anybody is at work."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Lock:
    """Held for a step at a time, and for whatever else changes what steps work on."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.RLock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    @contextmanager
    def if_idle(self) -> Iterator[bool]:
        """True, and held, if nobody holds it: neither another thread nor, further up, this one, as where the garbage collector breaks in."""
        taken = self._lock.acquire(blocking=False)
        idle = taken and self._depth == 0
        self._depth += idle
        try:
            yield idle
        finally:
            self._depth -= idle
            if taken:
                self._lock.release()

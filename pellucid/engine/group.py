"""The books of a group's pages: which are free, which are used and by how many, which are kept for whoever begins alike. See engine/pages.py."""
from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

PAGE = 32  # tokens: whole tiles of every matrix unit, and few enough that a conversation's last, partly filled page is cheap to compute again


class Group:
    """Layers that see equally far, and the books of their pages."""

    def __init__(self, layers: Sequence[int], window: int | None, chunk: int | None, bytes_per_page: int) -> None:
        self.layers, self.window, self.chunk, self.bytes_per_page = layers, window, chunk, bytes_per_page
        self.n_pages = 0

    def furnish(self, n_pages: int) -> None:
        """Gives it so many pages, all free."""
        self.n_pages = n_pages
        self.users = [0] * n_pages
        self.names: list[bytes | None] = [None] * n_pages
        self.named: dict[bytes, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self._free = set(range(n_pages))
        self._lowest = list(range(n_pages))  # a heap of all free pages, and of some that are free no more
        self._heaped = [True] * n_pages

    @property
    def n_available(self) -> int:
        return len(self._free) + len(self.idle)

    @property
    def reach(self) -> int | None:
        """Tokens that a row's queries may see at most, by what is kept for them; None = all."""
        return self.window if self.chunk is None else self.chunk

    def first_seen(self, position: int) -> int:
        """The first position that a query here, and every later one, may see; where rows are cut into chunks, where its chunk begins."""
        if self.chunk is not None:
            return position // self.chunk * self.chunk
        return 0 if self.window is None else max(0, position - self.window + 1)

    def pages_of_one(self, step_tokens: int) -> int | None:
        """Pages that one row holds at most, however long it is; None = as many as it is long."""
        return None if self.reach is None else -(-(self.reach + step_tokens) // PAGE) + 2  # parts of pages at both ends

    def take(self, after: int | None) -> int:
        """A page for one user, if possible the one that follows `after`: pages in a row are read without a copy."""
        if after is not None and after + 1 in self._free:
            page = after + 1
        elif self._free:
            page = self._pop()
            while page not in self._free:
                page = self._pop()
        else:
            page, _ = self.idle.popitem(last=False)
            self.forget_name(page)
            self._free.add(page)
        self._free.remove(page)
        self.users[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more user of a page that has a name."""
        self.idle.pop(page, None)
        self.users[page] += 1

    def give_back(self, page: int) -> None:
        """One user less. A named page without users stays for whoever begins alike."""
        self.users[page] -= 1
        if self.users[page] == 0:
            if self.names[page] is None:
                self._add_free(page)
            else:
                self.idle[page] = None

    def name(self, page: int, name: bytes) -> None:
        """Says what a full page holds. Of two pages that hold the same, the first keeps the name."""
        if name not in self.named:
            self.named[name], self.names[page] = page, name

    def forget_idle(self) -> None:
        """All idle pages become free."""
        for page in self.idle:
            self.forget_name(page)
            self._add_free(page)
        self.idle.clear()

    def _add_free(self, page: int) -> None:
        self._free.add(page)
        if not self._heaped[page]:
            heapq.heappush(self._lowest, page)
            self._heaped[page] = True

    def _pop(self) -> int:
        page = heapq.heappop(self._lowest)
        self._heaped[page] = False
        return page

    def forget_name(self, page: int) -> None:
        """Nobody takes this page over any more."""
        name = self.names[page]
        if name is not None:
            del self.named[name]
            self.names[page] = None

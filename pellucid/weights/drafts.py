"""Files that are there whole or not at all: written under another name, hashed as they are written, renamed at the end. No torch here."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import BadRequest, DiskFull

Buffer = bytes | memoryview
Report = Callable[[int], None]  # is told of every so many bytes that were written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: past what the file system, or a limit, lets one file hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One tensor that will be written. `read` gives its bytes in pieces, once, when its turn comes: no more of it need be in memory than a piece.

    type: as the format spells it, such as Q4_K or BF16; shape: of its numbers, columns last; n_bytes: of all pieces.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    read: Callable[[], Iterable[Buffer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A finished file."""

    path: Path
    n_bytes: int
    sha256: str


class Draft:
    """One file under another name: what is written is counted and hashed."""

    def __init__(self, path: Path, report: Report = lambda n: None) -> None:
        self.path, self.n_bytes = path, 0
        self.fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._report, self._digest = report, hashlib.sha256()
        self._file = self.fresh.open("xb")  # not mkstemp's, whose mode is not what the umask says

    def write(self, piece: Buffer) -> None:
        n = memoryview(piece).nbytes
        self._file.write(piece)
        self._digest.update(piece)
        self.n_bytes += n
        self._report(n)

    def write_tensor(self, tensor: Planned) -> None:
        start = self.n_bytes
        for piece in tensor.read():
            self.write(piece)
        assert self.n_bytes - start == tensor.n_bytes, f"{tensor.name}: {self.n_bytes - start} bytes, {tensor.n_bytes} were planned"

    def finish(self) -> Written:
        """Closes the file, its bytes on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Written(path=self.path, n_bytes=self.n_bytes, sha256=self._digest.hexdigest())

    def place(self) -> None:
        os.replace(self.fresh, self.path)

    def discard(self) -> None:
        """Forgets what was not placed."""
        self._file.close()
        self.fresh.unlink(missing_ok=True)


def write_all(paths: Sequence[Path], fill: Callable[[int, Draft], None], *, needed: int, overwrite: bool = False,
              report: Report = lambda n: None) -> tuple[Written, ...]:
    """Writes files that belong together; none is there under its name before all are whole.

    fill: writes file i into its draft. needed: bytes of all of them, which the disk is asked for first.
    Raises BadRequest where one is there and `overwrite` is not asked for, or no folder is there for it; DiskFull before the first byte, or when the
    disk fills up on the way: what was there before is still there.
    """
    for path in paths:
        check_free(path, overwrite)
    drafts: list[Draft] = []
    with room(paths[0].parent, needed):
        try:
            written = []
            for i, path in enumerate(paths):
                drafts.append(Draft(path, report))
                fill(i, drafts[-1])
                written.append(drafts[-1].finish())
            for draft in drafts:
                draft.place()
        finally:
            for draft in drafts:
                draft.discard()
    return tuple(written)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises BadRequest where a file may not be written to this path."""
    if not path.parent.is_dir():
        raise BadRequest(f"there is no folder {path.parent} to write {path.name} to. Make it first", field="out")
    if os.path.lexists(path) and not path.is_file():
        raise BadRequest(f"{path} is there and is no regular file; it stays what it is. Give another name", field="out")
    if path.exists() and not overwrite:
        raise BadRequest(f"{path} is there, and nothing was written. Give another name, or --force to replace it", field="out")


@contextlib.contextmanager
def room(folder: Path, needed: int) -> Iterator[None]:
    """Asks for room on the disk first; a disk that fills up inside is DiskFull too."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _full(folder, needed, free, "Nothing was written")
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(folder, needed, shutil.disk_usage(folder).free, f"It did not fit while it was written ({error.strerror}), and was taken away again") \
            from None


def _full(folder: Path, needed: int, free: int, told: str) -> DiskFull:
    return DiskFull(f"{needed / 1e9:.2f} GB ({needed:,} bytes) are to be written, and {free / 1e9:.2f} GB ({free:,} bytes) are free in {folder}. {told}: "
                    f"make room, or write to another disk.", needed_bytes=needed, free_bytes=free)

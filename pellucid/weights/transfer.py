"""One file of a repository -> a verified blob on this disk; several of them at a time. No torch.

huggingface_hub 2.x throws a partial file away when a download stops, so the bytes are moved here: a partial file keeps the name
`<hash>.incomplete`, a later attempt asks for the rest with a Range request, and the hash over what lies on the disk decides at the end.
"""
from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

from pellucid.errors import HubError

Report = Callable[[int], None]  # bytes that arrived, from several threads; negative where an attempt starts over
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds before each new attempt; the count starts over when bytes arrive
N_WORKERS = 4
_CHUNK = 1 << 20
_TIMEOUT = httpx2.Timeout(10.0, read=30.0)
_WORTH_ANOTHER_TRY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository at one commit. git_id is git's blob hash (SHA-1); sha256 is known for files in large-file storage."""

    path: str
    n_bytes: int
    git_id: str
    sha256: str | None = None

    @property
    def blob(self) -> str:
        """The blob's file name in the cache, which is also the hash that its bytes must have."""
        return self.sha256 or self.git_id


class _Stopped(Exception):
    """Another file failed, or the user interrupted."""


def is_whole(file: RemoteFile, path: Path) -> bool:
    """Whether the bytes at `path` have this file's size and hash."""
    return path.is_file() and path.stat().st_size == file.n_bytes and _digest(file, path) == file.blob


def _digest(file: RemoteFile, path: Path) -> str:
    git_header = b"blob %d\0" % file.n_bytes  # git hashes it before the bytes
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(git_header, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_all(files: Sequence[RemoteFile], url: Callable[[RemoteFile], str], blobs: Path, headers: Mapping[str, str], *, report: Report,
              waits: Sequence[float] = WAITS) -> None:
    """Bring every file into `blobs`, a few at a time; the first failure stops the rest and is raised.

    No two files may share a blob: two threads would write one partial file. Partial files stay for the next attempt, after a failure
    and after Ctrl-C alike.
    """
    todo: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for file in files:
        todo.put(file)

    def work() -> None:
        while not stop.is_set():
            try:
                file = todo.get_nowait()
            except queue.Empty:
                return
            try:
                fetch(file, url(file), blobs, headers, report=report, waits=waits, stop=stop)
                done.put(None)
            except BaseException as error:
                done.put(error)

    # Daemons: a thread that waits 30 s for a dead server must not keep an interrupted program alive.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(N_WORKERS, len(files)))]
    for worker in workers:
        worker.start()
    try:
        for _ in files:
            error = done.get()
            if error is not None:
                raise error
    finally:
        stop.set()
        for worker in workers:
            worker.join(timeout=1.0)


def fetch(file: RemoteFile, url: str, blobs: Path, headers: Mapping[str, str], *, report: Report = lambda n: None,
          waits: Sequence[float] = WAITS, stop: threading.Event | None = None) -> Path:
    """Bring one file into `blobs`, going on from a partial one; the path of the blob.

    A dropped connection is tried again after `waits`. Bytes of an earlier attempt that turn out wrong are fetched once more, whole.
    Raises HubError for a connection that stays down or a hash that is wrong, HfHubHTTPError for a refusal, OSError for a full disk.
    """
    stop = stop or threading.Event()
    blob, part = blobs / file.blob, blobs / f"{file.blob}.incomplete"
    resumed = _n_bytes(part) > 0
    while True:
        _complete(file, url, part, headers, report, waits, stop)
        if is_whole(file, part):
            os.replace(part, blob)
            return blob
        found, size = _digest(file, part), _n_bytes(part)
        part.unlink()
        if not resumed:
            raise HubError(f"{file.path} arrived corrupt and was deleted: {size} bytes with hash {found}, expected {file.n_bytes} bytes "
                           f"with {file.blob}. Run the same command again; a proxy that rewrites downloads would explain it")
        report(-size)
        resumed = False


def _complete(file: RemoteFile, url: str, part: Path, headers: Mapping[str, str], report: Report, waits: Sequence[float],
              stop: threading.Event) -> None:
    """Append to `part` until it has the file's size."""
    n_failed, pause = 0, 0.0
    part.touch()
    while (start := _n_bytes(part)) < file.n_bytes:
        try:
            _append(file, url, part, start, headers, report, stop)
            failure = "the connection closed early"
        except httpx2.TransportError as error:
            failure = str(error) or type(error).__name__
        except HfHubHTTPError as error:
            if error.response.status_code not in _WORTH_ANOTHER_TRY:
                raise
            failure, pause = f"the hub answered {error.response.status_code}", _asked_to_wait(error)
        arrived = _n_bytes(part)
        if arrived >= file.n_bytes:
            return
        n_failed = 0 if arrived > start and waits else n_failed + 1
        if n_failed > len(waits):
            raise HubError(f"{file.path}: {failure} after {arrived} of {file.n_bytes} bytes. What arrived is kept: "
                           "run the same command again to go on from there")
        if stop.wait(max(pause, waits[max(n_failed - 1, 0)])):
            raise _Stopped
        pause = 0.0


def _asked_to_wait(error: HfHubHTTPError) -> float:
    """Seconds a busy hub asks for, up to five minutes; 0 where it asks for none."""
    asked = str(error.response.headers.get("Retry-After", ""))
    return min(float(asked), 300.0) if asked.isdecimal() else 0.0


def _append(file: RemoteFile, url: str, part: Path, start: int, headers: Mapping[str, str], report: Report, stop: threading.Event) -> None:
    """Ask for the bytes from `start` on and append what arrives. A server that sends the whole file instead starts the part over."""
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT) as response, part.open("ab", buffering=0) as out:
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            out.truncate(0)
            report(-start)
        elif start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise HubError(f"{file.path}: asked for the bytes from {start} on, the hub sent {response.headers.get('Content-Range')!r}")
        for chunk in response.iter_bytes():  # as they arrive: a larger size here would hold bytes back, and lose them with the connection
            if stop.is_set():
                raise _Stopped
            _write(out.fileno(), chunk)
            report(len(chunk))
            if out.tell() > file.n_bytes:  # a server without end must not fill the disk; the hash says the rest
                return


def _write(fd: int, chunk: bytes) -> None:
    """All of `chunk`: on a disk that fills up, one write may take only the first part, and the next one says why."""
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view):]


def _n_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

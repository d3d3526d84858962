"""Models on this disk: a name -> its folder, what is here, deleting it. No network and no torch.

Downloads lie in the cache of huggingface_hub, so that other programs share them:

    <cache>/models--owner--name/blobs/<sha256 or git id>     the bytes; `<...>.incomplete` while a download is under way
                                snapshots/<commit>/<file>    links to blobs, made only when every file of a pull is whole and verified
                                refs/<branch or tag>         the commit it meant when it was last pulled
                                pellucid/<commit>.json       what Pellucid pulled: revision, commit, size and hash of every file
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.errors import BadRequest, HubError, ModelNotFound, did_you_mean, nearest

SHIPPED = "shipped"
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^@\s]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """One revision of one repository on this disk, or the shipped model (repo "shipped", no commit).

    n_bytes counts every file of this revision, though two revisions may share some. last_used is seconds since 1970, by the file system's
    access times. verified: Pellucid pulled it and checked every hash; otherwise another program did. interrupted: a pull that stopped.
    """

    repo: str
    commit: str | None
    revisions: tuple[str, ...]
    n_bytes: int
    path: Path
    last_used: float
    verified: bool
    interrupted: bool = False


def cache_folder() -> Path:
    """Where huggingface_hub keeps downloads: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE).expanduser()


def storage(repo: str, cache: Path) -> Path:
    return cache / f"{'' if is_dataset(repo) else 'models--'}{repo.replace('/', '--')}"


def is_dataset(name: str) -> bool:
    """Whether the name is that of a data set: datasets/owner/name."""
    return name.startswith("datasets/") and name.partition("@")[0].count("/") == 2


def parse(name: str) -> tuple[str, str | None] | None:
    """`owner/name[@revision]` -> (repository, revision); None for anything else."""
    match = _NAME.fullmatch(name)
    if match is None or {".", ".."} & set(match["repo"].split("/")):
        return None
    return match["repo"], match["revision"]


def resolve(name: str | os.PathLike[str], *, cache: Path | None = None) -> Path:
    """The folder or file a model's name means here: an existing path, "shipped", or a downloaded `owner/name[@revision]`.

    A repository that holds a single GGUF file and no config.json resolves to that file. Never downloads.
    Raises ModelNotFound with the nearest names, or with the `pellucid pull` to type; BadRequest for a repository of several GGUF files.
    """
    path = Path(name).expanduser()
    if os.fspath(name) and path.exists():  # Path("") would be the current folder
        return path
    if str(name) == SHIPPED:
        return shipped_folder()
    cache = cache or cache_folder()
    parsed = parse(os.fspath(name))
    if parsed is None:
        raise _no_path(os.fspath(name), path, cache)
    snapshot = find(*parsed, cache=cache)
    if snapshot is None:
        raise _not_here(path, *parsed, cache)
    return _model_in(snapshot, parsed[0])


def find(repo: str, revision: str | None, *, cache: Path) -> Path | None:
    """The snapshot folder of a downloaded revision (branch, tag, commit or its first 7 letters or more); None where there is none.

    Without a revision: `main`, or the only revision there is.
    """
    folder = storage(repo, cache) / "snapshots"
    commits = [entry.name for entry in folder.iterdir() if COMMIT.fullmatch(entry.name)] if folder.is_dir() else []
    commit = commit_of(repo, revision or "main", cache)
    if commit is None and revision is None and len(commits) == 1:
        return folder / commits[0]
    if commit is None and revision and len(revision) >= 7:
        starting = [known for known in commits if known.startswith(revision)]
        commit = starting[0] if len(starting) == 1 else None
    return folder / commit if commit in commits else None


def commit_of(repo: str, revision: str, cache: Path) -> str | None:
    """The commit a branch or tag meant when it was last pulled; a full commit is itself."""
    if COMMIT.fullmatch(revision):
        return revision
    refs = storage(repo, cache) / "refs"
    ref = refs / revision
    if refs.resolve() not in ref.resolve().parents or not ref.is_file():
        return None
    return ref.read_text(encoding="utf-8").strip()


def _model_in(snapshot: Path, repo: str) -> Path:
    packed = sorted(snapshot.rglob("*.gguf"))
    if not packed or (snapshot / "config.json").exists():
        return snapshot
    if len(packed) > 1:
        raise BadRequest(f"{repo!r} holds {len(packed)} GGUF files here; name one by its path: {', '.join(map(str, packed))}", "model")
    return packed[0]


def shipped_folder() -> Path:
    """Where the model of the package lies, whatever is called like it elsewhere. Raises ModelNotFound where this installation carries none."""
    folder = Path(__file__).resolve().parents[1] / SHIPPED
    if not (folder / "config.json").exists():
        raise ModelNotFound(f"no shipped model in this installation: {folder} has no config.json. Install Pellucid again, or name a model")
    return folder


def _no_path(name: str, path: Path, cache: Path) -> ModelNotFound:
    near = _near(path, name, local_repos(cache))
    return ModelNotFound(f"no such path: {name!r}.{did_you_mean(near)} A model is a folder, a file, or a repository owner/name", near)


def _not_here(path: Path, repo: str, revision: str | None, cache: Path) -> ModelNotFound:
    name = f"{repo}@{revision}" if revision else repo
    near = _near(path, repo, (known for known in local_repos(cache) if known != repo))
    if any(_partial(storage(repo, cache))):
        return ModelNotFound(f"the download of {repo!r} stopped before it was whole. Go on with: pellucid pull {name}", near)
    have = "" if revision is None else _revisions_here(repo, cache)
    return ModelNotFound(f"{name!r} is not on this disk, neither as a path nor as a download{have}.{did_you_mean(near)} "
                         f"Try: pellucid pull {name}", near)


def _near(path: Path, name: str, repos: Iterable[str]) -> tuple[str, ...]:
    """The nearest neighbours of a path that is not there, and the nearest downloads."""
    beside = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ()
    return (*(str(path.parent / entry) for entry in beside), *nearest(name, repos))[:3]


def _revisions_here(repo: str, cache: Path) -> str:
    here = sorted({ref for model in _of(repo, cache) for ref in (*model.revisions, (model.commit or "")[:12]) if ref})
    return f" (here of {repo}: {', '.join(here)})" if here else ""


def local_repos(cache: Path) -> list[str]:
    """Names of the repositories in the cache, whole or not."""
    found = sorted(cache.glob("models--*--*")) if cache.is_dir() else []
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in found if folder.is_dir()]


def local_models(cache: Path | None = None) -> list[LocalModel]:
    """Every model revision on this disk, last used first: downloads, and downloads that were interrupted."""
    cache = cache or cache_folder()
    models = [model for repo in local_repos(cache) for model in _of(repo, cache)]
    return sorted(models, key=lambda model: -model.last_used)


def shipped_model() -> LocalModel | None:
    """The model in the package, where this installation carries one."""
    try:
        folder = shipped_folder()
    except ModelNotFound:
        return None
    stats = [path.stat() for path in folder.iterdir() if path.is_file()]
    return LocalModel(repo=SHIPPED, commit=None, revisions=(), n_bytes=sum(stat.st_size for stat in stats), path=folder,
                      last_used=max(stat.st_atime for stat in stats), verified=False)


def _of(repo: str, cache: Path) -> list[LocalModel]:
    folder = storage(repo, cache)
    refs: dict[str, list[str]] = {}
    for ref in sorted((folder / "refs").rglob("*")):
        if ref.is_file():
            refs.setdefault(ref.read_text(encoding="utf-8").strip(), []).append(ref.relative_to(folder / "refs").as_posix())
    out = []
    for snapshot in sorted((folder / "snapshots").glob("*")):
        stats = [os.stat(blob) for blob in {path.resolve() for path in snapshot.rglob("*") if path.is_file()}]
        if stats:
            out.append(LocalModel(
                repo=repo, commit=snapshot.name, revisions=tuple(refs.get(snapshot.name, ())), n_bytes=sum(stat.st_size for stat in stats),
                path=snapshot, last_used=max(max(stat.st_atime, stat.st_mtime) for stat in stats),
                verified=record_path(repo, snapshot.name, cache).exists()))
    partial = [path.stat() for path in _partial(folder)]
    if partial:
        out.append(LocalModel(repo=repo, commit=None, revisions=(), n_bytes=sum(stat.st_size for stat in partial), path=folder / "blobs",
                              last_used=max(stat.st_mtime for stat in partial), verified=False, interrupted=True))
    return out


def _partial(folder: Path) -> Iterator[Path]:
    return (folder / "blobs").glob("*.incomplete")


def held_bytes(repo: str, revision: str | None = None, *, cache: Path | None = None) -> int:
    """What `remove` would delete, files that other revisions share included. Raises ModelNotFound for what is not here."""
    cache = cache or cache_folder()
    snapshot = find(repo, revision, cache=cache) if revision else None
    if not storage(repo, cache).is_dir() or (revision and snapshot is None):
        raise _not_to_remove(repo, revision, cache)
    return sum(model.n_bytes for model in _of(repo, cache) if snapshot is None or model.path == snapshot)


def remove(repo: str, revision: str | None = None, *, cache: Path | None = None) -> int:
    """Delete a repository, or one revision of it, from this disk; the bytes that became free.

    Blobs that another revision still uses stay. Raises ModelNotFound for what is not here, HubError while it is being pulled or where
    the file system refuses.
    """
    from huggingface_hub import scan_cache_dir
    cache = cache or cache_folder()
    held_bytes(repo, revision, cache=cache)
    folder = storage(repo, cache)
    with locked(repo, cache):
        snapshot = find(repo, revision, cache=cache) if revision else None
        commits = {path.name for path in (folder / "snapshots").glob("*")}
        whole = snapshot is None or commits <= {snapshot.name}
        # The scan is narrowed to this repository: a commit may also lie in a fork, and huggingface_hub deletes the first it meets.
        scan = scan_cache_dir(cache)
        here = frozenset(each for each in scan.repos if each.repo_path.resolve() == folder.resolve())
        left = folder if whole or snapshot is None else snapshot
        if here:
            freed = sum(path.stat().st_size for path in _partial(folder)) if whole else 0
            strategy = dataclasses.replace(scan, repos=here).delete_revisions(*(commits if whole or snapshot is None else {snapshot.name}))
            freed += strategy.expected_freed_size
            with _quiet("huggingface_hub.utils._cache_manager"):  # it logs what it could not delete; we raise it
                strategy.execute()
        else:  # nothing whole in it, or corrupt in huggingface_hub's eyes
            freed = sum(path.lstat().st_size for path in left.rglob("*") if not path.is_dir())
        if left.exists():
            shutil.rmtree(left, onerror=_refused)
        if snapshot is not None:
            record_path(repo, snapshot.name, cache).unlink(missing_ok=True)
        return freed


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    before, logging.getLogger(logger).disabled = logging.getLogger(logger).disabled, True
    try:
        yield
    finally:
        logging.getLogger(logger).disabled = before


def _refused(_: Any, path: str, error: Any) -> None:
    raise HubError(f"could not delete {path}: {error[1].strerror or error[1]}. Look at its permissions") from error[1]


def _not_to_remove(repo: str, revision: str | None, cache: Path) -> ModelNotFound:
    name = f"{repo}@{revision}" if revision else repo
    near = nearest(repo, local_repos(cache))
    have = _revisions_here(repo, cache) if revision else did_you_mean(near)
    return ModelNotFound(f"nothing to delete: {name!r} is not on this disk.{have}   (pellucid models --local)", near)


@contextlib.contextmanager
def locked(repo: str, cache: Path) -> Iterator[None]:
    """One pull or removal of a repository at a time, over processes. Raises HubError at once where another one is under way."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
    path = cache / ".locks" / storage(repo, cache).name / "pellucid.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=0.5))
        except TimeoutError as error:
            raise HubError(f"another pull or removal of {repo!r} is under way (it holds {path}). Wait for it, or stop it") from error
        yield


def record_path(repo: str, commit: str, cache: Path) -> Path:
    return storage(repo, cache) / "pellucid" / f"{commit}.json"


def read_record(repo: str, commit: str, cache: Path) -> dict[str, Any] | None:
    """What Pellucid wrote when it pulled this commit; None where it did not."""
    try:
        record: dict[str, Any] = json.loads(record_path(repo, commit, cache).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise HubError(f"{record_path(repo, commit, cache)} is not JSON ({error}). Delete it and run: pellucid pull {repo}") from error
    return record


def write_record(repo: str, commit: str, record: dict[str, Any], cache: Path) -> None:
    path = record_path(repo, commit, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never half."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)

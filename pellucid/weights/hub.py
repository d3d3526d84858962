"""Repositories of the Hugging Face hub -> this disk: pinned to a commit, only what is needed, resumed, verified. No torch.

    planned = plan("owner/name")          what a pull would bring, without bringing it
    pulled = pull("owner/name@v1.0")      bring it; pulled.path is a folder that `pellucid.load` reads

What is already here (`resolve`, `local_models`, `remove`) lives in hub_cache.py.
"""
from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pellucid import __version__
from pellucid.errors import BadRequest, DiskFull, GatedRepository, HubError, ModelNotFound, NotCached, PellucidError, did_you_mean, nearest
from pellucid.weights import hub_cache
from pellucid.weights.hub_cache import LocalModel, local_models, remove, resolve

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from pellucid.weights.transfer import RemoteFile, Report

__all__ = ["LocalModel", "Plan", "Pulled", "local_models", "plan", "pull", "remove", "resolve"]

DATASETS = "datasets/"  # datasets/owner/name is a data set, here and in the addresses of the hub
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")  # a whole file wins over shards: some repositories hold both
_PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a name in the cache: nothing a server sends becomes a path unchecked
FreeBytes = Callable[[Path], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pull brings: `revision` meant `commit` when the hub was asked; `left_out` are the files of the repository nobody needs."""

    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]
    cache: Path = field(repr=False)
    endpoint: str = field(repr=False)
    license: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes on the disk afterwards; files of equal content count once."""
        return sum({file.blob: file.n_bytes for file in self.files}.values())

    @property
    def path(self) -> Path:
        return self.storage / "snapshots" / self.commit

    @property
    def storage(self) -> Path:
        return hub_cache.storage(self.repo, self.cache)

    @property
    def missing(self) -> tuple[RemoteFile, ...]:
        """The files whose bytes are not here whole, one for each blob: files of equal content share theirs.

        A blob of the right size was verified when it was moved to its name.
        """
        blobs = {file.blob: file for file in self.files}
        return tuple(file for file in blobs.values() if not _is_blob(self.storage / "blobs" / file.blob, file.n_bytes))

    @property
    def missing_bytes(self) -> int:
        """Bytes still to come: what an interrupted pull left is not counted again."""
        parts = (self.storage / "blobs" / f"{file.blob}.incomplete" for file in self.missing)
        return sum(file.n_bytes for file in self.missing) - sum(part.stat().st_size for part in parts if part.exists())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A repository at one commit on this disk. downloaded_bytes counts this pull alone; seconds too."""

    repo: str
    revision: str
    commit: str
    path: Path
    n_bytes: int
    downloaded_bytes: int
    seconds: float
    files: tuple[str, ...]
    license: str | None = None


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds `folder`, or would hold it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def plan(name: str, *, revision: str | None = None, files: Sequence[str] = (), everything: bool = False, cache: Path | None = None,
         endpoint: str | None = None) -> Plan:
    """Ask the hub what `owner/name[@revision]` is and choose what to bring.

    files: patterns; exactly the files that match. everything: the whole repository. Otherwise configuration, tokenizer, license and one
    copy of the weights: safetensors before .bin, nothing in folders, no other frameworks' formats.
    Raises ModelNotFound (repository or revision, with the nearest), BadRequest (no choice possible), HubError and its kinds.
    """
    from huggingface_hub import HfApi, constants
    repo, revision = _named(name, revision)
    cache, endpoint = cache or hub_cache.cache_folder(), endpoint or constants.ENDPOINT
    api = HfApi(endpoint=endpoint, library_name="pellucid", library_version=__version__)
    revision = revision or constants.DEFAULT_REVISION
    with _in_words(repo, revision, api, cache):
        ask, bare = (api.dataset_info, repo.removeprefix(DATASETS)) if hub_cache.is_dataset(repo) else (api.model_info, repo)
        info = ask(bare, revision=revision, files_metadata=True, timeout=10)
    listed = [_remote_file(sibling, repo) for sibling in info.siblings or ()]
    if not hub_cache.COMMIT.fullmatch(info.sha or ""):
        raise HubError(f"{endpoint} names no commit for {repo}@{revision}: {info.sha!r}. Is it a Hugging Face hub?")
    wanted = _matching(listed, files, repo) if files else listed if everything else _needed(listed, repo)
    chosen = {file.path for file in wanted}
    stated = info.card_data.get("license") if info.card_data else None
    license = " AND ".join(map(str, stated)) if isinstance(stated, list) else stated  # a card may list several
    return Plan(repo=repo, revision=revision, commit=info.sha or "", files=tuple(wanted), cache=cache, endpoint=endpoint, license=license,
                left_out=tuple(file.path for file in listed if file.path not in chosen))


def pull(name: str, *, revision: str | None = None, files: Sequence[str] = (), everything: bool = False, offline: bool = False,
         verify: bool = False, cache: Path | None = None, endpoint: str | None = None, waits: Sequence[float] | None = None,
         free: FreeBytes = free_bytes, started: Callable[[Plan], None] = lambda planned: None, report: Report = lambda n: None) -> Pulled:
    """Bring `owner/name[@revision]` to this disk and verify it; see `plan` for what is chosen.

    offline (or HF_HUB_OFFLINE): only what is already here. verify: hash what earlier pulls brought, too, and bring the broken again.
    started: called once with the plan; report: called with the bytes that arrive. waits: seconds between attempts.
    Raises what `plan` raises; DiskFull before the first byte or when the disk fills up; HubError when the hub stops or sends wrong bytes.
    Whatever stops it, no file is visible in the snapshot before all are whole, and the next pull goes on where this one stopped.
    """
    from huggingface_hub import constants
    began = time.monotonic()
    if offline or constants.is_offline_mode():
        return _already_here(*_named(name, revision), cache or hub_cache.cache_folder(), began)
    planned = plan(name, revision=revision, files=files, everything=everything, cache=cache, endpoint=endpoint)
    with hub_cache.locked(planned.repo, planned.cache):
        if verify:
            _drop_broken(planned)
        missing, n_missing = planned.missing, planned.missing_bytes
        if n_missing > free(planned.storage):
            raise _disk_full(planned, n_missing, free(planned.storage))
        started(planned)
        _bring(planned, missing, waits, free, report)
        _publish(planned)
    return Pulled(repo=planned.repo, revision=planned.revision, commit=planned.commit, path=planned.path, n_bytes=planned.n_bytes,
                  downloaded_bytes=n_missing, seconds=time.monotonic() - began, files=tuple(file.path for file in planned.files),
                  license=planned.license)


def _named(name: str, revision: str | None) -> tuple[str, str | None]:
    prefix = DATASETS if hub_cache.is_dataset(name) else ""
    parsed = hub_cache.parse(name.removeprefix(prefix))
    if parsed is None:
        raise BadRequest(f"{name!r} is not a repository: expected owner/name or owner/name@revision", "model")
    if revision and parsed[1] and revision != parsed[1]:
        raise BadRequest(f"two revisions: {name!r} and {revision!r}. Give one", "revision")
    return prefix + parsed[0], revision or parsed[1]


def _remote_file(sibling: Any, repo: str) -> RemoteFile:
    """One entry of the hub's listing, checked: its path and its hashes become paths on this disk."""
    from pellucid.weights.transfer import RemoteFile
    path, parts = sibling.rfilename, PurePosixPath(sibling.rfilename).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or "\0" in path or str(PurePosixPath(path)) != path:
        raise HubError(f"{repo} lists a file with an unsafe path: {path!r}. Nothing was downloaded")
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if sibling.size is None or not _HASH.fullmatch(sibling.blob_id or "") or not _HASH.fullmatch(sha256 or sibling.blob_id):
        raise HubError(f"{repo} lists {path!r} without a size or a hash to check it by ({sibling.size}, {sibling.blob_id!r}, {sha256!r})")
    return RemoteFile(path=path, n_bytes=sibling.size, git_id=sibling.blob_id, sha256=sha256)


def _needed(listed: Sequence[RemoteFile], repo: str) -> list[RemoteFile]:
    """Configuration, tokenizer, license, and one copy of the weights."""
    top = [file for file in listed if "/" not in file.path]
    packed = [file for file in listed if file.path.endswith(".gguf")]
    for pattern in (*_SAFETENSORS, *_PICKLES):
        weights = [file for file in top if fnmatch.fnmatchcase(file.path, pattern)]
        if weights:
            break
    else:
        if len(packed) != 1:
            raise _no_weights(repo, packed, listed)
        weights = packed
    index = {"model.safetensors.index.json", "pytorch_model.bin.index.json"}
    if len(weights) > 1:  # shards need their index, and only theirs
        index.discard("pytorch_model.bin.index.json" if weights[0].path.endswith(".bin") else "model.safetensors.index.json")
    small = [file for file in top if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in _SMALL) and file.path not in index]
    return [*small, *weights]


def _no_weights(repo: str, packed: Sequence[RemoteFile], listed: Sequence[RemoteFile]) -> BadRequest:
    if packed:
        sizes = ", ".join(f"{file.path} ({file.n_bytes / 1e9:.1f} GB)" for file in packed)
        return BadRequest(f"{repo} holds {len(packed)} GGUF files; choose with --file: {sizes}", "file")
    names = ", ".join(file.path for file in listed[:12]) or "nothing"
    return BadRequest(f"{repo} holds no weights that Pellucid reads (safetensors, pytorch_model.bin, GGUF); it holds {names}. "
                      "--all or --file brings files regardless", "model")


def _matching(listed: Sequence[RemoteFile], patterns: Sequence[str], repo: str) -> list[RemoteFile]:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in listed):
            near = nearest(pattern, [file.path for file in listed])
            raise BadRequest(f"no file of {repo} matches {pattern!r}.{did_you_mean(near)}", "file")
    return [file for file in listed if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in patterns)]


def _is_blob(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _drop_broken(planned: Plan) -> None:
    from pellucid.weights.transfer import is_whole
    for file in planned.files:
        blob = planned.storage / "blobs" / file.blob
        if blob.exists() and not is_whole(file, blob):
            blob.unlink()


def _bring(planned: Plan, missing: Sequence[RemoteFile], waits: Sequence[float] | None, free: FreeBytes, report: Report) -> None:
    """Every missing blob, verified."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    from pellucid.weights import transfer
    blobs = planned.storage / "blobs"
    api = HfApi(endpoint=planned.endpoint)

    def url(file: RemoteFile) -> str:
        return f"{planned.endpoint}/{planned.repo}/resolve/{planned.commit}/{urllib.parse.quote(file.path)}"

    headers = build_hf_headers(library_name="pellucid", library_version=__version__)
    try:
        with _in_words(planned.repo, planned.revision, api, planned.cache):
            blobs.mkdir(parents=True, exist_ok=True)
            transfer.fetch_all(missing, url, blobs, headers, report=report, waits=transfer.WAITS if waits is None else waits)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(planned, planned.missing_bytes, free(planned.storage)) from error
        raise


def _publish(planned: Plan) -> None:
    """Make the whole, verified files visible: links, then the revision's name, then the record. Cheap, so nearly at one stroke."""
    for file in planned.files:
        link = planned.path / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(planned.storage / "blobs" / file.blob, link)
    if planned.revision != planned.commit:
        ref = planned.storage / "refs" / planned.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        hub_cache.write_whole(ref, planned.commit)
    before = hub_cache.read_record(planned.repo, planned.commit, planned.cache) or {"files": {}}
    files = {file.path: {key: value for key, value in asdict(file).items() if key != "path" and value} for file in planned.files}
    hub_cache.write_record(planned.repo, planned.commit, {
        "repo": planned.repo, "revision": planned.revision, "commit": planned.commit, "endpoint": planned.endpoint,
        "license": planned.license, "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "pellucid": __version__,
        "files": {**before["files"], **files},
    }, planned.cache)


def _link(blob: Path, link: Path) -> None:
    """A relative link to the blob; a copy where the file system knows no links."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        fresh.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, fresh)
    os.replace(fresh, link)


def _already_here(repo: str, revision: str | None, cache: Path, began: float) -> Pulled:
    path = hub_cache.find(repo, revision, cache=cache)
    name = f"{repo}@{revision}" if revision else repo
    if path is None:
        raise NotCached(f"offline, and {name!r} is not on this disk (looked in {cache}). "
                        "Go online and run the same command without --offline and HF_HUB_OFFLINE; what is here: pellucid models --local")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    record = hub_cache.read_record(repo, path.name, cache) or {}
    return Pulled(repo=repo, revision=revision or record.get("revision") or "main", commit=path.name, path=path, downloaded_bytes=0,
                  n_bytes=sum(file.stat().st_size for file in files), seconds=time.monotonic() - began,
                  files=tuple(file.relative_to(path).as_posix() for file in files), license=record.get("license"))


def _disk_full(planned: Plan, needed: int, free: int) -> DiskFull:
    return DiskFull(f"{planned.repo} needs {needed / 1e9:.2f} GB more ({needed} bytes), {free / 1e9:.2f} GB ({free} bytes) are free in "
                    f"{planned.cache}. Make room (pellucid models --local, pellucid rm MODEL) or set HF_HUB_CACHE to another disk; "
                    "what arrived so far is kept and the next pull goes on from there", needed_bytes=needed, free_bytes=free)


@contextlib.contextmanager
def _in_words(repo: str, revision: str, api: HfApi, cache: Path) -> Iterator[None]:
    """huggingface_hub's and the network's exceptions as ours."""
    import httpx2
    from huggingface_hub import errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise _gated(repo, api.endpoint) from error
    except errors.RepositoryNotFoundError as error:
        raise _no_repository(repo, api, cache) from error
    except errors.RevisionNotFoundError as error:
        raise _no_revision(repo, revision, api) from error
    except errors.OfflineModeIsEnabled as error:
        raise NotCached(f"offline, and {repo} is not whole on this disk. Unset HF_HUB_OFFLINE and run the same command again") from error
    except errors.HFValidationError as error:
        raise BadRequest(f"{repo!r} cannot be a repository's name: {error}", "model") from error
    except errors.HfHubHTTPError as error:
        raise HubError(_refusal(repo, error)) from error
    except httpx2.HTTPError as error:
        here = hub_cache.find(repo, revision, cache=cache)
        have = f"; the copy on this disk still works (pellucid show {repo})" if here else "; models that are on this disk still work"
        raise HubError(f"cannot reach {api.endpoint}: {str(error) or type(error).__name__}. Look at the network, the proxy and HF_ENDPOINT"
                       f"{have}") from error


def _gated(repo: str, endpoint: str) -> GatedRepository:
    from huggingface_hub import get_token
    login = ("then run the same command again; the token that is set has no access yet, or its scope leaves out gated repositories"
             if get_token() else "log in with `hf auth login` (or set HF_TOKEN), then run the same command again")
    return GatedRepository(f"{repo} is gated: its owner wants a login and an accepted license. Accept it at {endpoint}/{repo}, {login}")


def _no_repository(repo: str, api: HfApi, cache: Path) -> ModelNotFound:
    near = nearest(repo, [*hub_cache.local_repos(cache), *_search(repo, api)])
    from huggingface_hub import get_token
    private = "or it is private to another account" if get_token() else "or it is private: then log in with `hf auth login`"
    return ModelNotFound(f"{api.endpoint} knows no repository {repo!r}, {private}.{did_you_mean(near)}", near)


def _search(repo: str, api: HfApi) -> list[str]:
    """Names on the hub like this one. Only for a suggestion: where the search fails there is none, and the error itself is unchanged."""
    try:
        ask, prefix = (api.list_datasets, DATASETS) if hub_cache.is_dataset(repo) else (api.list_models, "")
        return [prefix + found.id for found in ask(search=repo.rsplit("/", 1)[-1], limit=20)]
    except Exception:
        return []


def _no_revision(repo: str, revision: str, api: HfApi) -> PellucidError:
    try:
        refs = api.list_repo_refs(repo.removeprefix(DATASETS), repo_type="dataset") if hub_cache.is_dataset(repo) else api.list_repo_refs(repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:  # only for a suggestion
        names = []
    near = nearest(revision, names)
    have = f" It has {', '.join(names[:8])}." if names else ""
    return ModelNotFound(f"{repo} has no revision {revision!r}.{have}{did_you_mean(near)}", near)


def _refusal(repo: str, error: Any) -> str:
    status, said = error.response.status_code, "; ".join((error.server_message or "").split("\n"))
    advice = {401: "The token is not accepted: log in again with `hf auth login`, or unset HF_TOKEN",
              403: "This account may not read it: ask its owner, or use another token", 429: "Too many requests: wait a few minutes",
              404: "A file that its listing names is not there: run the same command again"}
    told = advice.get(status, "The hub has a problem: run the same command again later")
    return f"{error.response.request.url.host} refused {repo} with {status}{f' ({said})' if said else ''}. {told}"

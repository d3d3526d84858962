"""A computed prefix in a file, so that a long prompt is paid for once: one safetensors file, checked when it is read.

    blocks.{layer}.kept.{i}    the i-th thing a layer keeps, such as keys: whole pages of the cache as they are (P, N, K, C); of a window only
                               what a continuation sees
    __metadata__               what the pages are of: the model, the ids, the cache's numbers, and a hash of all the tensors
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid import __version__
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE, Group
from pellucid.engine.pages import PagedCache, chain
from pellucid.engine.request import Request, Sampling, check_vocabulary, token_ids
from pellucid.errors import BadCheckpoint, BadRequest, MisshapenTensor, OutOfMemoryBudget
from pellucid.model.report import size
from pellucid.weights.header import read_header
from pellucid.weights.safetensors import SafetensorsFile, write

FORMAT = "saved prompt 1"  # a reader refuses one it does not know
_FACTS = ("model_sha256", "spec_sha256", "computed", "cache", "page", "turns", "ids", "name", "tensors_sha256", "version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a file holds of a prompt."""

    ids: tuple[int, ...]  # whole pages of them
    n_left: int  # ids of the prompt past them, which are computed again
    n_bytes: int


def save_prefix(engine: Engine, ids: Sequence[int], file: str | os.PathLike[str], *, model_sha256: str) -> Saved:
    """Writes what the model computes of these ids, all of it or nothing; computes it first where the cache does not have it.

    Whole pages of PAGE tokens are kept. model_sha256: of whatever decides what is computed: the files, adapters, how weights are packed.
    Raises BadRequest for fewer ids than a page, a model that computes them anew at every length, or a place that cannot be written to;
    PromptTooLong; OutOfMemoryBudget where others need the pages at once.
    """
    place, ids = _place(file), token_ids(ids, "ids")
    n = len(ids) // PAGE
    if n == 0:
        raise BadRequest(f"the prompt has {len(ids)} tokens, and whole pages of {PAGE} are saved. So short a one is computed in no time", field="ids")
    cache, turns = engine.cache, engine.cache.turns(len(ids), len(ids))
    if cache.turns(len(ids) + 1, len(ids) + 1) != turns:
        raise BadRequest(f"this model's rope turns all tokens by other angles once there are {len(ids) + 1:,}: what is computed of {len(ids):,} serves nothing "
                         f"longer. Save a shorter prompt", field="ids")
    with engine.lock:
        engine.run([Request(prompt_ids=ids, sampling=Sampling(temperature=0), max_tokens=1)])
        names = chain(turns, ids)
        tensors: dict[str, Tensor] = {}
        for group in cache.groups:
            wanted = names[_first(group, n) :]
            if any(name not in group.named for name in wanted):
                raise OutOfMemoryBudget(f"other requests took the pages of these {n * PAGE:,} tokens before they were written. Save the prompt when less "
                                        f"runs, or give the cache more than {size(cache.n_bytes)}", needed_bytes=n * group.bytes_per_page,
                                        available_bytes=cache.n_bytes)
            pages = torch.tensor([group.named[name] for name in wanted], dtype=torch.int64)  # which tables on any device take
            tensors |= {name: pool[pages].cpu() for name, pool in _pools(cache, group).items()}
    facts = _identity(engine) | {"model_sha256": model_sha256, "turns": turns.decode(), "ids": json.dumps(ids[: n * PAGE]), "name": names[-1].hex(),
                                 "tensors_sha256": _hash(tensors), "version": __version__}
    fresh = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        write(fresh, tensors, {"pellucid": FORMAT} | facts)
        with fresh.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(fresh, place)
    finally:
        fresh.unlink(missing_ok=True)
    return Saved(ids=tuple(ids[: n * PAGE]), n_left=len(ids) - n * PAGE, n_bytes=place.stat().st_size)


def load_prefix(engine: Engine, file: str | os.PathLike[str], *, model_sha256: str) -> Saved:
    """Puts what a file holds into the cache, for every request that begins alike, for as long as its pages are not needed for others.

    Raises BadRequest for a file that is not there, is another model's, or was computed otherwise; BadCheckpoint for one that is not whole or not
    what it says; OutOfMemoryBudget where its pages do not fit beside those in use. In any of these the cache is as it was.
    """
    path = Path(file)
    facts = _facts(path)
    _expect(path, facts, _identity(engine) | {"model_sha256": model_sha256}, engine.deterministic)
    ids = _ids(path, facts, engine.spec.n_vocab)
    names = chain(facts["turns"].encode(), ids)
    source = SafetensorsFile(path)
    cache, n = engine.cache, len(names)
    places = {name: (group, pool) for group in cache.groups for name, pool in _pools(cache, group).items()}
    if wrong := sorted(set(places) ^ set(source.header.tensors)):
        raise BadCheckpoint(f"{path.name} does not hold what this model keeps of a prompt; first: {wrong[0]}. Save the prompt again")
    for name, (group, pool) in places.items():
        found, expected = source.header.tensors[name].shape, (n - _first(group, n), *pool.shape[1:])
        if found != expected or source.tensor(name).dtype != pool.dtype:
            raise MisshapenTensor(f"{path.name}: {name} is {source.tensor(name).dtype} {found}, and {len(ids)} tokens take {pool.dtype} {expected}. "
                                  f"Save the prompt again")
    if (found_hash := _hash({name: source.tensor(name) for name in places})) != facts["tensors_sha256"]:
        raise BadCheckpoint(f"{path.name} was changed since it was written: its tensors hash to {found_hash[:12]}..., and {facts['tensors_sha256'][:12]}... "
                            f"was written down. Save the prompt again")
    with engine.lock:
        _take_in(path, cache, names, {name: source.tensor(name) for name in places})
    return Saved(ids=tuple(ids), n_left=0, n_bytes=path.stat().st_size)


def _take_in(path: Path, cache: PagedCache, names: Sequence[bytes], tensors: Mapping[str, Tensor]) -> None:
    """Pages by these names, those that are there left as they are."""
    n = len(names)
    held: list[tuple[Group, list[int]]] = []
    new: list[tuple[Group, list[int]]] = []
    try:
        for group in cache.groups:  # first what is there already, so that it is not what makes room
            first = _first(group, n)
            there = [group.named[name] for name in names[first:] if name in group.named]
            for page in there:
                group.share(page)
            held.append((group, there))
            new.append((group, [i for i, name in enumerate(names[first:]) if name not in group.named]))
        for group, missing in new:
            if len(missing) > group.n_available:
                raise OutOfMemoryBudget(f"{path.name} holds {n * PAGE:,} tokens, which need {len(missing)} pages more, and {group.n_available} of "
                                        f"{group.n_pages} are free in a cache of {size(cache.n_bytes)}. Load it when less runs, or give the cache more",
                                        needed_bytes=len(missing) * group.bytes_per_page, available_bytes=group.n_available * group.bytes_per_page)
        for group, missing in new:
            pages: list[int] = []
            for _ in missing:
                pages.append(group.take(pages[-1] if pages else None))
            held.append((group, pages))
            for name, pool in _pools(cache, group).items():
                pool[torch.tensor(pages, dtype=torch.int64, device=pool.device)] = tensors[name][missing].to(pool.device)
            for page, i in zip(pages, missing, strict=True):
                group.name(page, names[_first(group, n) + i])
    finally:
        for group, pages in held:
            for page in reversed(pages):  # the end of a prefix is of less use than its beginning: it goes first
                group.give_back(page)


def _identity(engine: Engine) -> dict[str, str]:
    """What has to be equal for pages to be what the engine would compute itself."""
    cache = engine.cache
    spec = dataclasses.replace(engine.spec, n_ctx=1)  # how long a context may be changes nothing in it
    ops, how = engine.decoder.ops, "deterministic" if engine.deterministic else "any order"
    computed = f"{how}, {ops.name}{'' if engine.passes.plan is None else ' plan'}, {ops.activations}"
    return {"spec_sha256": hashlib.sha256(repr(spec).encode()).hexdigest(), "cache": f"{cache.store}, {str(cache.dtype).removeprefix('torch.')}",
            "page": str(PAGE), "computed": computed}


def _expect(path: Path, facts: Mapping[str, str], expected: Mapping[str, str], deterministic: bool) -> None:
    what = {"model_sha256": ("computed by another model", "Save the prompt with this one"),
            "spec_sha256": ("computed by this model with other settings", "Load the model as it was then, or save the prompt again"),
            "cache": ("of a cache of other numbers", "Give the engine that cache_dtype and the model that dtype, or save the prompt again"),
            "page": ("of pages of another size", "Save the prompt again"),
            "computed": ("computed otherwise, and deterministic=True promises the same bits", "Save the prompt with this engine")}
    for name, (why, then) in what.items():
        if facts[name] != expected[name] and (name != "computed" or deterministic):
            raise BadRequest(f"{path.name} is {why}: {name} is {_short(facts[name])}, and {_short(expected[name])} runs here. {then}", field="file")


def _short(fact: str) -> str:
    return f"{fact[:12]}..." if len(fact) == 64 else fact


def _facts(path: Path) -> dict[str, str]:
    """The metadata of a saved prompt. Raises BadRequest or BadCheckpoint for anything else."""
    if not path.is_file():
        raise BadRequest(f"there is no file {path}. Save a prompt first", field="file")
    try:
        facts = read_header(path).metadata
    except BadCheckpoint as e:  # which would have it downloaded again
        raise type(e)(f"{str(e).rpartition('. ')[0]}. It is no saved prompt, or no longer a whole one: save the prompt again") from None
    if facts.get("pellucid") != FORMAT:
        raise BadCheckpoint(f"{path.name} is no saved prompt that this version reads: pellucid={facts.get('pellucid')!r} in its header (only {FORMAT!r}). "
                            f"Save the prompt again")
    if missing := [name for name in _FACTS if name not in facts]:
        raise BadCheckpoint(f"{path.name} does not say what it holds: {', '.join(missing)} missing in its header. Save the prompt again")
    return facts


def _ids(path: Path, facts: Mapping[str, str], n_vocab: int) -> list[int]:
    """The ids, found to be those that the pages are named after."""
    try:
        ids = token_ids(json.loads(facts["ids"]), "ids")
        check_vocabulary(ids, n_vocab, "ids")
    except (ValueError, BadRequest) as e:
        raise BadCheckpoint(f"{path.name}: what its header has for ids are none ({e}). Save the prompt again") from None
    names = chain(facts["turns"].encode(), ids)
    if not ids or len(ids) % PAGE or names[-1].hex() != facts["name"]:
        raise BadCheckpoint(f"{path.name}: its {len(ids)} ids are not those its pages are named after (name {facts['name'][:12]}..., and theirs is "
                            f"{names[-1].hex()[:12] if names else 'none'}...). Save the prompt again")
    return ids


def _place(file: str | os.PathLike[str]) -> Path:
    """Where it will lie, links followed. Raises BadRequest where none can, or where something else is: that is never replaced."""
    place = Path(os.path.realpath(file))
    if place.is_dir():
        why = "it is a folder"
    elif os.path.lexists(place) and not place.is_file():
        why = "it is no regular file, and stays what it is"
    elif not place.parent.is_dir():
        why = f"there is no folder {place.parent}"
    elif not os.access(place.parent, os.W_OK):
        why = f"{place.parent} cannot be written to"
    elif place.is_file() and place.stat().st_size and not _is_saved(place):
        why = "it holds something else than a saved prompt, which is left alone"
    else:
        return place
    raise BadRequest(f"a prompt cannot be saved to {file}: {why}. Give another file", field="file")


def _is_saved(path: Path) -> bool:
    try:
        return bool(_facts(path))
    except BadCheckpoint:
        return False


def _first(group: Group, n: int) -> int:
    """The first of n pages that what follows them sees."""
    return group.first_seen(n * PAGE) // PAGE


def _pools(cache: PagedCache, group: Group) -> dict[str, Tensor]:
    return {f"blocks.{layer}.kept.{i}": pool for layer in group.layers for i, pool in enumerate(cache.pools[layer])}


def _hash(tensors: Mapping[str, Tensor]) -> str:
    told = hashlib.sha256()
    for name in sorted(tensors):
        told.update(name.encode())
        told.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return told.hexdigest()

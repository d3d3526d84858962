"""Where a model comes from: the tree of what it was made from, each with the license somebody states for it, and who states it. No torch here.

A tree starts with the catalog's row, or with what a checkpoint's files say; what cannot be known stays in it as unknown.
"""
from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.catalog import licenses, models
from pellucid.catalog.models import Row
from pellucid.errors import BadLineage, ModelNotFound
from pellucid.weights.card import Card

ROLES = ("weights", "data", "outputs")  # whose weights it carries; what it was trained on; whose outputs it learned
_SHOWN = {"weights": "made from", "data": "trained on", "outputs": "taught by outputs of"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A license as somebody states it: `license` in their words, None for nothing; by: who."""

    license: str | None
    by: str

    @property
    def licenses(self) -> tuple[str, ...]:
        """Ids of the catalog, and words nobody here knows; of several, joined by AND as SPDX joins them, each."""
        return tuple(found.id if (found := licenses.find(each)) else each for each in (self.license or "").split(" AND ") if each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A model or a set of data. kinds: of the catalog, None where nobody said. files: file -> sha256. parents: (role, node), a role of ROLES."""

    name: str
    said: tuple[Said, ...]
    kinds: tuple[str, ...] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[tuple[str, Node], ...] = ()

    @property
    def licenses(self) -> tuple[str | None, ...]:
        """Ids of the catalog, each once; words nobody here knows as they stand; None where nothing is said."""
        return tuple(dict.fromkeys(id for said in self.said for id in said.licenses)) or (None,)

    @property
    def contradiction(self) -> str | None:
        """What different sources say, where they differ."""
        if len({frozenset(said.licenses) for said in self.said if said.licenses}) < 2:
            return None
        return f"{self.name}: {' but '.join(f'{said.by} says {said.license}' for said in self.said if said.license)}"

    def made_with(self, more: Iterable[tuple[str, Node]]) -> Node:
        """The same where these went into it too: an adapter, the data it learned from. more: as `parents`."""
        return replace(self, parents=(*self.parents, *more))


def walk(node: Node, path: tuple[str, ...] = (), role: str = "weights") -> Iterator[tuple[Node, tuple[str, ...], str]]:
    """Every node with the names from the top down to it and its role there; what is above data is data."""
    path = (*path, node.name)
    yield node, path, role
    for way, parent in node.parents:
        yield from walk(parent, path, role if role != "weights" else way)


def of_row(row: Row, rows: Mapping[str, Row], below: tuple[str, ...] = ()) -> Node:
    """The tree of a row of the catalog. Raises BadLineage for one that descends from itself."""
    _no_cycle(row.name, below)
    path = (*below, row.name)
    parents: list[tuple[str, Node]] = [(role, _named(name, rows, path)) for role, name in (("weights", row.base), ("outputs", row.distills)) if name]
    parents += [("data", Node(name=f"data of {row.name} under {each}", said=(Said(license=each, by="the catalog"),))) for each in row.data_licenses]
    return Node(name=row.name, said=(Said(license=row.license, by="the catalog"),), kinds=row.kinds, parents=tuple(parents))


def of_card(name: str, card: Card, rows: Mapping[str, Row], files: Mapping[str, str] | None = None) -> Node:
    """The tree a model card starts, beside what the catalog says of the same repository, where it says something."""
    said, parents, kinds = [Said(license=_license(card), by=card.source or "its files")], [], None
    try:
        known = of_row(models.find(name, rows), rows) if "/" in name else None
    except ModelNotFound:
        known = None
    if known is not None:
        said, parents, kinds = [*said, *known.said], list(known.parents), known.kinds
    there = {parent.name for _, parent in parents}
    bases = [_named(base, rows, (name,)) for base in card.base_models]
    parents += [("weights", base) for base in bases if base.name not in there]
    parents += [("data", of_dataset(each)) for each in card.datasets]
    return Node(name=name, said=tuple(said), kinds=kinds, files=dict(files or {}), parents=tuple(parents))


def of_dataset(name: str) -> Node:
    """A set of data by its name on the hub; unknown where `datasets.toml` has nothing on it."""
    stated = _datasets().get(name.lower(), [])
    nodes = [Said(license=each, by="the catalog") for each in stated]
    if len(nodes) < 2:
        return Node(name=name, said=tuple(nodes) or (Said(license=None, by="the catalog"),))
    parts = tuple(("data", Node(name=f"{name} under {said.license}", said=(said,))) for said in nodes[1:])
    return Node(name=name, said=(nodes[0],), parents=parts)


def plain(node: Node) -> dict[str, Any]:
    """The tree as JSON holds it; `from_plain` reads it."""
    return {"name": node.name, "said": [{"license": said.license, "by": said.by} for said in node.said],
            "kinds": None if node.kinds is None else list(node.kinds), "files": dict(node.files),
            "parents": [{"role": role, **plain(parent)} for role, parent in node.parents]}


def from_plain(value: Any, where: str, below: tuple[str, ...] = ()) -> Node:
    """Raises BadLineage for what is no tree, or has one model as its own ancestor with the same files."""
    kinds: dict[str, Any] = {"name": str, "said": list, "kinds": (list, type(None)), "files": dict, "parents": list}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
        raise BadLineage(f"{where} holds no lineage that can be read: an object with {', '.join(kinds)} was expected, found {value!r:.80}")
    if not all(isinstance(said, dict) and isinstance(said.get("by"), str) and isinstance(said.get("license"), str | None) for said in value["said"]):
        raise BadLineage(f"{where}: the licenses of {value['name']!r} are not each what is stated and by whom: {value['said']!r:.80}")
    content = " ".join(sorted(map(str, value["files"].values())))  # names may come again, files may not
    if content:
        _no_cycle(content, below)
    path = (*below, content) if content else below
    parents = []
    for parent in value["parents"]:
        if not isinstance(parent, dict) or parent.get("role") not in ROLES:
            raise BadLineage(f"{where}: {value['name']!r} has an ancestor without a role ({', '.join(ROLES)}): {parent!r:.80}")
        parents.append((parent["role"], from_plain(parent, where, path)))
    return Node(name=value["name"], said=tuple(Said(license=said["license"], by=said["by"]) for said in value["said"]),
                kinds=None if value["kinds"] is None else tuple(value["kinds"]), files=value["files"], parents=tuple(parents))


def drawn(node: Node) -> list[str]:
    """The tree in lines, the model first."""
    def lines(each: Node, lead: str) -> Iterator[str]:
        for i, (role, parent) in enumerate(each.parents):
            last = i == len(each.parents) - 1
            yield f"{lead}{'└' if last else '├'}─ {_SHOWN[role]} {_line(parent)}"
            yield from lines(parent, f"{lead}{' ' if last else '│'}  ")
    return [_line(node), *lines(node, "")]


def _line(node: Node) -> str:
    stated = " · ".join(f"{said.license or 'license unknown'} ({said.by})" for said in node.said)
    hashes = f" · {', '.join(f'{hash[:12]}…' for hash in sorted(set(node.files.values()))[:2])}" if node.files else ""
    return f"{node.name}  {stated}{hashes}"


def _named(name: str, rows: Mapping[str, Row], below: Sequence[str]) -> Node:
    try:
        row = models.find(name, rows)
    except ModelNotFound:
        _no_cycle(name, tuple(below))
        return Node(name=name, said=(Said(license=None, by="the catalog"),))
    return of_row(row, rows, tuple(below))


def _no_cycle(name: str, below: tuple[str, ...]) -> None:
    if name in below:
        raise BadLineage(f"the lineage of {below[0]!r} goes round in a circle: {' <- '.join((*below[below.index(name):], name))}. Which of them was first?")


def _license(card: Card) -> str | None:
    if card.license in (None, "other", "unknown"):
        return card.license_name or None
    return card.license


@cache
def _datasets() -> dict[str, list[str]]:
    facts = tomllib.loads((Path(__file__).parent / "datasets.toml").read_text(encoding="utf-8"))
    return {name.lower(): list(row["licenses"]) for name, row in facts["datasets"].items()}

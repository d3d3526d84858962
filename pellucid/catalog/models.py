"""The catalog of checkpoints: what exists, how large it is, what it was made from, and where each fact was read. No torch here.

`models/*.toml` holds the rows, `shapes.toml` the widths that several may share, `sources.toml` where and when facts were read. A fact nobody read is
left out. People add rows of their own in `models.toml` of their configuration folder (docs/catalog.md).
"""
from __future__ import annotations

import datetime
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.errors import BadConfig, ModelNotFound, did_you_mean, nearest

FOLDER = Path(__file__).parent
KINDS = ("base", "chat", "code", "reasoning", "math", "vision", "audio")
OPEN = ("weights", "code", "data", "checkpoints", "logs")
DATA = ("open", "described", "undisclosed")  # may be had · is told what it is · neither
COUNTING = (None, "to the nearest ten", "without embeddings", "without embeddings, with the layer that predicts further", "the tied matrix twice",
            "with the vision tower")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checkpoint. A fact is None, or empty, where no source was at hand.

    size: the published count, an int where it is exact, else as it was rounded ("7B"); `counting` says what it counts differently. parameters, active,
    cache, context: of the widths in `shape`, where they are known; cache is [(numbers kept of a token, tokens they are kept for; 0: all)].
    base: the row this one was tuned from. distills: the model whose outputs or logits it learned, which it is not. tokens: of pre-training.
    data: one of DATA. open: which of OPEN may be had. scores: benchmark -> percent. sources: where they were read -> the fields.
    mine: it stands in the user's own file.
    """

    name: str
    maker: str
    kinds: tuple[str, ...]
    size: int | str
    repo: str | None = None
    revision: str | None = None
    family: str | None = None
    shape: str | None = None
    parameters: int | None = None
    active: int | None = None
    cache: tuple[tuple[int, int], ...] = ()
    context: int | None = None
    tokens: int | None = None
    languages: tuple[str, ...] = ()
    released: datetime.date | None = None
    license: str | None = None
    base: str | None = None
    distills: str | None = None
    data: str | None = None
    data_licenses: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    counting: str | None = None
    note: str | None = None
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mine: bool = False

    @property
    def count(self) -> int:
        """Parameters: of the widths, else as published."""
        return self.parameters if self.parameters is not None else published(self.size)

    def cache_numbers(self, n_tokens: int) -> int:
        """Numbers kept of a row of so many tokens; layers with a window keep no more than it shows."""
        return sum(numbers * min(n_tokens, limit or n_tokens) for numbers, limit in self.cache)


def table() -> dict[str, Row]:
    """Every row by name, the user's own last. Raises BadConfig for a file of theirs that does not read, or a name that is taken."""
    rows = dict(_shipped())
    for name, facts in _own(own_file()).items():
        if name in rows:
            raise BadConfig(f"{own_file()}: {name!r} is in the catalog already ({rows[name].repo}). Call yours otherwise.")
        rows[name] = _row(name, facts, where=str(own_file()), mine=True)
    return rows


def as_of() -> datetime.date:
    """When the catalog's facts were read."""
    day: datetime.date = _read("sources.toml")["as_of"]
    return day


def sources() -> dict[str, str]:
    """Where facts were read, by the key that rows name."""
    return dict(_read("sources.toml")["sources"])


def find(asked: str, rows: Mapping[str, Row] | None = None) -> Row:
    """The row of a name or of a repository, in any case. Raises ModelNotFound with the nearest names; a distill is told for what it is."""
    rows = table() if rows is None else rows
    repos = {row.repo.lower(): row for row in rows.values() if row.repo}
    row = rows.get(asked.lower()) or repos.get(asked.lower())
    if row is None:
        row = {repo.rpartition("/")[2]: row for repo, row in repos.items()}.get(asked.lower())
    if row is None:
        raise ModelNotFound(f"{asked!r} is not in the catalog.{_hint(asked, rows)}   (pellucid models)", near(asked, rows))
    return row


def near(asked: str, rows: Mapping[str, Row]) -> tuple[str, ...]:
    """Up to three names like the one that was asked: by letters, then by the words they share, so that `llama3 8b` finds `llama-3-8b`."""
    plain = asked.lower().rpartition("/")[2].replace(":", "-").replace("_", "-").replace(" ", "-")
    words = set(plain.split("-"))
    shared = {name: len(words & has) / len(words | has) for name in rows if words & (has := set(name.split("-")))}
    sharing = sorted(shared, key=lambda name: -shared[name])
    whole = [name for name in sharing if words <= set(name.split("-"))]
    return tuple(dict.fromkeys([*whole, *nearest(plain, rows), *sharing]))[:3]


def _hint(asked: str, rows: Mapping[str, Row]) -> str:
    """The nearest names, and of each distill among them what it really is."""
    names = near(asked, rows)
    distills = [f"{name} is {rows[name].base or rows[name].maker + ' weights'} taught by {rows[name].distills}, not {rows[name].distills} itself"
                for name in names if rows[name].distills]
    return did_you_mean(names) + "".join(f" ({each})" for each in distills)


def config_of(row: Row) -> dict[str, Any]:
    """config.json as families read it, less what decides nothing. Raises ModelNotFound where the catalog does not know the widths."""
    own = _own(own_file()).get(row.name, {}).get("config") if row.mine else None
    text = own or (_read("shapes.toml").get(row.shape, {}).get("config") if row.shape else None)
    if text is None:
        raise ModelNotFound(f"the catalog does not know the widths of {row.name!r}, only that it has {row.size} parameters. "
                            f"Give its config.json: pellucid plan FOLDER" + (f", or pull {row.repo}" if row.repo else ""))
    config: dict[str, Any] = json.loads(text)
    return config


def published(size: int | str) -> int:
    """A published count as a number: 7B is 7,000,000,000."""
    return size if isinstance(size, int) else round(float(size[:-1]) * {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[size[-1]])


def own_file() -> Path:
    """Where the user's own rows are read from: pellucid/models.toml under XDG_CONFIG_HOME, or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pellucid" / "models.toml"


@cache
def _shipped() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for path in sorted((FOLDER / "models").glob("*.toml")):
        rows |= {name: _row(name, facts, where=path.name) for name, facts in tomllib.loads(path.read_text("utf8")).items()}
    return rows


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text("utf8"))


@cache
def _own(path: Path) -> dict[str, Any]:
    try:
        rows = tomllib.loads(path.read_text("utf8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}. It holds rows such as [my-model]; docs/catalog.md shows one") from None
    if loose := [name for name, facts in rows.items() if not isinstance(facts, dict)]:
        raise BadConfig(f"{path}: {loose[0]!r} stands outside a row. A row begins with its name in brackets, [my-model]")
    return rows


def _row(name: str, facts: Mapping[str, Any], *, where: str, mine: bool = False) -> Row:
    """A row of a file. Raises BadConfig for a fact nobody reads, one that is missing, or one of the wrong kind."""
    said = {"sources" if key == "from" else key: _frozen(value) for key, value in facts.items() if not (mine and key == "config")}
    known = {each.name for each in fields(Row)} - {"name", "mine"}
    if odd := sorted(said.keys() - known):
        raise BadConfig(f"{where}: row {name!r} says {odd[0]!r}, which nobody reads.{did_you_mean(nearest(odd[0], known))} (docs/catalog.md lists the fields)")
    needed = [each.name for each in fields(Row) if each.default is MISSING and each.default_factory is MISSING and each.name != "name"]
    if absent := [key for key in needed if key not in said]:
        raise BadConfig(f"{where}: row {name!r} does not say {absent[0]!r}; a row needs {', '.join(needed)}")
    if "released" in said and not isinstance(said["released"], datetime.date):
        raise BadConfig(f"{where}: row {name!r} was released {said['released']!r}; write a date without quotes, 2024-07-18")
    for key, allowed in (("kinds", KINDS), ("open", OPEN)):
        if odd := [each for each in said.get(key, ()) if each not in allowed]:
            raise BadConfig(f"{where}: row {name!r} has {key} {odd[0]!r}; it may be {', '.join(allowed)}")
    return Row(name=name, mine=mine, **said)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(each) for key, each in value.items()} if isinstance(value, dict) else value


def chosen(rows: Iterable[Row], *, kinds: Iterable[str] = (), context: int | None = None, opened: Iterable[str] = (), least: Mapping[str, float] | None = None,
           license: str | None = None, family: str | None = None, maker: str | None = None, language: str | None = None, runs: bool = False) -> list[Row]:
    """The rows of which all of this is known to be so; what is not known of a row counts as not so."""
    def wanted(row: Row) -> bool:
        return all((all(kind in row.kinds for kind in kinds), context is None or (row.context or 0) >= context, all(part in row.open for part in opened),
                    all(row.scores.get(name, -1) >= value for name, value in (least or {}).items()), license is None or row.license == license,
                    family is None or row.family == family, maker is None or row.maker == maker, language is None or language in row.languages,
                    not runs or row.family is not None))
    return [row for row in rows if wanted(row)]

"""Licenses as structured terms: what each allows, forbids, demands or leaves unclear, for which uses, and the clause that says so. No torch here.

`licenses/*.toml` holds them, read from the texts on the day they name. People add licenses of their own in `licenses.toml` of their configuration folder.
None of this is legal advice.
"""
from __future__ import annotations

import dataclasses
import datetime
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.errors import BadConfig, ModelNotFound, did_you_mean, nearest

FOLDER = Path(__file__).parent / "licenses"
VERBS = ("allows", "forbids", "demands", "unclear")
BASE = ("research", "commercial", "hosting", "distribute", "modify", "train")  # what must be allowed by name; `train`: other models, on what it writes
# What a license may exclude by name, and allows with the rest where it does not.
AREAS = ("automated-decisions", "biometrics", "critical-infrastructure", "discrimination", "disinformation", "drugs", "fraud", "harassment", "illegal",
         "impersonation", "infringement", "law-enforcement", "malware", "manipulation", "medical", "military", "minors", "personal-data", "self-harm", "sexual",
         "social-scoring", "surveillance", "undisclosed", "unlicensed-practice", "violence", "weapons")
ALWAYS = "always"
UNNAMED = "unnamed"  # in a file: every area that no other term of the license names, where a policy that belongs to it was not at hand, or is open-ended
LIMITS = ("users", "users_at_release", "daily_users", "revenue", "monthly_revenue")  # people a month, people a day; US dollars a year, a month
TERRITORIES = ("EU", "GB", "KR", "US", "CN", "other")
_TERM = {"clause": str, "says": str, "over": dict, "where": list, "kinds": list, "except": str, "with": str, "unless": str, "permission": str}
_LICENSE = {"name": str, "spdx": str, "osi": bool, "share_alike": bool, "released": datetime.date, "aliases": list, "source": str, "note": str, "terms": list}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term, of one clause.

    does: one of VERBS. uses: to which uses it speaks, of BASE and AREAS, or ALWAYS. over: it binds only whoever passes a number, one of LIMITS.
    where: it binds only in these TERRITORIES. kinds: only models of these kinds. spares: the license whose own derivatives it leaves alone.
    together: only with this use as well; without: not with that one. permission: who may allow what it forbids.
    """

    does: str
    uses: tuple[str, ...]
    clause: str
    says: str
    over: Mapping[str, int] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    spares: str | None = None
    together: str | None = None
    without: str | None = None
    permission: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """One license. osi: approved by the Open Source Initiative. released: of the version it came with, from which users may be counted.

    share_alike: derivatives that are given on carry it. source: where it was read; read: when. mine: it stands in the user's own file.
    """

    id: str
    name: str
    osi: bool
    source: str
    read: datetime.date
    terms: tuple[Term, ...]
    spdx: str | None = None
    share_alike: bool = False
    released: datetime.date | None = None
    aliases: tuple[str, ...] = ()
    note: str | None = None
    mine: bool = False

    @property
    def permissive(self) -> bool:
        """Nothing is forbidden or unclear, and nothing has to stay under it."""
        return not self.share_alike and all(term.does in ("allows", "demands") for term in self.terms)


def table() -> dict[str, License]:
    """Every license by id, the user's own last. Raises BadConfig for a file of theirs that does not read, or an id that is taken."""
    return dict(_everything()[0])


def find(said: str) -> License | None:
    """The license somebody names, by id, SPDX id, name or alias, in any case; None where nobody here knows it."""
    return _everything()[1].get(_key(said))


def _everything() -> tuple[Mapping[str, License], Mapping[str, License]]:
    """Licenses by id, and by every name; read again where the user's own file has changed."""
    path = own_file()
    try:
        return _with_own(path, path.stat().st_mtime_ns)
    except OSError:
        return _with_own(path, None)


@cache
def _with_own(path: Path, changed: int | None) -> tuple[Mapping[str, License], Mapping[str, License]]:
    licenses = dict(_shipped())
    for id, license in (_read(path, mine=True) if changed is not None else {}).items():
        if id in licenses:
            raise BadConfig(f"{path}: {id!r} is in the catalog already. Call yours otherwise.")
        licenses[id] = license
    named: dict[str, License] = {}
    for license in licenses.values():
        for name in _names(license):
            named.setdefault(name, license)  # one of the user's own takes no name of the catalog's
    return licenses, named


def known(said: str) -> License:
    """`find`, or ModelNotFound with the nearest ids."""
    license = find(said)
    if license is None:
        names = {name: license.id for license in table().values() for name in _names(license)}
        near = tuple(dict.fromkeys(names[name] for name in nearest(_key(said), names)))
        raise ModelNotFound(f"{said!r} is no license the catalog knows.{did_you_mean(near)}   ({own_file()} takes licenses of your own)", near)
    return license


def own_file() -> Path:
    """Where the user's own licenses are read from: pellucid/licenses.toml under XDG_CONFIG_HOME, or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pellucid" / "licenses.toml"


def _key(said: str) -> str:
    return " ".join(said.lower().replace("_", "-").split())


def _names(license: License) -> set[str]:
    return {_key(name) for name in (license.id, license.name, *license.aliases, *([license.spdx] if license.spdx else []))}


@cache
def _shipped() -> dict[str, License]:
    licenses: dict[str, License] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        licenses |= _read(path)
    return licenses


def _read(path: Path, mine: bool = False) -> dict[str, License]:
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from None
    if set(facts) != {"read", "licenses"} or not isinstance(facts["read"], datetime.date) or not isinstance(facts["licenses"], dict):
        raise BadConfig(f"{path} has {', '.join(sorted(facts)) or 'nothing'}, and `read`, the day, and [licenses.ID] tables were expected   (docs/licenses.md)")
    return {id: _license(id, each, facts["read"], f"{path}: {id}", mine) for id, each in facts["licenses"].items()}


def _license(id: str, facts: Any, read: datetime.date, where: str, mine: bool) -> License:
    _check(facts, _LICENSE, {"name", "osi", "source", "terms"}, where)
    terms = tuple(_term(each, f"{where}, term {i + 1}") for i, each in enumerate(facts["terms"]))
    left = tuple(sorted(set(AREAS) - {use for term in terms for use in term.uses}))
    terms = tuple(dataclasses.replace(term, uses=(*(use for use in term.uses if use != UNNAMED), *left)) if UNNAMED in term.uses else term for term in terms)
    return License(id=id, read=read, mine=mine, **{**facts, "terms": terms, "aliases": tuple(facts.get("aliases", ()))})


def _term(facts: Any, where: str) -> Term:
    verbs = [verb for verb in VERBS if isinstance(facts, dict) and verb in facts]
    if len(verbs) != 1:
        raise BadConfig(f"{where} needs one of {', '.join(VERBS)}, and has {' and '.join(verbs) or 'none'}")
    _check(facts, {**_TERM, verbs[0]: list}, {"clause", "says"}, where)
    uses, over, territories = facts[verbs[0]], facts.get("over", {}), facts.get("where", [])
    for unknown, words in ((set(uses) - {*BASE, *AREAS, ALWAYS, UNNAMED}, (*BASE, *AREAS, ALWAYS, UNNAMED)), (set(over) - set(LIMITS), LIMITS),
                           (set(territories) - set(TERRITORIES), TERRITORIES)):
        if unknown:
            raise BadConfig(f"{where} says {', '.join(sorted(unknown))}, which is none of {', '.join(words)}")
    return Term(does=verbs[0], uses=tuple(uses), clause=facts["clause"], says=facts["says"], over=over, where=tuple(territories),
                kinds=tuple(facts.get("kinds", ())), spares=facts.get("except"), together=facts.get("with"), without=facts.get("unless"),
                permission=facts.get("permission"))


def _check(facts: Any, kinds: Mapping[str, type], needed: set[str], where: str) -> None:
    if not isinstance(facts, dict):
        raise BadConfig(f"{where} is {type(facts).__name__}, and a table was expected")
    if missing := sorted(needed - set(facts)):
        raise BadConfig(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(facts) - set(kinds)):
        raise BadConfig(f"{where} has {', '.join(unknown)}, which nobody reads (read: {', '.join(sorted(kinds))})")
    for key, value in facts.items():
        if not isinstance(value, kinds[key]):
            raise BadConfig(f"{where}: {key} is {type(value).__name__}, and {kinds[key].__name__} was expected")

"""The gate: what somebody declared to use models for, in `pellucid.toml`, checked before a model is served, merged, converted or quantized. No torch here."""
from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.catalog import licenses, lineage, models, uses, verdict
from pellucid.catalog.lineage import Node, Said
from pellucid.errors import BadConfig, ModelNotFound, NotAllowed

FILE = "pellucid.toml"
_KINDS: dict[str, type | tuple[type, ...]] = {"commercial": bool, "hosting": bool, "distribute": bool, "for": list, "territory": str,
                                              **dict.fromkeys(licenses.LIMITS, (int, float, str))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What `[use]` of a pellucid.toml says. path: the file."""

    use: uses.Use
    path: Path

    def with_(self, **facts: Any) -> uses.Use:
        """The use, with facts given anew."""
        return dataclasses.replace(self.use, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a command writes into its record: the declared use, the answer, the duties, and the permission it went by, if any."""

    use: str
    answer: str
    duties: tuple[str, ...]
    permission: str | None

    @property
    def notes(self) -> list[str]:
        told = [f"declared use: {self.use} · {self.answer}", *(f"duty: {each}" for each in self.duties)]
        return [*told, f"permission: {self.permission}"] if self.permission else told


def declared(folder: Path) -> Declared | None:
    """The use that pellucid.toml of this folder, or of the nearest above it, declares; None where there is none. Raises BadConfig for what does not read."""
    path = next((each / FILE for each in (folder, *folder.parents) if (each / FILE).is_file()), None)
    if path is None:
        return None
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from None
    if set(facts) != {"use"} or not isinstance(facts["use"], dict):
        raise BadConfig(f"{path} has {', '.join(sorted(facts)) or 'nothing'}, and one table [use] was expected   (docs/licenses.md)")
    table = facts["use"]
    for key, value in table.items():
        if key not in _KINDS:
            raise BadConfig(f"{path}: [use] has {key}, which nobody reads (read: {', '.join(_KINDS)})")
        if not isinstance(value, _KINDS[key]) or (isinstance(value, bool) and _KINDS[key] is not bool):
            raise BadConfig(f"{path}: {key} is {type(value).__name__}, which it cannot be: {value!r}")
    said = [key for key in ("commercial", "hosting", "distribute") if table.get(key)]
    if table.get("commercial") is False or not said:
        said.append("research")
    numbers = {limit: uses.number(table.get(limit), limit) for limit in licenses.LIMITS}
    return Declared(use=uses.use_of([*said, *table.get("for", [])], **numbers, territory=uses.territory(table.get("territory"))), path=path)  # type: ignore[arg-type]


def check(node: Node, also: Sequence[str], folder: Path, permission: str | None = None) -> Passed | None:
    """Passes a model on to a command, or raises NotAllowed with the clause; None where no use is declared.

    also: what the command does by itself, of BASE: modify, hosting, ... Unknown stops too. A permission, by its reference, lets anything pass, and is recorded.
    """
    stated = declared(folder)
    if stated is None:
        return None if permission is None else Passed(use="not declared", answer="not judged", duties=(), permission=permission)
    use = dataclasses.replace(stated.use, uses=stated.use.uses | set(also))
    found = verdict.judge(node, use)
    if found.answer in ("not allowed", "unknown") and permission is None:
        why = next(each for each in found.reasons if each.does != "allows")
        says = "is not allowed" if found.answer == "not allowed" else "is not known to be allowed"
        way = f" · by way of {verdict.way(why.path)}" if len(why.path) > 2 else ""
        raise NotAllowed(f"{use.shown} ({stated.path}) {says} with {node.name}: {why.shown}{way}. "
                         f"With a permission of {why.permission or 'who may give it'}, give its reference: --permission REFERENCE", answer=found.answer)
    return Passed(use=use.shown, answer=found.answer, duties=tuple(each.shown for each in found.duties), permission=permission)


def tree(model: str) -> Node:
    """The lineage of a folder or file, of a repository on this disk, of a row of the catalog, or of a license by itself.

    A repository that is here and in the catalog shows what its card says and what the catalog says. Raises ModelNotFound with the nearest names.
    """
    path = Path(model).expanduser()
    here = path if model and path.exists() else _downloaded(model)  # Path("") would be the current folder
    if here is not None:
        from pellucid.catalog import ancestry
        return ancestry.of_path(here, None if here is path else model.partition("@")[0])
    rows = models.table()
    try:
        return lineage.of_row(models.find(model, rows), rows)
    except ModelNotFound as error:
        license = licenses.find(model)
        if license is None:
            raise error
        return Node(name=license.id, said=(Said(license=license.id, by="asked"),), kinds=())


def _downloaded(model: str) -> Path | None:
    """The folder of owner/name[@revision] in the hub's cache, where it is there; names without an owner are the catalog's, and cost no look at the cache."""
    if "/" not in model:
        return None
    from pellucid.weights import hub_cache
    asked = hub_cache.parse(model)
    return hub_cache.find(*asked, cache=hub_cache.cache_folder()) if asked else None


def tuned(node: Node, data: Sequence[str]) -> Node:
    """What a tune of a model on data would be: a dataset by its name on the hub, or a license's id."""
    nodes = [Node(name=f"data under {each}", said=(Said(license=each, by="asked"),)) if licenses.find(each) else lineage.of_dataset(each) for each in data]
    return node.made_with(("data", each) for each in nodes)


def weights_of(model: str) -> tuple[str, ...]:
    """The licenses that a model's weights carry."""
    return tuple(id for each, _, role in lineage.walk(tree(model)) if role == "weights" for id in each.licenses if id)

"""The lineage of a checkpoint on this disk: what Pellucid wrote into it, else what its model card says. No torch here.

What Pellucid writes carries the whole tree: in the run record, in the metadata of safetensors and GGUF files under `pellucid.ancestry`, in the model card.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pellucid.catalog import licenses, lineage, models, verdict
from pellucid.catalog.lineage import Node, Said
from pellucid.errors import BadConfig, BadLineage, BadRequest
from pellucid.records import Record, read_object, record_of, sha256_of
from pellucid.weights.card import Card, read_card
from pellucid.weights.gguf_card import card_of
from pellucid.weights.hub_cache import resolve

ANCESTRY = "pellucid.ancestry"  # a key of metadata: the tree as JSON
WEIGHTS = (".gguf", ".safetensors", ".bin")
_ADAPTER = "adapter_config.json"
_HEADING = "## Where it comes from"


def of_model(asked: str) -> Node:
    """The tree of what a command or a recipe names: a folder or file, or what is on this disk as owner/name[@revision], by that name.

    Raises what `resolve` and `of_path` raise.
    """
    path = resolve(asked)
    return of_path(path, None if path == Path(asked).expanduser() else asked)


def of_path(path: Path, name: str | None = None) -> Node:
    """The tree of a folder or a file. Raises BadLineage where a record tells of other files than those that lie there."""
    path = path.resolve()
    record = record_of(path)
    name = name or _name(path)
    if record.is_file():
        told = Record.read(record)
        _check(record, told)
        if (tree := told.output.get("ancestry")) is not None:
            return dataclasses.replace(lineage.from_plain(tree, str(record)), name=name)
    metadata = _metadata(path)
    if isinstance(text := metadata.get(ANCESTRY), str):
        return dataclasses.replace(of_text(text, str(path)), name=name)
    card = read_card(path if path.is_dir() else path.parent) if path.suffix != ".gguf" else card_of(metadata, path.name)
    if not card.base_models and path.is_dir() and (path / _ADAPTER).is_file():  # peft writes the name there, and not always into a card
        base = read_object(path / _ADAPTER, BadConfig, f"{_ADAPTER} of {name!r}").get("base_model_name_or_path")
        card = dataclasses.replace(card, base_models=(base,) if isinstance(base, str) and base else ())
    return of_card(name, card)


def of_card(name: str, card: Card, files: Mapping[str, str] | None = None) -> Node:
    """The tree a card starts, beside what the catalog says of the same repository."""
    return lineage.of_card(name, card, models.table(), files)


def of_text(text: str, where: str) -> Node:
    """A tree from metadata."""
    try:
        return lineage.from_plain(json.loads(text), where)
    except (json.JSONDecodeError, RecursionError):
        raise BadLineage(f"{where}: its metadata {ANCESTRY} is not JSON that can be read. Was the file edited?") from None


def text_of(node: Node) -> str:
    """A tree as metadata holds it."""
    return json.dumps(lineage.plain(node), ensure_ascii=False, separators=(",", ":"))


def child(parent: Node, files: Mapping[str, str]) -> Node:
    """What is written from a parent whose files have these hashes: its licenses are the parent's until somebody says otherwise.

    It has the parent's name until it is read from a place of its own: what a file is called decides no byte in it.
    """
    source = dataclasses.replace(parent, files=dict(files) or parent.files)
    said = tuple(Said(license=each.license, by=parent.name) for each in parent.said)
    return Node(name=parent.name, said=said, kinds=parent.kinds, parents=(("weights", source),))


def card_of_result(card: Card, node: Node) -> Card:
    """The card of what was made from more than the model whose card this is: its license is that of all of it together.

    A license that is not known stays in it as `unknown`, beside the others: whoever reads the card alone is not told less than there is to keep.
    """
    told = {id or "unknown" for each, _, role in lineage.walk(node) if role != "outputs" for id in each.licenses}
    base, data = ([each for role, each in node.parents if role == asked] for asked in ("weights", "data"))
    card = dataclasses.replace(card, base_models=tuple(each.name for each in base),
                               datasets=tuple(dict.fromkeys([*card.datasets, *(each.name for each in data if each.name.count("/") == 1)])))
    if told == set(node.licenses):
        return card
    known = licenses.find(one) if len(told) == 1 and (one := next(iter(told))) != "unknown" else None
    stated, name = (known.spdx.lower(), None) if known and known.spdx else ("other", " AND ".join(sorted(told)))
    return dataclasses.replace(card, license=stated, license_name=name, license_link=None)


def section(node: Node, lines: Sequence[str], made_by: str) -> str:
    """What a model card says of where a model comes from; `without_section` takes it off again. lines: hash and name of what went into it."""
    told = [f"Written by {made_by}. What went into it, by content:", "", "```", *lines, "```", "", "The models and the data:", "", "```",
            *lineage.drawn(node), "```", "", f"License of all of it: {verdict.result_license(node) or 'unknown'}.",
            *(f"Conflict: {each}." for each in verdict.conflicts(node))]
    return "\n".join([_HEADING, "", *told, ""])


def without_section(readme: str) -> str:
    """A model card without the section that a file this one was made from had: the new one says all of it again."""
    return readme.partition(f"\n{_HEADING}\n")[0].rstrip() + "\n"


def _check(record: Path, told: Record) -> None:
    """Raises BadLineage where a file the record tells of is gone, or holds something else."""
    files: Any = told.output.get("files")
    if not isinstance(files, Mapping):
        return
    for written, facts in files.items():
        if Path(written).suffix not in WEIGHTS:
            continue  # a model card may be edited
        path = record.parent / Path(written).name  # the folder may have been moved since
        if not isinstance(facts, Mapping) or not isinstance(facts.get("sha256"), str):
            raise BadLineage(f"{record} does not say what {written} holds. Was it edited?")
        if not path.is_file():
            raise BadLineage(f"{record} tells of {path.name}, which is not beside it: its lineage is of other files. Bring the file back, or delete the record")
        if (now := sha256_of(path)) != facts["sha256"]:
            raise BadLineage(f"{path} was tampered with or replaced: {record.name} says sha256 {facts['sha256'][:12]}…, it has {now[:12]}…. "
                             f"Its lineage is not known")


def _metadata(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".gguf":
        from pellucid.weights.gguf import read_gguf
        return read_gguf(path).metadata
    first = next(iter(sorted(path.glob("*.safetensors"))), None) if path.is_dir() else path if path.suffix == ".safetensors" else None
    if path.is_file() and first is None:
        raise BadRequest(f"{path} is no checkpoint: a folder, a .gguf file or a .safetensors file was expected", field="model")
    if first is None:
        return {}
    from pellucid.weights.header import read_header
    return read_header(first).metadata


def _name(path: Path) -> str:
    """owner/name of what lies in the hub's cache, else the name of the folder or file."""
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return path.stem if path.suffix == ".gguf" else path.name

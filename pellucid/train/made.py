"""Rows that a Python file makes, such as recipes/niche_rows.py: `rows(split, n, seed)` in it yields them, SCHEMA says what their answers are.

They are written down first and then read like any others: to be looked at, hashed and learned from again. The file is run, so it is yours or a shipped one.
"""
from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid.engine.source import read_source
from pellucid.errors import BadData, BadRequest
from pellucid.train.recipe import ExactPart, Recipe, SourcePart
from pellucid.train.recipes import find, shipped


def written(recipe: Recipe) -> Recipe:
    """The recipe with a file in place of every source that is made: `rows/NAME.SPLIT.jsonl` in its folder. Raises BadRequest and BadData as `make` does."""
    def one(source: SourcePart) -> SourcePart:
        return source if source.made is None else replace(source, made=None, n=None, path=str(make(source, Path(recipe.out.folder) / "rows", recipe.seed)))

    apart = recipe.data.held_out
    return replace(recipe, data=replace(recipe.data, sources=tuple(map(one, recipe.data.sources)),
                                        held_out=one(apart).path if isinstance(apart, SourcePart) else apart))


def make(source: SourcePart, folder: Path, seed: int) -> Path:
    """The rows of a source, in a file. Raises BadRequest for a file that makes none, BadData for rows that are no objects or too few."""
    assert source.made is not None
    file = find(source.made, ".py")
    out = folder / f"{file.stem}.{source.split}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(f".{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            for row in _rows(file, source, seed):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def schema_of(name: str) -> Mapping[str, Any]:
    """A JSON Schema: a .json file, or the SCHEMA of a Python file that makes rows. Raises BadRequest."""
    if name.endswith(".json"):
        try:
            found = json.loads(Path(name).expanduser().read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BadRequest(f"no JSON Schema can be read at {name}: {error}", field="eval.exact_match.schema") from None
    else:
        found = getattr(_module(find(name, ".py")), "SCHEMA", None)
    if not isinstance(found, Mapping):
        raise BadRequest(f"{name} holds no JSON Schema: an object was expected, in a .json file or as SCHEMA in a .py file", field="eval.exact_match.schema")
    return found


def check_asked(asked: ExactPart, n_held_out: int) -> None:
    """Raises BadRequest for an exact match that could not be counted when all is done."""
    if asked.rows > n_held_out:
        raise BadRequest(f"eval.exact_match.rows={asked.rows:,} is more than the {n_held_out:,} rows that are held out. Hold out more (data.held_out), or ask "
                         f"for fewer", field="eval.exact_match.rows")
    if asked.schema is not None:
        read_source("compact", schema_of(asked.schema))


def _rows(file: Path, source: SourcePart, seed: int) -> Iterator[dict[str, Any]]:
    make_rows, n = getattr(_module(file), "rows", None), source.n
    assert n is not None
    if not callable(make_rows):
        raise BadRequest(f"{file} makes no rows: it needs a function rows(split, n, seed) that yields objects", field="data")
    count = 0
    for row in islice(make_rows(source.split, n, seed), n):
        count += 1
        if not isinstance(row, dict):
            raise BadData(f"row {count} of {file} is {row!r:.60}, and an object with columns was expected", [f"{file.name}:{count}"])
        yield row
    if count != n:
        raise BadData(f"{file} made {count:,} rows of the {n:,} that the recipe asks for ({source.split}). Ask for fewer, or let it make more", [str(file)])


def _module(file: Path) -> ModuleType:
    if not file.is_file():
        raise BadRequest(f"no file at {file}. Give one, or the name of a shipped one: {', '.join(shipped('.py'))}", field="data")
    spec = importlib.util.spec_from_file_location(f"pellucid_made_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadRequest(f"{file} cannot be run: {type(error).__name__}: {error}", field="data") from error
    return module

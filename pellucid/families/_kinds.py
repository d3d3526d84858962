"""A spec's values, held against the types spec.py declares: JSON may say anything anywhere."""
from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

from pellucid.errors import BadConfig
from pellucid.spec import DecoderSpec


def check_kinds(spec: DecoderSpec, where: str) -> None:
    """Raises BadConfig for a number that is text, a count that is a half, an eps that is not finite: what would fail later, far from here."""
    for path, value, hint in _fields(spec, "", set()):
        if fault := _fault(path.rpartition(".")[2], value, hint):
            raise BadConfig(f"{where} makes {path} {value!r:.60}, and {fault} was expected. Is the file as its authors wrote it?")


def _fields(node: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, declared type) of every plain field; a layer that stands in many places is visited once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for name, hint in typing.get_type_hints(type(node)).items():
        value = getattr(node, name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{path}{name}.", seen)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                yield from _fields(item, f"{path}{name}.{i}.", seen)
        else:
            yield path + name, value, hint


def _fault(name: str, value: Any, hint: Any) -> str:
    """What was expected of a value that does not fit its declared type; empty for one that does."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return ""
    if bool in kinds:
        return "" if isinstance(value, bool) else "true or false"
    if int in kinds:
        return "" if type(value) is int and value >= 0 else "a whole number from 0"  # spec.py itself says which may not be 0
    if float in kinds:
        fits = type(value) in (int, float) and math.isfinite(value) and (value > 0 or name not in ("theta", "factor")) and (value >= 0 or name != "eps")
        return "" if fits else "a positive number" if name in ("theta", "factor", "eps") else "a number"
    return "" if isinstance(value, str) else f"one of {hint}"

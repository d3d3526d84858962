"""One file a family, named after config.json's model_type (as weights.names.family_name spells it) and discovered, not registered."""
from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from pellucid.errors import UnsupportedModel, nearest
from pellucid.weights.names import family_name

NAMES: tuple[str, ...] = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def family(model_type: str) -> ModuleType:
    """The module of a family. Raises UnsupportedModel with the nearest names for one that has no file."""
    name = family_name(model_type)
    if name not in NAMES:
        near = nearest(name, NAMES, 0.4)
        hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(NAMES)}."
        raise UnsupportedModel(f"model_type {model_type!r} is not a family Pellucid runs. {hint} (docs/add-a-family.md shows how to add one)")
    return importlib.import_module(f"{__name__}.{name}")

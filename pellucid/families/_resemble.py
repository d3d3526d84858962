"""Which known families an unknown config.json resembles: each is asked to read it, and what it leaves unread is counted."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.errors import PellucidError
from pellucid.families import NAMES, family
from pellucid.families._config import Config
from pellucid.families._inert import INERT

_ANY_FAMILY = {"quantization_config", "num_nextn_predict_layers"}  # `describe` reads them, whatever the family


def resembling(raw: Mapping[str, Any], n: int = 3) -> list[tuple[str, int, int]]:
    """(family, keys it reads, keys that mean something), best first: of the families that can make a decoder of the file, reading over half of it.

    Among equals first the one that looks for fewest keys that are not there.
    """
    meant = {key for key, value in raw.items() if value is not None and key not in INERT and key not in _ANY_FAMILY}
    found = []
    for name in NAMES:
        config = Config({**raw, "model_type": name})
        try:
            family(name).spec(config)
        except (PellucidError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, IndexError):
            continue
        read = len(meant & config.read)
        if 2 * read > len(meant):
            found.append((-read, len(config.read - raw.keys()), name))
    return [(name, -read, len(meant)) for read, _, name in sorted(found)[:n]]


def likeness(raw: Mapping[str, Any]) -> str:
    """A sentence on what an unknown config resembles, and what to do; empty where it resembles nothing."""
    like = resembling(raw)
    if not like:
        return ""
    shown = ", ".join(f"{name} ({read} of {meant} keys read)" for name, read, meant in like)
    return (f"By its keys it resembles {shown}. If it is one of these under another name, set model_type to it: "
            f"a key nobody reads and a tensor without a place still stop the load.")

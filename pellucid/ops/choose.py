"""Which backend a model computes with: decided once, at load, and said."""
from __future__ import annotations

from pellucid.errors import BadRequest
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Ops
from pellucid.ops.native import Native
from pellucid.ops.panels import native
from pellucid.ops.reference import Reference

BACKENDS: dict[str, type[Reference]] = {**({"native": Native} if native else {}), "fused": Fused, "reference": Reference}


def choose(name: str = "auto") -> Ops:
    """The backend of that name; `auto` is the fastest that runs everywhere. Raises BadRequest for an unknown name."""
    if name == "auto":
        return Fused()
    if name == "native":
        return Native()  # which says why it is not there
    if name not in BACKENDS:
        raise BadRequest(f"ops={name!r} is not a backend (auto, {', '.join(BACKENDS)})", field="ops")
    return BACKENDS[name]()

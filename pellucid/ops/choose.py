"""Which backend a model computes with: decided once, at load, and said."""
from __future__ import annotations

from typing import Literal, get_args

from pellucid.errors import BadRequest
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Activations, Ops
from pellucid.ops.native import Native
from pellucid.ops.panels import native
from pellucid.ops.reference import Reference

BACKENDS: dict[str, type[Reference]] = {**({"native": Native} if native else {}), "fused": Fused, "reference": Reference}


def choose(name: str = "auto", activations: Activations | Literal["auto"] = "auto") -> Ops:
    """The backend of that name; `auto` is the fastest that is here. Activations: `auto` is int8 with the native kernels, and exact without.

    Raises BadRequest for an unknown name, and for native kernels that are not installed.
    """
    if activations not in ("auto", *get_args(Activations)):
        raise BadRequest(f"activations={activations!r} is not a way to multiply (auto, {', '.join(get_args(Activations))})", field="activations")
    if name == "auto":
        name = next(iter(BACKENDS))
    if name != "native" and name not in BACKENDS:
        raise BadRequest(f"ops={name!r} is not a backend (auto, native, {', '.join(b for b in BACKENDS if b != 'native')})", field="ops")
    backend: type[Reference] = BACKENDS.get(name, Native)  # which says why it is not there
    return backend() if activations == "auto" else backend(activations)

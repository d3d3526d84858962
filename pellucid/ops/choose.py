"""Which backend a model computes with: decided once, at load, and said."""
from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import torch

from pellucid.errors import BadRequest
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Activations, Ops
from pellucid.ops.native import Native
from pellucid.ops.panels import native
from pellucid.ops.reference import Reference
from pellucid.ops.training import Training

# By what they compute on: on a CPU, and on any other device. Triton's own is imported when it is asked for: it takes as long as a small model.
BACKENDS: dict[str, type[Reference]] = {**({"native": Native} if native else {}), "fused": Fused, "reference": Reference, "training": Training}
NAMES = ("auto", "native", "triton", "fused", "reference", "training")
CPU = torch.device("cpu")


def choose(name: str = "auto", activations: Activations | Literal["auto"] = "auto", device: torch.device = CPU) -> Ops:
    """The backend of that name; `auto` is the fastest that is here, for this device. Activations: `auto` is int8 with the native kernels, and exact without.

    Raises BadRequest for an unknown name, for kernels that are not installed, and for those of another kind of device.
    """
    if activations not in ("auto", *get_args(Activations)):
        raise BadRequest(f"activations={activations!r} is not a way to multiply (auto, {', '.join(get_args(Activations))})", field="activations")
    if name not in NAMES:
        raise BadRequest(f"ops={name!r} is not a backend ({', '.join(NAMES)})", field="ops")
    backend = _best(device) if name == "auto" else _named(name, device)
    return backend() if activations == "auto" else backend(activations)


def _best(device: torch.device) -> type[Reference]:
    if device.type == "cpu":
        return next(iter(BACKENDS.values()))
    return _named("triton", device) if device.type == "cuda" and find_spec("triton") else Fused


def _named(name: str, device: torch.device) -> type[Reference]:
    if name != "triton":
        if name == "native" and device.type != "cpu":
            raise BadRequest(f"ops='native' computes on the CPU, and device is {str(device)!r}. Leave it out, or say device='cpu'", field="ops")
        return BACKENDS.get(name, Native)  # which says why it is not there
    from pellucid.ops.triton.backend import Triton, interpreted

    if device.type != "cuda" and not interpreted():
        raise BadRequest(f"ops='triton' computes on a CUDA device, and device is {str(device)!r}. Leave it out", field="ops")
    return Triton

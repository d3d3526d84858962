"""Legacy `pytorch_model*.bin`: a pickle, read by torch's restricted loader only, which builds tensors and runs nothing."""
from __future__ import annotations

import pickle
import re
import textwrap
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pellucid.errors import BadCheckpoint, TruncatedFile, UnsafePickle
from pellucid.weights.header import LFS_POINTER
from pellucid.weights.safetensors import SPELLED

_NEXT = "A pickle can run any program on loading. Ask for the same weights as safetensors, or convert the file on a machine you can lose."


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a state dict. Mapped lazily where torch can (files written since torch 1.6), read whole otherwise.

    Tensors that share storage in the file share it here. Raises UnsafePickle for one that asks for more than tensors, TruncatedFile
    for one that ends too early, BadCheckpoint for anything but a dict of tensors.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith((b"PK", b"\x80")):  # a zip, or a bare pickle of protocol 2 or later, as torch 1.5 wrote
        hint = "a Git LFS pointer: fetch the file itself with git lfs pull" if start == LFS_POINTER else "is it the right file, and whole?"
        raise TruncatedFile(f"{path.name} ({path.stat().st_size:,} bytes) does not start as a torch file does, but with {start!r}: {hint}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it does not understand it refuses anyway
            # weights_only is the guard, and safe since torch 2.6 (CVE-2025-32434), the oldest that the package allows.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as e:
        raise _refused(path.name, str(e)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as e:
        if not path.exists():
            raise
        raise TruncatedFile(f"{path.name} ({path.stat().st_size:,} bytes) is not a whole torch file: {_first_line(e)}. Fetch it again.") from None
    if not isinstance(state, dict):
        raise BadCheckpoint(f"{path.name} holds a {type(state).__name__}, and a dict of tensors was expected")
    if others := [f"{name!r} ({type(value).__name__})" for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise BadCheckpoint(f"{path.name} holds {len(others)} entries that are not tensors, first: {', '.join(others[:3])}. "
                            f"Is it a training checkpoint? The model's own state dict is what is expected.")
    if odd := [f"{name} ({_kind(tensor)})" for name, tensor in state.items() if not _plain(tensor)]:
        raise BadCheckpoint(f"{path.name} holds {len(odd)} tensors that are not plain numbers, first: {', '.join(odd[:3])}. "
                            f"Fetch the weights as they were before they were packed, or as safetensors.")
    return {name: tensor.detach() for name, tensor in state.items()}


def _plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in SPELLED


def _kind(tensor: Tensor) -> str:
    """What a tensor is, told by what is odd about it: `torch.qint8`, `torch.sparse_coo torch.float32`, `meta torch.float32`."""
    layout = "" if tensor.layout is torch.strided else f"{tensor.layout} "
    return f"{layout}{'' if tensor.device.type == 'cpu' else f'{tensor.device} '}{tensor.dtype}"


def _refused(file: str, message: str) -> UnsafePickle:
    """The error for a pickle that torch's restricted loader stopped at."""
    asked = re.search(r"(?:GLOBAL|Unsupported global|Unsupported class|class) `?([\w.]+\.[\w.]+)", message)
    if asked:
        return UnsafePickle(f"{file} asks to load {asked[1]}, which is not a tensor, and was refused. {_NEXT}")
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", message)
    return UnsafePickle(f"{file} asks for more than tensors and was refused ({reason[1] if reason else _first_line(message)}). {_NEXT}")


def _first_line(e: object) -> str:
    """The first sentence of what torch says; its lines go on with advice and a C++ traceback."""
    lines = str(e).strip().splitlines()
    return textwrap.shorten(lines[0].split(". ")[0].rstrip("."), 200, placeholder=" ...") if lines else type(e).__name__

"""States that a run goes on from, bit for bit: what is trained, what the optimizer keeps, where the data is, and what random draws come next.

    out/state/step-00000120/   trained.safetensors, optimizer.safetensors, state.json      written beside and renamed: whole, or not there
"""
from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.train.loop import Progress, Run

FOLDER, BEST = "state", "best"
_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, run: Run, facts: Mapping[str, Any], *, keep: int, best: bool = False) -> Path:
    """Writes the state of a run that stands between two steps, and deletes all but the newest `keep`. facts: what must be the same to go on.

    best: as the best so far, beside the others, without what only going on needs.
    """
    place = folder / FOLDER / (BEST if best else f"step-{run.progress.step:08d}")
    draft = place.with_name(f".{place.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write(draft / "trained.safetensors", {name: p.detach() for name, p in run.trained.parameters.items()})
    if not best:
        _write(draft / "optimizer.safetensors", run.optimizer.state())
    state = {"progress": dataclasses.asdict(run.progress), "facts": dict(facts), "random": torch.get_rng_state().numpy().tobytes().hex()}
    with (draft / "state.json").open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(place, ignore_errors=True)
    os.replace(draft, place)
    for old in [] if best else states(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def states(folder: Path) -> list[Path]:
    """The whole states in a run's folder, the oldest first."""
    found = (folder / FOLDER).iterdir() if (folder / FOLDER).is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and (path / "state.json").is_file())


def load(place: Path, run: Run, facts: Mapping[str, Any]) -> None:
    """Puts a run where the state left it. Raises BadRequest for one of other settings or data, with what changed; BadCheckpoint for one that is not whole."""
    state = _read(place)
    if changed := [key for key in facts if state["facts"].get(key) != facts[key]]:
        told = "; ".join(f"{key} was {_short(state['facts'].get(key))} and is {_short(facts[key])}" for key in changed)
        raise BadRequest(f"{place} cannot be gone on from: {told}. Put it back as it was, or start anew in another folder (out.folder=...)", field="resume")
    put(place, run.trained.parameters)
    run.optimizer.load(_tensors(place / "optimizer.safetensors"))
    run.progress = Progress(**state["progress"])
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))


def put(place: Path, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """What a state has of what is trained. Raises BadCheckpoint where that is something else."""
    tensors = _tensors(place / "trained.safetensors")
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise BadCheckpoint(f"{place} holds other tensors than are trained: {', '.join(odd[:3])}. Is it another model's?")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[name])


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kind
        raise BadCheckpoint(f"{path} is no whole state: {error}. Go on from an older one") from None


def _read(place: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((place / "state.json").read_text())
        Progress(**state["progress"])
        return state if state["facts"].keys() and state["random"] else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{place} is no whole state: {error}. Go on from an older one") from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"

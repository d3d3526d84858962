"""States that a run goes on from, bit for bit: what is trained, what the optimizer keeps, where the data is, and what random draws come next.

    out/state/step-00000120/   trained.safetensors, optimizer.safetensors, state.json      written beside and renamed: whole, or not there
    out/state/best-00000080/   the same without the optimizer, of the lowest loss so far

A process may end at any moment, between any two of the lines below: the newest whole state is where the run goes on, and what it made after that it makes
again, the same. So nothing that a state needs is deleted before that state itself has left its place.
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
from pellucid.train.distributed import like, whole
from pellucid.train.loop import Progress, Run

FOLDER = "state"
_NONE = "not there"
_STATE, _BEST, _LEFT = re.compile(r"step-(\d{8})"), re.compile(r"best-(\d{8})"), re.compile(r"\..+\.part")


def save(folder: Path, run: Run, facts: Mapping[str, Any], *, keep: int, best: bool = False) -> Path:
    """Writes the state of a run that stands between two steps, and deletes all but the newest `keep`. facts: what must be the same to go on.

    best: as the best so far, in place of the one before, without what only going on needs.
    """
    place = folder / FOLDER / f"{'best' if best else 'step'}-{run.progress.step:08d}"
    trained = {name: _held(p, run) for name, p in run.trained.parameters.items()}  # shards are gathered by all processes, and the first one writes
    optimizer = {} if best else {name: _held(tensor, run) for name, tensor in run.optimizer.state().items()}
    if not run.group.first:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.iterdir():  # by a process that was killed while it wrote or deleted
        if _LEFT.fullmatch(left.name):
            shutil.rmtree(left)
    draft = place.with_name(f".{place.name}.part")
    draft.mkdir()
    _write(draft / "trained.safetensors", trained)
    if not best:
        _write(draft / "optimizer.safetensors", optimizer)
    state = {"progress": dataclasses.asdict(run.progress), "facts": dict(facts), "random": _random()}
    with (draft / "state.json").open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    _sync(draft)
    if place.is_dir():
        _remove(place)
    os.replace(draft, place)
    _sync(place.parent)
    for old in [each for each in _found(folder, _BEST) if each != place] if best else states(folder)[:-keep]:
        _remove(old)
    return place


def _held(tensor: Tensor, run: Run) -> Tensor:
    """All of it, where it is to be written; on other processes than the first nothing is kept."""
    found = whole(tensor.detach())
    return found if run.group.first else found.new_empty(0)


def states(folder: Path) -> list[Path]:
    """The whole states in a run's folder that it can be gone on from, the oldest first."""
    return _found(folder, _STATE)


def best(folder: Path) -> Path | None:
    """Where the weights of the lowest loss are; None where none were kept."""
    return next(reversed(_found(folder, _BEST)), None)


def load(place: Path, run: Run, facts: Mapping[str, Any]) -> None:
    """Puts a run where the state left it. Raises BadRequest for one of other settings or data, with what changed; BadCheckpoint for one that is not whole."""
    state = _read(place)
    was = state["facts"]
    if changed := [key for key in {**facts, **was} if was.get(key, _NONE) != facts.get(key, _NONE)]:
        told = "; ".join(f"{key} was {_short(was.get(key, _NONE))} and is {_short(facts.get(key, _NONE))}" for key in changed)
        raise BadRequest(f"{place} cannot be gone on from: {told}. Put it back as it was, or start anew in another folder (out.folder=...)", field="resume")
    put(place, run.trained.parameters)
    run.optimizer.load(_tensors(place / "optimizer.safetensors"))
    run.progress = Progress(**state["progress"])
    for device, text in state["random"].items():
        drawn = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        torch.set_rng_state(drawn) if device == "cpu" else torch.cuda.set_rng_state(drawn, device)


def put(place: Path, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """What a state has of what is trained. Raises BadCheckpoint where that is something else."""
    tensors = _tensors(place / "trained.safetensors")
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise BadCheckpoint(f"{place} holds other tensors than are trained: {', '.join(odd[:3])}. Is it another model's?")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(like(tensors[name], p))


def _found(folder: Path, name: re.Pattern[str]) -> list[Path]:
    found = (folder / FOLDER).iterdir() if (folder / FOLDER).is_dir() else ()
    return sorted(path for path in found if name.fullmatch(path.name))


def _remove(place: Path) -> None:
    """First from its place, at once, then file by file: what is half deleted is no state."""
    left = place.with_name(f".{place.name}.old.part")
    os.replace(place, left)
    shutil.rmtree(left)


def _sync(folder: Path) -> None:
    """A rename outlives a power cut once the folder it stands in is written."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _random() -> dict[str, str]:
    """What each device draws next."""
    drawn = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        drawn |= {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return {device: state.numpy().tobytes().hex() for device, state in drawn.items()}


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

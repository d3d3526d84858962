"""The GPUs of this machine, asked of their drivers: what `nvidia-smi` says, and what Linux says of AMD's. No torch here.

A card that is seen but does not say its memory is told as such; nothing is guessed from a name. Bandwidth, rates and watts come from the catalog,
where a row of it lists the name that the driver reports, letter for letter: a laptop's RTX 4090 is not a desktop's.
"""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pellucid.catalog.hardware import Hardware, table

_ASKED = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")  # MiB: nvidia-smi --help-query-gpu
_PATIENCE = 10  # seconds: a driver that sleeps between its users takes one or two to wake
_AMD = "0x1002"  # PCI's number of that vendor


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU. memory, free: bytes, None where its driver does not say (one that shares the machine's memory has none of its own)."""

    name: str
    memory: int | None = None
    free: int | None = None


def cards(root: Path = Path("/")) -> tuple[Card, ...]:
    """The GPUs here, NVIDIA's first, each vendor's in its driver's order; none where no driver is."""
    return (*(_by_smi() or _by_driver(root)), *_by_sysfs(root))


def places(found: Sequence[Card]) -> list[Hardware]:
    """One place a kind of card that says its memory, as `gpu0`: the one of the kind with the most of it free, and its number as the driver counts."""
    kinds: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for i, card in enumerate(found):
        if card.memory is not None:
            kinds.setdefault((card.name, card.memory), []).append((card.memory if card.free is None else card.free, -i))
    reported = {name: row for row in table().values() for name in row.reported}
    told = []
    for (name, _), each in kinds.items():
        free, i = max(each)
        row = reported.get(name, Hardware(key="", name=name, kind="here", memory=free))
        told.append(replace(row, key=f"gpu{-i}", name=f"{name}, in this machine", kind="here", memory=free, rent=None))  # it is owned already
    return told


def describe(found: Sequence[Card]) -> str:
    """Such as `2 × NVIDIA L4`; of several kinds, one after the other."""
    names = [card.name if card.memory is not None else f"{card.name} (does not say its memory)" for card in found]
    return " · ".join(name if (n := names.count(name)) == 1 else f"{n} × {name}" for name in dict.fromkeys(names)) or "no GPU"


def _by_smi() -> tuple[Card, ...]:
    """What nvidia-smi says; nothing where it is missing, or finds no driver."""
    if (program := shutil.which("nvidia-smi")) is None:
        return ()
    try:
        done = subprocess.run([program, *_ASKED], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if done.returncode:
        return ()
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in done.stdout.splitlines() if line.count(",") >= 2]
    return tuple(Card(name=name, memory=_mebibytes(memory), free=_mebibytes(free)) for name, memory, free in rows)


def _mebibytes(told: str) -> int | None:
    """Bytes; None for `[N/A]` and the like."""
    return int(told) << 20 if told.isdecimal() else None


def _by_driver(root: Path) -> tuple[Card, ...]:
    """NVIDIA's cards as their driver lists them where nvidia-smi is not there, as in most containers: by name alone."""
    told = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = dict(line.split(":", 1) for line in _text(file).splitlines() if ":" in line)
        told.append(Card(name=lines.get("Model", "an NVIDIA GPU").strip()))
    return tuple(told)


def _by_sysfs(root: Path) -> tuple[Card, ...]:
    """AMD's cards: https://docs.kernel.org/gpu/amdgpu/driver-misc.html, `mem_info_vram_total` and `_used` in bytes, `product_name` on servers' cards."""
    told = []
    for device in sorted((root / "sys/class/drm").glob("card*/device")):
        if _text(device / "vendor") != _AMD or "-" in device.parent.name:  # card0-DP-1 is a plug of card0
            continue
        total, used = (_number(device / f"mem_info_vram_{what}") for what in ("total", "used"))
        told.append(Card(name=_text(device / "product_name") or f"AMD GPU {_text(device / 'device')}".strip(), memory=total,
                         free=None if total is None or used is None else max(0, total - used)))
    return tuple(told)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None

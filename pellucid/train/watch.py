"""Who watches a run: a line of JSON an event, and TensorBoard. The loop knows neither."""
from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pellucid.errors import MissingExtra
from pellucid.train.loop import Evaluated, Event, Stepped

LOG, BOARD = "log.jsonl", "tensorboard"
Observer = Callable[[Event], None]


class JsonLines:
    """Every event as it comes, one line each, on the disk before the next step: `name` of the event, its facts, and the memory the process holds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LOG).open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        told: dict[str, Any] = {"event": type(event).__name__.lower(), **dataclasses.asdict(event), "memory_bytes": resident_bytes()}
        self._file.write(json.dumps(told) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Loss, rate, norm and speed of every step, and what held-out rows say, as TensorBoard's scalars. Raises MissingExtra without tensorboard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("writing for TensorBoard", "train") from None
        self._writer = SummaryWriter(str(folder / BOARD))  # type: ignore[no-untyped-call]

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            scalars = {"train/loss": event.loss, "train/rate": event.lr, "train/norm": event.norm, "train/tokens_per_second": event.tokens / event.seconds,
                       "memory/bytes": float(resident_bytes()), **{f"train/{name}": value for name, value in event.told.items()}}
        elif isinstance(event, Evaluated):
            scalars = {"held_out/loss": event.loss, **{f"held_out/{name}": value for name, value in event.told.items()}}
        else:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, event.step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """What JsonLines wrote, of every part of a run that went on; of a step that was made twice, after a state, the later."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last one
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for event in events:
        kept[event["event"], event["step"]] = event
    return list(kept.values())


def resident_bytes() -> int:
    """Memory this process holds."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

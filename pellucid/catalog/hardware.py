"""Hardware: the catalog's, and this machine. No torch here.

`hardware.toml` holds what was read, with its sources. This machine is asked: its cores, instructions and memory, and, where it is wanted, how fast
it reads memory, which takes a second.
"""
from __future__ import annotations

import datetime
import os
import platform
import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.errors import BadRequest, did_you_mean, nearest

_SETS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "asimddp", "i8mm", "sve", "asimd")
_READ_BYTES, _SQUARE = 256 << 20, 1024  # of one reading, at least; the side of the matrices whose product is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine, or one card. memory: bytes a model may take. bandwidth: bytes a second. rates: dtype -> FLOP/s. rent: US dollars an hour.

    measured: whether bandwidth and rates were measured here, or stand in a data sheet. reported: the names drivers give it, letter for letter.
    """

    key: str
    name: str
    kind: str
    memory: int
    bandwidth: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    watts: float | None = None
    rent: float | None = None
    measured: bool = False
    instructions: tuple[str, ...] = ()
    cores: int | None = None
    reported: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def table() -> dict[str, Hardware]:
    """Every row by key."""
    return {key: Hardware(key=key, sources={source: tuple(what) for source, what in row["from"].items()}, reported=tuple(row.get("reported", ())),
                          **{name: value for name, value in row.items() if name not in ("from", "reported")}) for key, row in _read()["hardware"].items()}


def find(asked: str) -> Hardware:
    """One row by its key, in any case. Raises BadRequest with the nearest keys."""
    rows = table()
    if (key := asked.lower().replace(" ", "-").replace("_", "-")) not in rows:
        raise BadRequest(f"--on {asked!r} is no hardware the catalog knows ({', '.join(rows)}).{did_you_mean(nearest(key, rows))}", field="on")
    return rows[key]


def sources() -> dict[str, str]:
    """Where numbers were read, by the key that rows name."""
    return dict(_read()["sources"])


def as_of() -> datetime.date:
    """When they were read."""
    day: datetime.date = _read()["as_of"]
    return day


def grid(asked: str) -> float:
    """Grams of CO2 a kilowatt-hour: of a land that was read, or as a number says. Raises BadRequest."""
    known: dict[str, float] = _read()["grid"]
    if asked.lower() in known:
        return known[asked.lower()]
    try:
        grams = float(asked)
    except ValueError:
        grams = -1
    if grams < 0:
        raise BadRequest(f"--grid {asked!r} is neither grams of CO2 a kilowatt-hour nor one of {', '.join(known)}", field="grid")
    return grams


def this_machine(root: Path = Path("/"), *, measure: bool = False) -> Hardware:
    """What is here. measure: read memory and multiply matrices for about a second. Raises BadRequest where nothing says how much memory there is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = _cpu(root)
    memory = _memory(root)
    # Twice what the last cache holds, or what was read stays there: servers have caches of half a GB.
    bandwidth, rate = (read_bandwidth(cores, min(max(_READ_BYTES, 2 * _cached(root)), memory // 4)), multiply_rate()) if measure else (None, None)
    return Hardware(key="here", name=f"this machine: {cores} cores, {facts[0]}", kind="here", memory=memory, bandwidth=bandwidth,
                    rates={} if rate is None else {"f32": rate}, measured=measure, instructions=facts[1], cores=cores)


def read_bandwidth(threads: int, n_bytes: int = _READ_BYTES, seconds: float = 0.7) -> float:
    """Bytes a second that so many threads read together, the middle of as many readings as the time allows."""
    import numpy as np
    with ThreadPoolExecutor(threads) as pool:  # filling and summing give the lock back while they run
        shares = list(pool.map(lambda _: np.ones(n_bytes // 8 // threads, dtype=np.uint64), range(threads)))
        rates, until = [], time.perf_counter() + seconds
        while not rates or time.perf_counter() < until:
            started = time.perf_counter()
            list(pool.map(np.add.reduce, shares))
            rates.append(sum(share.nbytes for share in shares) / (time.perf_counter() - started))
    return sorted(rates)[len(rates) // 2]


def multiply_rate(seconds: float = 0.3) -> float:
    """FLOP/s of products of float32 matrices, the best of as many as the time allows."""
    import numpy as np
    a = np.ones((_SQUARE, _SQUARE), dtype=np.float32)
    a @ a
    best, until = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < until:
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * _SQUARE ** 3 / (time.perf_counter() - started))
    return best


def _memory(root: Path) -> int:
    """Bytes that may still be taken: what Linux says is available, a container's limit; elsewhere all that is built in."""
    told = []
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        told.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = root / "sys/fs/cgroup"
        told.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max": no limit
        pass
    if not told and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        told.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if not told:
        raise BadRequest("nothing here says how much memory there is. Say it: --memory 16GB", field="memory")
    return max(0, min(told))


def _cached(root: Path) -> int:
    """Bytes of the last cache; 0 where nothing says."""
    try:
        told = (root / "sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(told[:-1]) * {"K": 2**10, "M": 2**20}[told[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    """The processor's name and those of its instruction sets that matter here."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    return lines.get("model name") or platform.machine(), tuple(name for name in _SETS if name in flags)


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "hardware.toml").read_text("utf8"))

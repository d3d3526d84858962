"""Whether a model fits the memory there is, asked before its weights are copied."""
from __future__ import annotations

from pathlib import Path

import torch

from pellucid import cost
from pellucid.errors import OutOfMemoryBudget
from pellucid.model.report import size
from pellucid.spec import DecoderSpec

CACHE_TOKENS = 4096  # a modest conversation, or the whole context of a model that has less
# Limit, use, and the line of `stat` with what the system takes back when asked: control groups of version 2 and 1, as a container sees its own.
_GROUPS = (("memory.max", "memory.current", "memory.stat", "file"),
           ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"))


def check_memory(name: str, spec: DecoderSpec, dtype: torch.dtype, in_place: int, device: torch.device, available: int | None) -> None:
    """Raises OutOfMemoryBudget where what must be held does not fit: the weights that are copied, and a cache.

    in_place: bytes of weights that are used where the mapped files lie; the system reads and drops their pages as it needs to.
    available: bytes; None where nothing says, and then nothing is refused.
    """
    copied, tokens = max(0, cost.parameters(spec) * dtype.itemsize - in_place), min(spec.n_ctx, CACHE_TOKENS)
    cache = tokens * cost.cache_bytes_per_token(spec, dtype.itemsize)
    if available is None or copied + cache <= available:
        return
    smaller = f"Try --dtype bfloat16 ({size(cost.parameters(spec) * 2)})" if copied and dtype.itemsize > 2 else "Take a smaller model"
    kept = " (--dtype auto uses the files in place, on the CPU)" if copied else ""
    raise OutOfMemoryBudget(f"{name!r} needs {size(copied)} for weights + {size(cache)} for a cache of {tokens:,} tokens, {size(available)} are free on "
                            f"{device}. {smaller}{kept}, or close what holds memory.", needed_bytes=copied + cache, available_bytes=available)


def room_to_copy(spec: DecoderSpec, dtype: torch.dtype, available: int | None) -> bool:
    """Whether weights that could stay where they are mapped may be copied: half of what is free holds them."""
    return available is None or 2 * cost.parameters(spec) * dtype.itemsize <= available


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that may still be taken, as CUDA says or Linux, the limit of a container included; None where nobody says."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    try:
        told = [_table(root / "proc/meminfo")["MemAvailable:"] * 1024]
    except (OSError, KeyError, ValueError):
        return None
    for limit, used, stat, reclaimable in _GROUPS:
        group = root / "sys/fs/cgroup"
        try:
            told.append(int((group / limit).read_text()) - int((group / used).read_text()) + _table(group / stat).get(reclaimable, 0))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(0, min(told))


def _table(path: Path) -> dict[str, int]:
    """`name number ...` lines."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}

"""Whether a model fits the memory there is, asked before its weights are copied; and what the C library does with memory that was used."""
from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from pellucid import cost
from pellucid.errors import OutOfMemoryBudget
from pellucid.model.report import PLAIN, size
from pellucid.spec import DecoderSpec

CACHE_TOKENS = 4096  # a modest conversation, or the whole context of a model that has less
SHARE = 0.4  # of the memory that is free when an engine is made, for its cache, where nobody says how much that may take
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SHAPES = 24  # of products whose kernels are kept while training: a step of a dense decoder has about twelve
_LARGEST, _KEPT = 32 << 20, 256 << 20  # bytes. The first is the most that glibc takes from its heap; more than the second, free atop of it, is given back
# Limit, use, and the line of `stat` with what the system takes back when asked: control groups of version 2 and 1, as a container sees its own.
_GROUPS = (("memory.max", "memory.current", "memory.stat", "file"),
           ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"))


def page_dtype(formats: Iterable[str], dtype: torch.dtype) -> torch.dtype:
    """What keys and values are kept in where nobody says: float16 where weights of these formats are packed and computed with in float32, else this dtype.

    float16 and not bfloat16: it says them eight times as finely, and llama.cpp keeps them so. What it loses: docs/LOG.md.
    """
    return torch.float16 if dtype == torch.float32 and any(format.lower() not in PLAIN for format in formats) else dtype


def check_memory(name: str, spec: DecoderSpec, dtype: torch.dtype, in_place: int, device: torch.device, available: int | None, *,
                 kept: torch.dtype | None = None) -> None:
    """Raises OutOfMemoryBudget where what must be held does not fit: the weights that are copied, and a cache.

    in_place: bytes of weights that are used where the mapped files lie; the system reads and drops their pages as it needs to. kept: what the cache
    is made of, where that is not the dtype.
    available: bytes; None where nothing says, and then nothing is refused.
    """
    copied, tokens = max(0, cost.parameters(spec) * dtype.itemsize - in_place), min(spec.n_ctx, CACHE_TOKENS)
    cache = tokens * cost.cache_bytes_per_token(spec, (kept or dtype).itemsize)
    if available is None or copied + cache <= available:
        return
    smaller = f"Try --dtype bfloat16 ({size(cost.parameters(spec) * 2)})" if copied and dtype.itemsize > 2 else "Take a smaller model"
    kept = " (--dtype auto uses the files in place, on the CPU)" if copied else ""
    raise OutOfMemoryBudget(f"{name!r} needs {size(copied)} for weights + {size(cache)} for a cache of {tokens:,} tokens, {size(available)} are free on "
                            f"{device}. {smaller}{kept}, or close what holds memory.", needed_bytes=copied + cache, available_bytes=available)


def keep_few_kernels() -> None:
    """Has oneDNN, and torch beside it, keep the kernels of so many shapes and not of a thousand each, unless the environment says otherwise.

    Rows of many lengths make a new shape every step, and what belongs to a shape stays: 20 MB a step of a model of 7 million parameters (docs/LOG.md). Heard
    where nothing was multiplied yet.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_SHAPES))


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


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Makes glibc keep up to 256 MB of freed memory for the next tensor. False where another C library runs, or who started the process has chosen.

    Else every pass gives the top of the heap back and asks for it again, page by page: a tenth to a third of a prompt's time (docs/LOG.md). For
    the whole process, as mallopt(3) has it; the greatest amount ever held does not grow by it, only what stays between two passes.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") or "glibc.malloc" in value for name, value in environment.items()):
        return False
    mallopt = ctypes.CDLL(None).mallopt  # both: setting one freezes the other, which adapts otherwise
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def _table(path: Path) -> dict[str, int]:
    """`name number ...` lines."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}

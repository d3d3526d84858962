"""A model that does not fit is refused before its weights are copied; what the files hold in place is not counted."""
from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pellucid import cost
from pellucid.errors import OutOfMemoryBudget
from pellucid.model import load
from pellucid.model.load import load_decoder
from pellucid.model.memory import available_bytes, keep_freed_memory
from tests.weights.build import llama, write

CPU = torch.device("cpu")


def test_what_does_not_fit_says_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", llama(torch.bfloat16), dtype="bfloat16")
    spec = load_decoder(folder, device="cpu")[0].spec
    weights, cache = 4 * cost.parameters(spec), spec.n_ctx * cost.cache_bytes_per_token(spec, 4)
    monkeypatch.setattr(load, "available_bytes", lambda device: weights + cache)
    load_decoder(folder, device="cpu", dtype="float32")
    monkeypatch.setattr(load, "available_bytes", lambda device: weights + cache - 1)
    with pytest.raises(OutOfMemoryBudget) as raised:
        load_decoder(folder, device="cpu", dtype="float32")
    assert str(raised.value) == (
        f"'m' needs {weights / 1000:.1f} kB for weights + {cache / 1000:.1f} kB for a cache of {spec.n_ctx} tokens, "
        f"{(weights + cache - 1) / 1000:.1f} kB are free on cpu. Try --dtype bfloat16 ({weights / 2000:.1f} kB) "
        f"(--dtype auto uses the files in place, on the CPU), or close what holds memory.")
    assert (raised.value.needed_bytes, raised.value.available_bytes) == (weights + cache, weights + cache - 1)


def test_weights_that_stay_in_the_files_need_no_memory_but_the_cache_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", llama(torch.bfloat16), dtype="bfloat16")
    spec = load_decoder(folder, device="cpu")[0].spec
    cache = spec.n_ctx * cost.cache_bytes_per_token(spec, 2)
    monkeypatch.setattr(load, "available_bytes", lambda device: cache)
    load_decoder(folder, device="cpu")
    monkeypatch.setattr(load, "available_bytes", lambda device: cache - 1)
    with pytest.raises(OutOfMemoryBudget, match=r"'m' needs 0 bytes for weights \+ .* are free on cpu\. Take a smaller model, or close what holds memory\."):
        load_decoder(folder, device="cpu")
    monkeypatch.setattr(load, "available_bytes", lambda device: None)  # nobody says: nothing is refused
    load_decoder(folder, device="cpu")


def group(root: Path, **files: str) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text("MemTotal:       9000 kB\nMemFree:  1 kB\nMemAvailable:    5000 kB\nHugePages_Total:  0\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_free_memory_is_what_linux_says_within_the_limit_of_the_container(tmp_path: Path) -> None:
    assert available_bytes(CPU, tmp_path) is None
    group(tmp_path)
    assert available_bytes(CPU, tmp_path) == 5_120_000
    group(tmp_path, memory_dot_max="max\n", memory_dot_current="7\n", memory_dot_stat="anon 3\nfile 2\n")
    assert available_bytes(CPU, tmp_path) == 5_120_000
    group(tmp_path, memory_dot_max="4000000\n", memory_dot_current="3000000\n", memory_dot_stat="anon 1\nfile 500000\n")
    assert available_bytes(CPU, tmp_path) == 1_500_000
    group(tmp_path, memory__memory_dot_limit_in_bytes="900\n", memory__memory_dot_usage_in_bytes="1000\n", memory__memory_dot_stat="total_cache 300\n")
    assert available_bytes(CPU, tmp_path) == 200
    assert available_bytes(torch.device("meta"), tmp_path) is None


FAULTS = """
import ctypes, resource, sys
from pellucid.model.memory import keep_freed_memory
assert sys.argv[1] == "adapting" or keep_freed_memory({})
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def layer():
    parts = [libc.malloc(size << 20) for size in (1, 3, 9, 27)]
    for part, size in zip(parts, (1, 3, 9, 27)):
        ctypes.memset(part, 1, size << 20)
    for part in parts:
        libc.free(part)
layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.linux
def test_freed_memory_is_there_for_the_next_tensor_without_a_page_fault() -> None:
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory({})
        return
    kept, adapting = (int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
                      for how in ("kept", "adapting"))
    assert kept < 100 < adapting


def test_who_started_the_process_chooses_its_allocator() -> None:
    assert not keep_freed_memory({"MALLOC_ARENA_MAX": "2"})
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"})

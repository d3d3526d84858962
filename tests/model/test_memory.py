"""A model that does not fit is refused before its weights are copied; what the files hold in place is not counted."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid import cost
from pellucid.errors import OutOfMemoryBudget
from pellucid.model import load
from pellucid.model.load import load_decoder
from pellucid.model.memory import available_bytes
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

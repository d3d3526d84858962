"""Products with packed weights on the CPU, format by format: GB/s of weights read and GOP/s, beside torch's own products and the speed of copying.

    python benchmarks/kernels.py [--rows 1,8,512] [--shape 5632x2048] [--formats Q4_0,Q4_K] [--variant avx2] [--threads 2] [--seconds 0.5]

A matrix is one of several that together are larger than the caches, taken in turn, as a model's layers are. Each line is the median of adjacent
rounds in which every contestant runs once; a GOP is 10^9 multiplications and as many additions, two operations each. Formats that are stored in
about as many bits are compared with each other, and all with torch's bfloat16: ratios, not absolute times.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pellucid.ops.native import Native
from pellucid.ops.panels import Panels, native
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows

BEYOND_CACHES = 600e6  # bytes of weights taken in turn
ROUNDS = 7


def packed(name: str, F: int, D: int) -> PackedRows:
    """Random bits: how fast they are multiplied does not depend on what they mean, as long as scales are not denormal."""
    format = BY_NAME[name]
    return PackedRows(torch.randint(0x20, 0x3c, (F, D // format.n_numbers * format.n_bytes), dtype=torch.uint8), name)


def seconds_each(run: Callable[[int], object], n: int) -> float:
    started = time.perf_counter()
    for i in range(n):
        run(i)
    return (time.perf_counter() - started) / n


def copy_bandwidth() -> float:
    """Bytes read and written in a second, by torch's copy."""
    a = torch.ones(100_000_000, dtype=torch.float32)
    b = torch.empty_like(a)
    return 2 * a.nbytes / statistics.median(seconds_each(lambda _: b.copy_(a), 1) for _ in range(5))


def read_bandwidth() -> float:
    a = torch.ones(150_000_000, dtype=torch.float32)
    return a.nbytes / statistics.median(seconds_each(lambda _: a.sum(), 1) for _ in range(5))


def contestants(names: list[str], F: int, D: int, ops: Native) -> dict[str, tuple[list[torch.Tensor | Panels], int]]:
    """Name -> (copies of one matrix, bytes of one in its file)."""
    out: dict[str, tuple[list[torch.Tensor | Panels], int]] = {}
    for name in names:
        rows = packed(name, F, D)
        panels = Panels.of(rows)
        out[name] = [panels, *(Panels(panels.bytes.clone(), name, F, D) for _ in range(int(BEYOND_CACHES // rows.nbytes)))], rows.nbytes
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.randn(F, D).to(dtype)
        out[f"torch {str(dtype).removeprefix('torch.')}"] = [weight.clone() for _ in range(int(BEYOND_CACHES // weight.nbytes) + 1)], weight.nbytes
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,512")
    parser.add_argument("--shape", default="5632x2048", help="F x D of the weight")
    parser.add_argument("--formats", default=",".join(native.formats()))
    parser.add_argument("--variant", choices=native.variants())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="of one contestant in one round")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    ops, (F, D) = Native(variant=asked.variant), map(int, asked.shape.split("x"))
    print(f"{ops.describe()}\n{asked.threads} threads · {F} x {D} · copies {copy_bandwidth() / 1e9:.1f} GB/s, reads {read_bandwidth() / 1e9:.1f} GB/s")
    for T in map(int, asked.rows.split(",")):
        found: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        # One format after another, not all at once: together they would not fit in memory. torch's bfloat16 stands beside each of them.
        for name in asked.formats.split(","):
            there = contestants([name], F, D, ops)
            runs, x_TD = {}, torch.randn(T, D)
            for who, (copies, nbytes) in there.items():
                x = x_TD if isinstance(copies[0], Panels) else x_TD.to(copies[0].dtype)
                runs[who], sizes[who] = (lambda i, x=x, copies=copies: ops.matmul(x, copies[i % len(copies)])), nbytes
            n = {who: max(1, int(asked.seconds / seconds_each(run, 2))) for who, run in runs.items()}
            for _ in range(ROUNDS):
                for who, run in runs.items():
                    found.setdefault(who, []).append(seconds_each(run, n[who]))
        print(f"\n{T} rows\n{'':16}{'us':>9}{'GB/s':>8}{'GOP/s':>8}   spread")
        for who, times in found.items():
            median, low, high = statistics.median(times), min(times), max(times)
            print(f"{who:16}{1e6 * median:9.0f}{sizes[who] / median / 1e9:8.1f}{2 * F * D * T / median / 1e9:8.0f}   {low / median:.2f}-{high / median:.2f}")


if __name__ == "__main__":
    main()

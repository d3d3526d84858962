"""What the cache may take is what it takes: measured on a process of its own, not counted from shapes."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

MIB = 1 << 20
SLACK = 16 * MIB  # of activations, which a warm-up has mostly made already, and of the allocator's habits

BEGIN = """
import os
import pellucid
from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, Sampling

MIB = 1 << 20

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

model = pellucid.load("shipped")
"""
FULL = BEGIN + """
asked = [Request(prompt_ids=[5 + (i * j) % 8000 for j in range(900)], sampling=Sampling(temperature=0), max_tokens=2) for i in range(1, 12)]
Engine(model.decoder, cache_bytes=16 * MIB, max_rows=16).run(asked[:4])
before = resident()
engine = Engine(model.decoder, cache_bytes=48 * MIB, max_rows=16)
results = engine.run(asked)
print(resident() - before, engine.cache.n_bytes, len(results))
"""
EMPTY = BEGIN + """
Engine(model.decoder, cache_bytes=16 * MIB)
before = resident()
engine = Engine(model.decoder, cache_bytes=256 * MIB)
print(resident() - before, engine.cache.n_bytes, all(pool.data_ptr() % 64 == 0 and not pool[-1].any() for layer in engine.cache.pools for pool in layer))
"""


def said(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"})
    return done.stdout.split()


@pytest.mark.linux
def test_a_full_cache_takes_the_memory_it_was_given_and_no_more() -> None:
    taken, counted, n = map(int, said(FULL))
    assert n == 11
    assert counted <= 48 * MIB
    assert 0.8 * 48 * MIB < taken < 48 * MIB + SLACK, f"{taken / MIB:.0f} MiB of 48"


@pytest.mark.linux
def test_pages_that_nobody_wrote_to_take_no_memory() -> None:
    taken, counted, zero = said(EMPTY)
    assert int(counted) > 250 * MIB
    assert int(taken) < SLACK
    assert zero == "True"

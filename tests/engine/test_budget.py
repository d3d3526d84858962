"""What the cache may take is what it takes: measured on the process, not counted from shapes."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

import pellucid
from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, Sampling

MIB = 1 << 20
SLACK = 16 * MIB  # of activations, which a warm-up has mostly made already, and of the allocator's habits


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.linux
def test_a_full_cache_takes_the_memory_it_was_given_and_no_more() -> None:
    model = pellucid.load("shipped")
    asked = [Request(prompt_ids=[5 + (i * j) % 8000 for j in range(900)], sampling=Sampling(temperature=0), max_tokens=2) for i in range(1, 12)]
    Engine(model.decoder, cache_bytes=16 * MIB, max_rows=16).run(asked[:4])
    given = 48 * MIB
    before = resident()
    engine = Engine(model.decoder, cache_bytes=given, max_rows=16)
    results = [one for one, in engine.run(asked)]
    taken = resident() - before
    assert len(results) == len(asked)
    assert engine.cache.n_bytes <= given
    assert 0.8 * given < taken < given + SLACK, f"{taken / MIB:.0f} MiB of {given / MIB:.0f}"


@pytest.mark.linux
def test_pages_that_nobody_wrote_to_take_no_memory() -> None:
    decoder = pellucid.load("shipped").decoder
    Engine(decoder, cache_bytes=16 * MIB)
    before = resident()
    engine = Engine(decoder, cache_bytes=256 * MIB)
    assert engine.cache.n_bytes > 250 * MIB
    assert resident() - before < SLACK
    assert all(pool.data_ptr() % 64 == 0 and not pool[-1].any() for layer in engine.cache.pools for pool in layer)

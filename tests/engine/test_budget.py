"""What the cache may take is what it takes, measured on a process of its own and not counted from shapes; and requests leave nothing behind."""
from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, Sampling
from pellucid.engine.speculate import PromptLookup, Proposer
from tests.engine.test_engine import all_free, pages, small

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


def serve(engine: Engine, seed: int, n: int) -> int:
    """Blocks of memory that Python has given out after so many requests: some begin alike, some are cancelled, some dropped, some scored or embedded."""
    rng, kept = random.Random(seed), []
    for i in range(n):
        ids = [3 + j % 40 for j in range(40)] if i % 4 == 0 else [rng.randrange(3, engine.spec.n_vocab) for _ in range(rng.choice([3, 20, 70]))]
        generation = engine.submit(Request(prompt_ids=ids, sampling=Sampling(temperature=0.8 * (i % 2), seed=i), max_tokens=6, logprobs=True,
                                           prompt_logprobs=2 if i % 5 == 0 else None))
        if i % 7 == 0:
            generation.cancel()
        elif i % 11 == 0:
            next(generation)  # and nobody takes the others
        else:
            kept.append(generation)
        if i % 25 == 0:
            engine.score([(ids, [5, 6])])
            engine.embed([ids])
    while not all(g.finished for g in kept):
        engine.step()
    assert all(g.result().token_ids for g in kept)
    del kept, generation
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.parametrize("proposer", [lambda: None, PromptLookup], ids=["plain", "drafts"])
def test_requests_leave_nothing_behind(proposer: Callable[[], Proposer | None]) -> None:
    decoder = small("llama-biases")
    engine = Engine(decoder, cache_bytes=pages(decoder, 16), max_rows=6, step_tokens=80, proposer=proposer())
    blocks = [serve(engine, seed, 100) for seed in range(5)]
    # What a request leaves is left in every hundred; lists of free objects, which Python keeps, and what torch caches fill up and then stay.
    assert min(after - before for before, after in pairwise(blocks[1:])) < 50, f"of 100 requests each: {blocks}"
    assert all_free(engine)

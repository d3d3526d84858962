"""Several passes in one call of the plan: the same ids as one by one, and no more of them than may be."""
from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from pellucid.engine.burst import MOST
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.errors import PellucidError
from tests.engine.test_engine import GREEDY, all_free, pages
from tests.engine.test_passes import small

pytestmark = pytest.mark.native
NAMES = ["llama-biases", "mistral-window", "bloom-released"]  # past a window's pages, learned positions


def one_by_one(asked: Request) -> Request:
    return dataclasses.replace(asked, ahead=False)


def greedy(n: int, length: int = 9, first: int = 3, **facts) -> Request:
    return Request(prompt_ids=list(range(first, first + length)), max_tokens=n, sampling=GREEDY, **facts)


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every burst to come how many rows and passes."""
    bursts: list[tuple[int, int]] = []
    run = engine.bursts.run
    monkeypatch.setattr(engine.bursts, "run", lambda sequences, n: bursts.append((len(sequences), len(came := run(sequences, n)))) or came)
    return bursts


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_single_steps(name, monkeypatch):
    engine, rng = Engine(small(name, deterministic=True)), random.Random(3)
    asked = [greedy(rng.randrange(2, 70), rng.randrange(1, 60), i) for i in range(5)]
    expected = [one.token_ids for [one] in engine.run(map(one_by_one, asked))]
    bursts = counted(engine, monkeypatch)
    assert [one.token_ids for [one] in engine.run(asked)] == expected
    assert max(n for _, n in bursts) == MOST
    assert {rows for rows, _ in bursts} >= {1, 2}
    assert engine.report().n_output_tokens == 2 * sum(map(len, expected))
    assert all_free(engine)


def test_a_stop_id_ends_a_burst_and_others_go_on():
    engine = Engine(small("llama-biases", deterministic=True))
    [[whole]], [[other]] = engine.run([greedy(40)]), engine.run([greedy(40, 20)])
    stop = next(i for i in whole.token_ids[5:] if i not in whole.token_ids[:5] and i not in other.token_ids)
    n = whole.token_ids.index(stop) + 1
    before = engine.report().n_output_tokens
    [[stopped], [went]] = engine.run([greedy(40, stop_ids=frozenset([stop])), greedy(40, 20)])
    assert (stopped.token_ids, stopped.finish_reason) == (whole.token_ids[:n], "stop")
    assert went.token_ids == other.token_ids
    assert engine.report().n_output_tokens - before == n + 40


def test_the_context_ends_a_burst():
    decoder = small("llama-biases", deterministic=True)
    engine = Engine(decoder, cache_bytes=pages(decoder, 3))
    [[result]] = engine.run([greedy(None, 50)])  # type: ignore[arg-type]
    assert (result.finish_reason, len(result.token_ids)) == ("context", engine.capacity - 50)


def test_where_pages_run_out_nobody_is_sent_ahead(monkeypatch):
    decoder = small("llama-biases", deterministic=True)
    asked = [greedy(60, 20, i) for i in range(4)]
    expected = [one.token_ids for [one] in Engine(decoder).run(map(one_by_one, asked))]
    engine = Engine(decoder, cache_bytes=pages(decoder, 6))
    bursts = counted(engine, monkeypatch)
    assert [one.token_ids for [one] in engine.run(asked)] == expected
    assert engine.report().n_preempted > 0
    assert min(n for _, n in bursts) == 1
    assert all_free(engine)


@pytest.mark.parametrize("facts", [
    {"sampling": Sampling(temperature=0.8)}, {"logprobs": True}, {"ahead": False}, {"bad_words": ((5, 6),)},
    {"sampling": Sampling(temperature=0, presence_penalty=0.5)}], ids=str)
def test_who_asks_for_more_than_likeliest_ids_goes_step_by_step_and_so_do_all_beside(facts, monkeypatch):
    engine = Engine(small("llama-biases", deterministic=True))
    bursts = counted(engine, monkeypatch)
    [[asked], [beside]] = engine.run([dataclasses.replace(greedy(20), **facts), greedy(30, 12)])
    assert [rows for rows, _ in bursts] == [1] * len(bursts), "only when the other had left"
    assert (len(asked.token_ids), len(beside.token_ids)) == (20, 30)
    bursts.clear()
    engine.run([dataclasses.replace(greedy(20), **facts)])
    assert not bursts


def test_whoever_waits_waits_for_one_pass(monkeypatch):
    engine = Engine(small("llama-biases", deterministic=True), max_rows=1)
    bursts = counted(engine, monkeypatch)
    first, second = engine.submit(greedy(40)), engine.submit(greedy(40, 12))
    while not first.finished:
        engine.step()
    assert {n for _, n in bursts} == {1}
    bursts.clear()
    while not second.finished:
        engine.step()
    assert max(n for _, n in bursts) == MOST


def test_what_is_not_a_number_ends_the_burst_before_it():
    """A row of the embeddings: the id that is read there comes still, and nothing after it."""
    decoder = small("mistral-window", deterministic=True)
    assert not decoder.spec.tied
    [[whole]] = Engine(decoder).run([greedy(40, PAGE)])
    engine = Engine(decoder)
    generation = engine.submit(greedy(40, PAGE))
    while generation.n_ready < 3:
        engine.step()
    seen, table = {*range(3, 3 + PAGE), *whole.token_ids[: generation.n_ready]}, decoder.embed.weight.data
    place = next(i for i in range(generation.n_ready, 39) if whole.token_ids[i] not in seen)
    row, ids = table[whole.token_ids[place]].clone(), []
    table[whole.token_ids[place]] = torch.nan
    try:
        with pytest.raises(PellucidError, match="not numbers"):
            ids.extend(generation)
    finally:
        table[whole.token_ids[place]] = row
    assert generation.ids == list(whole.token_ids[: place + 1])
    assert all_free(engine)

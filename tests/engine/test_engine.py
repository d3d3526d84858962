"""Many requests at once: each is what it would be alone, in any company, in any chunks, preempted or not, on pages of others or its own."""
from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Result, Sampling
from pellucid.errors import BadRequest, EmptyPrompt, PromptTooLong
from pellucid.model.decoder import Decoder
from tests.families.build import logits, ours
from tests.model.test_decoder import case

N_CTX = 200  # ends inside a page
# Plain; windowed; capped in alternating layers; a latent cache; chunks; sinks; falling scores; a rope by length; experts; keys of other layers; no keys.
FAMILIES = ["llama-biases", "mistral-window", "gemma2-caps", "deepseek_v3-released", "llama4_text-scout", "gpt_oss-released", "bloom-released",
            "llama-dynamic", "qwen3_moe-renormalized", "gemma4_text-e2b", "nemotron_nas-linear"]
NEAR = 2e-5  # of a log-probability: float32 rounding through the blocks
GREEDY = Sampling(temperature=0)


def small(name: str, *, deterministic: bool = False, ops: str = "fused") -> Decoder:
    built = case(name)
    return ours(dataclasses.replace(built.spec, n_ctx=N_CTX), built.tensors, ops=ops, deterministic=deterministic)


def pages(decoder: Decoder, n: int) -> int:
    """Bytes of n pages in every group."""
    return n * sum(group.bytes_per_page for group in Engine(decoder).cache.groups)


def requests(decoder: Decoder, seed: int, n: int) -> list[Request]:
    """Random prompts, some of which begin alike, greedy and drawn."""
    rng, n_vocab = random.Random(seed), decoder.spec.n_vocab
    common = [rng.randrange(3, n_vocab) for _ in range(3 * PAGE)]
    out = []
    for i in range(n):
        own = [rng.randrange(3, n_vocab) for _ in range(rng.choice([1, 7, PAGE, 70]))]
        out.append(Request(prompt_ids=common[: rng.choice([0, 0, 20, PAGE, 80])] + own, max_tokens=rng.choice([1, 5, 40]), logprobs=True,
                           sampling=Sampling(temperature=rng.choice([0.0, 0.8]), seed=i, repetition_penalty=rng.choice([1.0, 1.2]))))
    return out


def alone(decoder: Decoder, request: Request) -> Result:
    return Engine(decoder).run([request])[0][0]


def all_free(engine: Engine) -> bool:
    return all(group.users == [0] * group.n_pages and group.n_available == group.n_pages for group in engine.cache.groups)


def scheduled(engine: Engine, asked: list[Request], rng: random.Random) -> list[Result]:
    """Requests that come at random steps."""
    waiting, running = list(asked), []
    while waiting or not all(g.finished for g in running):
        while waiting and rng.random() < 0.5:
            running.append(engine.submit(waiting.pop(0)))
        engine.step()
    return [g.result() for g in running]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_request_in_any_schedule_is_what_it_is_alone(name, seed):
    decoder, rng = small(name), random.Random(seed)
    asked = requests(decoder, seed, 6)
    engine = Engine(decoder, max_rows=4, step_tokens=rng.choice([5, 40, 300]), cache_bytes=pages(decoder, 8))
    together = scheduled(engine, asked, rng)
    on_the_border = 0
    for result, request in zip(together, asked, strict=True):
        expected = alone(decoder, request)
        for i, (ours_, theirs) in enumerate(zip(result.token_ids, expected.token_ids, strict=True)):
            assert abs(result.logprobs[i] - expected.logprobs[i]) < NEAR * 10 or ours_ != theirs
            if ours_ != theirs:  # what follows is another text
                if request.sampling.greedy:  # only between near equals
                    assert abs(result.logprobs[i] - expected.logprobs[i]) < 1e-4
                on_the_border += not request.sampling.greedy
                break
    assert on_the_border <= 1  # a draw that fell where two ids' shares meet: one in tens of thousands does
    assert all_free(engine)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_deterministic_means_bitwise(name, seed):
    decoder, rng = small(name, deterministic=True), random.Random(seed)
    asked = requests(decoder, seed, 5)
    engine = Engine(decoder, max_rows=4, step_tokens=rng.choice([5, 40, 300]), cache_bytes=pages(decoder, 8))
    together = scheduled(engine, asked, rng)
    for result, request in zip(together, asked, strict=True):
        expected = alone(decoder, request)
        assert (result.token_ids, result.logprobs) == (expected.token_ids, expected.logprobs)


@pytest.mark.parametrize("name", ["llama-biases", "gemma2-caps", "deepseek_v3-released"])
def test_log_probabilities_are_those_of_one_full_pass(name):
    decoder = small(name)
    request = dataclasses.replace(requests(decoder, 3, 1)[0], max_tokens=70, prompt_logprobs=3, top_logprobs=2)
    [[result]] = Engine(decoder, max_rows=4, step_tokens=50).run([request])  # the prompt comes in chunks
    ids = [*request.prompt_ids, *result.token_ids]
    full_TV = logits(decoder, torch.tensor(ids)).log_softmax(-1)
    expected = full_TV[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([*result.prompt_logprobs, *result.logprobs]), expected, rtol=1e-4, atol=1e-5)
    n = len(request.prompt_ids)
    for told, row_V in [*zip(result.prompt_top_logprobs, full_TV, strict=False), *zip(result.top_logprobs, full_TV[n - 1 :], strict=False)]:
        values, best = row_V.topk(len(told))
        assert [i for i, _ in told] == best.tolist()
        torch.testing.assert_close(torch.tensor([v for _, v in told]), values, rtol=1e-4, atol=1e-5)


def test_what_was_generated_scores_to_the_same_bits():
    decoder = small("llama-biases", deterministic=True)
    request = Request(prompt_ids=[5] * 40, sampling=Sampling(seed=2), max_tokens=40, logprobs=True, top_logprobs=3)
    engine = Engine(decoder)
    [[written]] = engine.run([request])
    [scored] = engine.score([(request.prompt_ids, written.token_ids)], n_top=3)
    assert (scored.logprobs, scored.top_logprobs) == (written.logprobs, written.top_logprobs)
    with pytest.raises(BadRequest, match="top_logprobs=99 is out of range: from 0 to"):
        engine.score([([5], [6])], n_top=99)


def test_pages_run_out_and_the_youngest_is_computed_again():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5 + i] * 40, sampling=GREEDY, max_tokens=60) for i in range(4)]
    engine = Engine(decoder, cache_bytes=pages(decoder, 8), max_rows=4, step_tokens=64)
    results = [one for one, in engine.run(asked)]
    assert engine.report().n_preempted > 0
    assert [r.token_ids for r in results] == [alone(decoder, r).token_ids for r in asked]
    assert all_free(engine)


def test_a_prefix_is_computed_once_by_those_who_come_together_and_by_those_who_come_later():
    decoder = small("gemma2-caps")
    prefix = [3 + i % 7 for i in range(4 * PAGE)]
    asked = [Request(prompt_ids=[*prefix, 20 + i, 9], sampling=GREEDY, max_tokens=3) for i in range(5)]
    engine = Engine(decoder)
    together = [one for one, in engine.run(asked)]
    assert [r.n_reused for r in together] == [0] + [4 * PAGE] * 4
    [[later]] = engine.run([asked[0]])
    assert later.n_reused == 4 * PAGE
    assert [r.token_ids for r in [*together, later]] == [alone(decoder, r).token_ids for r in [*asked, asked[0]]]
    assert engine.report().n_reused_tokens == 5 * 4 * PAGE
    engine.cache.forget()
    assert engine.run([asked[0]])[0][0].n_reused == 0


def test_a_conversation_goes_on_where_it_was():
    decoder = small("mistral-window")
    engine, ids = Engine(decoder), [7, 8, 9]
    for _ in range(3):
        [[turn]] = engine.run([Request(prompt_ids=ids, sampling=GREEDY, max_tokens=50)])
        assert turn.n_reused == (len(ids) - 1) // PAGE * PAGE
        assert turn.token_ids == alone(decoder, Request(prompt_ids=ids, sampling=GREEDY, max_tokens=50)).token_ids
        ids = [*ids, *turn.token_ids, 4]


def test_the_cache_is_never_larger_than_it_may_be():
    decoder = small("gemma2-caps")
    for n_bytes in (pages(decoder, 1), pages(decoder, 5) + 17, 10**9):
        engine = Engine(decoder, cache_bytes=n_bytes, step_tokens=128)
        held = sum(pool.nbytes for pools in engine.cache.pools for pool in pools)
        assert held == engine.cache.n_bytes <= n_bytes


def test_windows_give_back_pages_that_nobody_sees_any_more():
    decoder = small("mistral-window")
    [group] = Engine(decoder).cache.groups
    assert group.reach is not None
    engine = Engine(decoder, max_rows=1, step_tokens=8)
    generation = engine.submit(Request(prompt_ids=[5] * 20, sampling=GREEDY, max_tokens=200))
    most = 0
    while not generation.finished:
        engine.step()
        most = max(most, sum(engine.cache.groups[0].users))
    assert most <= group.pages_of_one(8) < N_CTX // PAGE


def test_a_cancelled_request_frees_its_pages_at_once_and_so_does_one_that_is_dropped():
    decoder = small("llama-biases")
    engine = Engine(decoder)
    first, second, third = (engine.submit(Request(prompt_ids=[5, i, 9], sampling=GREEDY, max_tokens=50)) for i in range(3))
    ids = [next(first), next(first)]
    first.cancel()
    assert (first.result().finish_reason, list(first.result().token_ids)) == ("cancelled", ids)
    assert list(first) == []
    del third
    assert (engine.report().n_running + engine.report().n_waiting, engine.report().n_cancelled) == (1, 2)
    assert len(list(second)) == 50
    assert all_free(engine)


def test_a_caller_may_end_it_because_what_came_is_enough():
    decoder = small("llama-biases")
    generation = Engine(decoder).submit(Request(prompt_ids=[5, 6], sampling=GREEDY, logprobs=True))
    ids = [next(generation), next(generation)]
    generation.stop()
    assert list(generation) == []
    result = generation.result()
    assert (result.token_ids, result.finish_reason, len(result.logprobs)) == (tuple(ids), "stop", 2)


def test_numbers_that_are_none_end_one_request_alone(monkeypatch):
    decoder = small("llama-biases")
    engine = Engine(decoder)
    good, bad = (engine.submit(Request(prompt_ids=[5, 6, 7 + i], sampling=GREEDY, max_tokens=5)) for i in range(2))
    embed = decoder.embed.forward
    monkeypatch.setattr(decoder.embed, "forward", lambda ids: torch.where((ids == 8)[:, None], torch.nan, embed(ids)))
    with pytest.raises(Exception, match="not numbers"):
        list(bad)
    assert len(list(good)) == 5
    monkeypatch.undo()
    assert all_free(engine)
    assert engine.report().n_failed == 1
    assert all(bool(pool.isfinite().all()) for pools in engine.cache.pools for pool in pools)


def test_an_interrupted_pass_changes_nothing(monkeypatch):
    decoder = small("llama-biases")
    engine = Engine(decoder)
    generation = engine.submit(Request(prompt_ids=[5, 6, 7], sampling=GREEDY, max_tokens=10))
    ids = [next(generation), next(generation)]
    with monkeypatch.context() as patch:
        patch.setattr(decoder.blocks[1], "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(generation)
    assert tuple(ids + list(generation)) == alone(decoder, generation.request).token_ids


def test_threads_share_an_engine():
    decoder = small("llama-biases")
    engine, found = Engine(decoder), {}
    asked = {i: Request(prompt_ids=[5, 6, 7 + i], sampling=Sampling(seed=i), max_tokens=30) for i in range(4)}

    def take(i: int) -> None:
        found[i] = tuple(engine.submit(asked[i]))

    threads = [threading.Thread(target=take, args=(i,)) for i in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: alone(decoder, request).token_ids for i, request in asked.items()}


def test_several_outputs_of_one_request_differ_and_the_best_are_kept():
    decoder = small("llama-biases")
    request = Request(prompt_ids=[5] * 70, sampling=Sampling(seed=1), max_tokens=12, n=2, best_of=6, logprobs=True)
    engine = Engine(decoder)
    [kept] = engine.run([request])
    assert engine.report().n_reused_tokens == 5 * 2 * PAGE  # the prompt is computed once
    every = engine.run([dataclasses.replace(request, n=6)])[0]
    assert len({r.token_ids for r in every}) == 6
    mean = [sum(r.logprobs) / len(r.logprobs) for r in every]
    assert [r.token_ids for r in kept] == [r.token_ids for _, r in sorted(zip(mean, every, strict=True), key=lambda pair: -pair[0])][:2]


@pytest.mark.parametrize("n", [N_CTX, N_CTX + 13])
def test_a_prompt_that_does_not_fit_says_both_counts(n):
    words = rf"the prompt has {n} tokens; this model's context holds {N_CTX} .* Shorten the prompt by {n - N_CTX + 1}"
    with pytest.raises(PromptTooLong, match=words) as caught:
        Engine(small("llama-biases")).submit(Request(prompt_ids=[1] * n))
    assert (caught.value.n_prompt, caught.value.n_ctx) == (n, N_CTX)


def test_what_can_never_be_computed_is_refused_before_it_begins():
    decoder = small("llama-biases")
    engine = Engine(decoder, cache_bytes=pages(decoder, 3), max_rows=2, step_tokens=16)
    with pytest.raises(PromptTooLong, match=r"90 tokens and 20 to come need more than the whole cache.* for 96 tokens of one request"):
        engine.submit(Request(prompt_ids=[5] * 90, max_tokens=20))
    [[all_there_is]] = engine.run([Request(prompt_ids=[5] * 90, sampling=GREEDY)])
    assert (len(all_there_is.token_ids), all_there_is.finish_reason) == (6, "context")
    with pytest.raises(EmptyPrompt, match="the prompt has no tokens"):
        engine.submit(Request(prompt_ids=[]))
    with pytest.raises(BadRequest, match="stop_ids has token id 99999"):
        engine.submit(Request(prompt_ids=[1], stop_ids=frozenset({99999})))
    with pytest.raises(BadRequest, match="max_rows=9 sequences need a token each in a step of step_tokens=8"):
        Engine(decoder, max_rows=9, step_tokens=8)
    with pytest.raises(Exception, match=r"one page of 32 tokens takes .*Give it more"):
        Engine(decoder, cache_bytes=100)


def test_an_int8_cache_takes_less_and_says_nearly_the_same():
    decoder = small("llama-biases")
    request = Request(prompt_ids=list(range(3, 90)), sampling=GREEDY, max_tokens=30, prompt_logprobs=0)
    exact, rounded = (Engine(decoder, cache_dtype=how, max_rows=1) for how in ("same", "int8"))
    assert rounded.cache.n_bytes < 0.45 * exact.cache.n_bytes  # 4 bytes become 1, and a scale a head
    ours_, theirs = (torch.tensor(engine.run([request])[0][0].prompt_logprobs) for engine in (rounded, exact))
    assert 0 < (ours_ - theirs).abs().max() < 0.1


def test_a_report_counts_what_was_done():
    engine = Engine(small("llama-biases"))
    engine.run([Request(prompt_ids=[5] * 40, sampling=GREEDY, max_tokens=4), Request(prompt_ids=[6] * 10, sampling=GREEDY, max_tokens=2)])
    report = engine.report()
    assert (report.n_requests, report.n_finished, report.n_prompt_tokens, report.n_output_tokens, report.n_computed_tokens) == (2, 2, 50, 6, 50 + 4)
    assert report.busy_seconds > 0 < report.first_token_seconds
    assert report.token_seconds > 0 == report.cache_used_share


class Broken:
    """A constraint whose mask raises, or that the garbage collector meets at work."""

    done, failure = False, None

    def __init__(self, do) -> None:
        self.do = do

    def start(self):
        return self

    def mask(self, words_W):
        self.do()

    def advance(self, token_id):
        pass

    def rollback(self, n):
        pass


def test_what_breaks_a_constraint_ends_its_request_alone():
    def breaks():
        raise ZeroDivisionError("a grammar of one's own")

    decoder = small("llama-biases")
    engine = Engine(decoder)
    good, bad = (engine.submit(Request(prompt_ids=[5, 6], sampling=GREEDY, max_tokens=4, constraint=c)) for c in (None, Broken(breaks)))
    assert len(list(good)) == 4
    with pytest.raises(ZeroDivisionError, match="one's own"):
        list(bad)
    assert all_free(engine)


@pytest.mark.parametrize("error", [MemoryError("logits"), KeyboardInterrupt()])
def test_an_error_after_the_pass_leaves_nobody_waiting_for_ever(monkeypatch, error):
    decoder = small("llama-biases")
    engine = Engine(decoder)
    asked = [Request(prompt_ids=[5, 6, 7 + i], sampling=Sampling(seed=i), max_tokens=6) for i in range(2)]
    first, second = map(engine.submit, asked)
    ids = [next(first)]
    with monkeypatch.context() as patch:
        patch.setattr(decoder.unembed, "forward", lambda *a: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            next(first)
    if isinstance(error, KeyboardInterrupt):  # what was interrupted goes on
        assert tuple(ids + list(first)) == alone(decoder, asked[0]).token_ids
        assert tuple(second) == alone(decoder, asked[1]).token_ids
    else:
        with pytest.raises(MemoryError):
            list(second)
    assert len(list(engine.submit(asked[0]))) == 6
    assert all_free(engine)


def test_a_process_that_ends_with_requests_under_way_says_nothing():
    code = """
import pellucid
from pellucid.cli._options import SHIPPED
model = pellucid.load(SHIPPED)
left = [model.stream("Once", max_tokens=50) for _ in range(3)]
model.engine.step()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_is_dropped_while_a_step_runs_ends_after_it():
    """The garbage collector may run on any thread, with the engine's lock held or waited for."""
    decoder = small("llama-biases")
    engine = Engine(decoder)
    dropped = [engine.submit(Request(prompt_ids=[9, 9], max_tokens=50))]
    going = engine.submit(Request(prompt_ids=[5, 6], sampling=GREEDY, max_tokens=5, constraint=Broken(dropped.clear)))
    assert len(list(going)) == 5
    assert engine.report().n_running == engine.report().n_waiting == 0
    assert engine.report().n_cancelled == 1


def test_the_last_id_is_not_lost_to_another_thread_that_steps(monkeypatch):
    decoder = small("llama-biases")
    engine = Engine(decoder)
    generation = engine.submit(Request(prompt_ids=[5, 6], sampling=GREEDY, max_tokens=1))
    looked = type(generation).n_ready.fget

    def and_then_somebody_steps(self):
        n = looked(self)
        engine.step()
        return n

    monkeypatch.setattr(type(generation), "n_ready", property(and_then_somebody_steps))
    assert tuple(generation) == alone(decoder, generation.request).token_ids


def test_nothing_that_is_not_a_number_is_told_or_kept(monkeypatch):
    decoder = small("mistral-window")
    engine = Engine(decoder)
    embed = decoder.embed.forward
    monkeypatch.setattr(decoder.embed, "forward", lambda ids: torch.where((ids == 8)[:, None], torch.nan, embed(ids)))
    poisoned = [5] * 40 + [8] + [6] * 60
    with pytest.raises(Exception, match="not numbers"):
        engine.score([(poisoned[:50], poisoned[50:])])
    with pytest.raises(Exception, match="not numbers"):
        engine.embed([poisoned])
    monkeypatch.undo()
    assert all(bool(pool.isfinite().all()) for pools in engine.cache.pools for pool in pools)
    assert len(engine.score([(poisoned[:50], poisoned[50:])])[0].logprobs) == 51


def test_ten_thousand_short_requests_leave_the_books_as_they_were():
    decoder = small("llama-biases")
    engine, asked = Engine(decoder, cache_bytes=pages(decoder, 40), max_rows=32), []
    for i in range(2000):
        asked.append(Request(prompt_ids=[3 + i % 50, 3 + i // 50, 7], sampling=GREEDY, max_tokens=1 + i % 2, reuse=i % 3 == 0))
    for _ in range(5):
        engine.run(asked)
    assert engine.report().n_finished == 10_000
    assert all_free(engine)
    assert not engine.cache._rows
    assert not engine.cache._coming
    assert all(len(group._lowest) <= group.n_pages for group in engine.cache.groups)

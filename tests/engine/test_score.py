"""What a model says of given ids is what one full pass says, however it was computed and whatever ran beside it."""
from __future__ import annotations

import math
import random
import threading

import pytest
import torch
from torch import Tensor

from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.engine.score import windows
from pellucid.errors import BadRequest, EmptyPrompt, PellucidError, PromptTooLong
from pellucid.model.decoder import Decoder
from tests.engine.test_engine import FAMILIES, N_CTX, all_free, pages, small
from tests.families.build import logits

NEAR = {"rtol": 1e-4, "atol": 1e-5}


def texts(decoder: Decoder, *lengths: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, decoder.spec.n_vocab) for _ in range(n)] for n in lengths]


def full(decoder: Decoder, ids: list[int]) -> Tensor:
    """Log-probabilities (T, V) of one pass over all of them."""
    return logits(decoder, torch.tensor(ids)).log_softmax(-1)


def hidden(decoder: Decoder, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return decoder(torch.tensor(ids)).double()


def busy(engine: Engine, n: int = 2) -> list[object]:
    """Generations that are under way."""
    started = [engine.submit(Request(prompt_ids=[5 + i] * 20, sampling=Sampling(seed=i), max_tokens=50)) for i in range(n)]
    engine.step()
    return started


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama-dynamic"])  # a full pass of it would turn by its own length
def test_scores_are_those_of_one_full_pass(name):
    """In company of generations, in chunks, with few pages; contexts of several lengths, one of them empty."""
    decoder = small(name)
    contexts, continuations = texts(decoder, 0, 1, 40, 70), texts(decoder, 20, 1, 90, 3, seed=1)
    engine = Engine(decoder, max_rows=4, step_tokens=24, cache_bytes=pages(decoder, 9))
    started = busy(engine)
    told = engine.score(zip(contexts, continuations, strict=True), n_top=3)
    for score, context, continuation in zip(told, contexts, continuations, strict=True):
        full_TV, ids = full(decoder, context + continuation), context + continuation
        first = max(len(context), 1)
        of_TV, came = full_TV[first - 1 : -1], torch.tensor(ids[first:])
        torch.testing.assert_close(torch.tensor(score.logprobs), of_TV.gather(1, came[:, None])[:, 0], **NEAR)
        assert score.greedy == tuple((of_TV.argmax(-1) == came).tolist())
        torch.testing.assert_close(torch.tensor([[v for _, v in top] for top in score.top_logprobs]), of_TV.topk(3)[0], **NEAR)
    del started
    assert all_free(engine)


def test_the_likeliest_ids_are_greedy_and_others_are_not():
    decoder = small("llama-biases")
    [context] = texts(decoder, 12)
    engine = Engine(decoder)
    [[best]] = engine.run([Request(prompt_ids=context, sampling=Sampling(temperature=0), max_tokens=8, logprobs=True)])
    other = [(i + 1) % 40 for i in best.token_ids]
    ours, theirs = engine.score([(context, best.token_ids), (context, other)])
    assert ours.greedy == (True,) * 8
    assert theirs.greedy[0] is False
    torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(best.logprobs), **NEAR)


@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "deepseek_v3-released"])
def test_deterministic_scores_are_bitwise_the_same_in_any_company(name):
    decoder = small(name, deterministic=True)
    contexts, continuations = texts(decoder, 40, 7, 33), texts(decoder, 50, 66, 10, seed=1)
    pairs = list(zip(contexts, continuations, strict=True))
    alone = [Engine(decoder).score([pair])[0].logprobs for pair in pairs]
    engine = Engine(decoder, max_rows=3, step_tokens=20, cache_bytes=pages(decoder, 8))
    started = busy(engine)
    assert [score.logprobs for score in engine.score(pairs)] == alone
    generated = Engine(decoder).run([Request(prompt_ids=contexts[0], max_tokens=9, logprobs=True)])[0][0]
    assert Engine(decoder).score([(contexts[0], generated.token_ids)])[0].logprobs == generated.logprobs
    del started


def test_what_is_scored_may_be_preempted():
    decoder = small("llama-biases")
    pairs = list(zip(texts(decoder, 3, 3), texts(decoder, 120, 120, seed=1), strict=True))
    engine = Engine(decoder, max_rows=4, step_tokens=24, cache_bytes=pages(decoder, 6))
    started = engine.submit(Request(prompt_ids=[5] * 60, sampling=Sampling(seed=1), max_tokens=60))
    told = engine.score(pairs)
    assert engine.report().n_preempted > 0
    for score, (context, continuation) in zip(told, pairs, strict=True):
        expected = full(decoder, context + continuation)[len(context) - 1 : -1].gather(1, torch.tensor(continuation)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(score.logprobs), expected, **NEAR)
    assert len(list(started)) == 60


def test_a_context_that_many_share_is_computed_once():
    decoder = small("llama-biases")
    [context], answers = texts(decoder, 3 * PAGE + 1), texts(decoder, 2, 2, 2, 2, seed=1)
    engine = Engine(decoder)
    engine.score((context, answer) for answer in answers)
    assert engine.report().n_computed_tokens == 3 * PAGE + 4 * 2  # the last id's own logits are of no interest


def test_nothing_to_score_costs_nothing_and_leaves_nothing():
    decoder = small("llama-biases")
    engine = Engine(decoder)
    assert [score.logprobs for score in engine.score([([5, 6, 7], []), ([], [5])])] == [(), ()]
    assert engine.score([]) == []
    report = engine.report()
    assert (report.n_computed_tokens, report.n_running, report.n_waiting, report.n_requests - report.n_finished) == (0, 0, 0, 0)


def test_what_cannot_be_scored_is_refused_before_anything_is():
    decoder = small("llama-biases")
    engine = Engine(decoder)
    for error, words, pairs in [
        (EmptyPrompt, "the prompt has no tokens", [([5], [6]), ([], [])]),
        (PromptTooLong, f"the prompt has {N_CTX + 1} tokens", [([5], [6] * N_CTX)]),
        (BadRequest, "ids has token id 99999", [([5], [99999])]),
        (BadRequest, "continuation is a string where token ids are wanted", [([5], "six")]),
    ]:
        with pytest.raises(error, match=words):
            engine.score(pairs)
    with pytest.raises(BadRequest, match="top_logprobs=21 is out of range: from 0 to 20"):
        engine.score([([5], [6])], n_top=21)
    assert engine.report().n_requests == 0
    [score] = engine.score([(torch.tensor([5, 6]), torch.tensor([7]))])
    assert len(score.logprobs) == 1


def test_numbers_that_are_none_are_no_scores(monkeypatch):
    decoder = small("llama-biases")
    engine, embed = Engine(decoder), decoder.embed.forward
    [good] = busy(engine, 1)
    monkeypatch.setattr(decoder.embed, "forward", lambda ids: torch.where((ids == 8)[:, None], torch.nan, embed(ids)))
    for ask in (lambda: engine.score([([5, 8], [6])]), lambda: engine.embed([[5, 8, 6]])):
        with pytest.raises(PellucidError, match=r"computed .* that are not numbers"):
            ask()
    assert len(list(good)) == 50
    assert all_free(engine)
    assert all(bool(pool.isfinite().all()) for pools in engine.cache.pools for pool in pools)


# Whole texts

@pytest.mark.parametrize("overlap", [1, 5, 11])
def test_a_long_text_is_scored_in_windows(overlap):
    """Each id after as many before it as its window has: the windows written out here, each by one full pass."""
    decoder = small("llama-biases")
    engine = Engine(decoder, cache_bytes=pages(decoder, 1), max_rows=1, step_tokens=8)
    C, [ids] = PAGE, texts(decoder, 3 * PAGE + 9)
    assert engine.capacity == C
    expected, start = full(decoder, ids[:C])[:-1].gather(1, torch.tensor(ids)[1:C, None])[:, 0].tolist(), C
    while start < len(ids):
        stop = min(start + C - overlap, len(ids))
        at = full(decoder, ids[stop - C : stop])
        expected += [float(at[p - 1 - (stop - C), ids[p]]) for p in range(start, stop)]
        start = stop
    torch.testing.assert_close(torch.tensor(engine.rolling(ids, overlap)), torch.tensor(expected), **NEAR)


def test_windows_hold_every_id_but_the_first_once():
    for n in range(40):
        for overlap in range(1, 7):
            pairs = windows(range(n), 7, overlap)
            assert [i for _, continuation in pairs for i in continuation] == list(range(1, n))
            assert all(len(context + continuation) == min(n, 7) for context, continuation in pairs)
            assert all([*context, *continuation] == list(range(context[0], continuation[-1] + 1)) for context, continuation in pairs)
            assert all(len(context) >= overlap for context, _ in pairs[1:])


@pytest.mark.parametrize("overlap", [0, 7, -1, 1.5, True])
def test_an_overlap_that_leaves_no_room_is_refused(overlap):
    with pytest.raises(BadRequest, match=f"overlap={overlap} is no count from 1 to 6, what a context of 7 leaves"):
        windows(range(30), 7, overlap)


# Vectors

@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "gemma4_text-e2b", "deepseek_v3-released", "qwen3_moe-renormalized"])
def test_vectors_are_those_of_one_full_pass(name):
    """In company of generations, in chunks: mean and last, of length one and as they are."""
    decoder = small(name)
    asked = texts(decoder, 1, 50, 7, 100)
    engine = Engine(decoder, max_rows=4, step_tokens=24, cache_bytes=pages(decoder, 6))
    for pooling in ("mean", "last"):
        started = busy(engine)
        for normalize in (True, False):
            for found, ids in zip(engine.embed(asked, pooling=pooling, normalize=normalize), asked, strict=True):
                expected = hidden(decoder, ids).mean(0) if pooling == "mean" else hidden(decoder, ids)[-1]
                expected = expected / expected.norm() if normalize else expected
                assert found.vector.dtype == torch.float32
                torch.testing.assert_close(found.vector.double(), expected, rtol=1e-4, atol=1e-4)
        del started
    assert all_free(engine)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_text_whose_vector_is_wanted_may_be_preempted(pooling):
    decoder = small("llama-biases")
    asked = texts(decoder, 120, 120)
    engine = Engine(decoder, max_rows=4, step_tokens=24, cache_bytes=pages(decoder, 6))
    started = engine.submit(Request(prompt_ids=[5] * 60, sampling=Sampling(seed=1), max_tokens=60))
    found = engine.embed(asked, pooling=pooling, normalize=False)
    assert engine.report().n_preempted > 0
    for one, ids in zip(found, asked, strict=True):
        of_TD = hidden(decoder, ids)
        torch.testing.assert_close(one.vector.double(), of_TD.mean(0) if pooling == "mean" else of_TD[-1], rtol=1e-4, atol=1e-4)
    assert len(list(started)) == 60


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("activation", ["blocks.0", "blocks.1.attn", "blocks.0.mlp.down", "blocks.1.attn.q", "embed"])
def test_a_named_activation_is_what_its_module_puts_out(activation, deterministic):
    decoder = small("llama-biases", deterministic=deterministic)
    asked, kept = texts(decoder, 5, 45), []
    engine = Engine(decoder, step_tokens=20, max_rows=4)
    started = busy(engine)
    found = engine.embed(asked, normalize=False, activation=activation)
    handle = dict(decoder.named_modules())[activation].register_forward_hook(lambda _m, _i, output: kept.append(output.flatten(1)))
    for one, ids in zip(found, asked, strict=True):
        kept.clear()
        hidden(decoder, ids)
        torch.testing.assert_close(one.vector, kept[0].mean(0), **NEAR)
    handle.remove()
    kept.clear()
    assert all(len(list(generation)) == 50 for generation in started)
    torch.testing.assert_close(engine.embed(asked, normalize=False)[1].vector.double(), hidden(decoder, asked[1]).mean(0), rtol=1e-4, atol=1e-4)
    assert not kept


def test_deterministic_vectors_are_bitwise_the_same_in_any_company():
    decoder = small("llama-biases", deterministic=True)
    asked = texts(decoder, 40, 70, 9)
    alone = [Engine(decoder).embed([ids])[0].vector for ids in asked]
    engine = Engine(decoder, max_rows=3, step_tokens=300)
    started = busy(engine)
    together = engine.embed(asked)
    assert all(torch.equal(one.vector, vector) for one, vector in zip(together, alone, strict=True))
    del started


def test_a_model_that_encodes_text_gives_vectors_and_nothing_else():
    decoder = small("gemma3_text-both_ways")
    asked = texts(decoder, 40, 3, seed=2)
    engine = Engine(decoder, max_rows=2, step_tokens=8)  # a text is computed whole, however long a step may be
    for found, ids in zip(engine.embed(asked, normalize=False), asked, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found.vector, decoder(torch.tensor(ids)).mean(0), **NEAR)
    assert engine.embed(asked, activation="blocks.0.attn")[0].vector.shape == (decoder.spec.d_model,)
    for ask in (lambda: engine.submit(Request(prompt_ids=[5])), lambda: engine.score([([5], [6])])):
        with pytest.raises(BadRequest, match=r"it encodes text and .* none. Ask it for vectors: embed"):
            ask()


def test_a_vector_may_be_trained_on():
    decoder = small("llama-biases")
    for pooling in ("mean", "last"):
        for normalize in (True, False):
            vector = Engine(decoder).embed([[5, 6, 7]], pooling=pooling, normalize=normalize)[0].vector
            weight = torch.ones(len(vector), requires_grad=True)
            (weight * vector).sum().backward()
            assert torch.equal(weight.grad, vector)


def test_what_is_no_activation_is_refused_and_others_go_on():
    decoder = small("llama-biases")
    engine = Engine(decoder)
    [started] = busy(engine, 1)
    for ask, words in [
        ({"activation": "blocks.0.atn"}, r"activation 'blocks.0.atn' is not a module of this model. Did you mean blocks.0.attn.* named as its weights are"),
        ({"activation": "blocks"}, "this activation is not one vector a token: its module puts out something else, or is not called"),
        ({"pooling": "max"}, "pooling='max' is not one of mean, last"),
    ]:
        with pytest.raises(BadRequest, match=words) as caught:
            engine.embed([[5, 6]], **ask)
        assert caught.value.field == next(iter(ask))
    with pytest.raises(EmptyPrompt):
        engine.embed([[5, 6], []])
    assert engine.embed([]) == []
    assert len(list(started)) == 50
    assert all_free(engine)


def test_threads_that_read_different_activations_get_their_own():
    decoder = small("llama-biases")
    engine, [ids] = Engine(decoder, step_tokens=8, max_rows=4), texts(decoder, 60)
    names = [None, "blocks.0", "blocks.0.attn", "embed"]
    expected = {name: Engine(decoder).embed([ids], activation=name)[0].vector for name in names}
    found: dict[str | None, Tensor] = {}
    threads = [threading.Thread(target=lambda name=name: found.update({name: engine.embed([ids], activation=name)[0].vector})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        torch.testing.assert_close(found[name], expected[name], **NEAR)
    assert not math.isclose(float(found[None][0]), float(found["embed"][0]), rel_tol=1e-3)

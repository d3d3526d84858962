"""A small decoder drafts as the sequence draws: where the two agree on the distribution, they agree on the id."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from pellucid.engine.draft import DraftModel
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.engine.row import Ahead, Row
from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from tests.engine.test_engine import GREEDY, N_CTX, all_free, pages, requests, small
from tests.engine.test_speculate import Even, drafting, plainly, same
from tests.families.build import ours
from tests.model.test_decoder import case


def shaken(name: str, by: float = 0.05, n_ctx: int = N_CTX) -> Decoder:
    """The case's decoder with noise in its weights: one that agrees with it often, not always."""
    built, noise = case(name), torch.Generator().manual_seed(3)
    tensors = {k: t + by * t.std() * torch.randn(t.shape, generator=noise) if t.is_floating_point() and t.ndim == 2 else t for k, t in built.tensors.items()}
    return ours(dataclasses.replace(built.spec, n_ctx=n_ctx), tensors, ops="fused")


def held(engine: Engine) -> DraftModel:
    proposer = engine.speculation.proposer
    assert isinstance(proposer, DraftModel)
    return proposer


SETTINGS = [{"temperature": 0}, {"seed": 1}, {"seed": 2, "temperature": 1.7, "top_k": 40}, {"seed": 3, "temperature": 0.7, "top_p": 0.9, "min_p": 0.01},
            {"seed": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2}, {"seed": 5, "logit_bias": {7: 3.0, 9: -100}}]


def test_a_draft_model_like_the_model_is_right_every_time_whatever_the_settings():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7 + i], sampling=Sampling(**how), max_tokens=37, bad_words=((11,), (12, 13)), min_tokens=5, stop_ids={3, 4},
                     prefix_ids=(9, 8) * (i % 2), logprobs=True) for i, how in enumerate(SETTINGS)]
    engine = drafting(decoder, DraftModel(decoder), n=4)
    for [result], expected in zip(engine.run(asked), plainly(decoder, asked), strict=True):
        assert same(result, expected)
    report = engine.report()
    assert report.n_drafted > 100
    assert report.accepted_share == 1


@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "gemma2-caps", "deepseek_v3-released", "llama4_text-scout", "llama-dynamic"])
def test_the_output_is_the_same_with_a_draft_model_and_without(name):
    """In batches that come and go, past windows, with few pages for either; the draft model right, wrong and partly right."""
    decoder, asked = small(name), requests(small(name), 11, 6)
    engine = drafting(decoder, DraftModel(shaken(name)), max_rows=4, step_tokens=40, cache_bytes=2 * pages(decoder, 9))
    for [result], expected in zip(engine.run(asked), plainly(decoder, asked), strict=True):
        assert same(result, expected)
    report = engine.report()
    assert 0 < report.n_accepted < report.n_drafted
    assert all_free(engine)
    assert not held(engine)._held
    assert all(group.users == [0] * group.n_pages for group in held(engine).cache.groups)


def test_it_catches_up_in_chunks_and_drafts_only_then():
    decoder = small("llama-biases")
    request = Request(prompt_ids=[3 + i % 9 for i in range(100)], sampling=GREEDY, max_tokens=30)
    engine = drafting(decoder, DraftModel(decoder), n=4, max_rows=1, step_tokens=16)
    generation = engine.submit(request)
    drafts = []
    while not generation.finished:
        before = engine.report().n_drafted
        engine.step()
        drafts.append(engine.report().n_drafted - before)
    n = -(-100 // 16)
    assert drafts[: 2 * n - 1] == [0] * (2 * n - 1)  # the prompt's chunks, then the same ones by the draft model
    assert set(drafts[2 * n :][:-1]) == {4}
    assert generation.result().token_ids == plainly(decoder, [request])[0].token_ids


def test_what_was_drafted_right_is_not_computed_twice(monkeypatch):
    decoder, draft = small("llama-biases"), small("llama-biases")
    n_tokens, forward = [], draft.forward
    monkeypatch.setattr(draft, "forward", lambda ids_T, *a: (n_tokens.append(len(ids_T)), forward(ids_T, *a))[1])
    engine = drafting(decoder, DraftModel(draft), n=4)
    engine.run([Request(prompt_ids=[5, 6, 7], sampling=Sampling(seed=1), max_tokens=21)])
    assert n_tokens == [3 + 1, 1, 1, 1] + [2, 1, 1, 1] * 3  # four drafts, all right, and one id besides: the last two were never its input


def test_a_prompt_of_several_outputs_is_computed_once_by_the_draft_model_as_well(monkeypatch):
    decoder, draft = small("llama-biases"), small("llama-biases")
    n_tokens, forward = [], draft.forward
    monkeypatch.setattr(draft, "forward", lambda ids_T, *a: (n_tokens.append(len(ids_T)), forward(ids_T, *a))[1])
    engine = drafting(decoder, DraftModel(draft))
    engine.run([Request(prompt_ids=[5 + i % 7 for i in range(3 * PAGE + 1)], sampling=Sampling(seed=1), max_tokens=12, n=5)])
    assert sum(n_tokens) < 2 * 3 * PAGE
    assert engine.report().accepted_share == 1


def test_the_memory_of_both_caches_is_what_was_given():
    decoder, n_bytes = small("llama-biases"), 2 * pages(small("llama-biases"), 7) + 5
    engine = Engine(decoder, cache_bytes=n_bytes, proposer=DraftModel(small("llama-biases")))
    both = [pool for cache in (engine.cache, held(engine).cache) for pools in cache.pools for pool in pools]
    assert sum(pool.nbytes for pool in both) == engine.report().cache_bytes <= n_bytes
    assert [group.n_pages for group in engine.cache.groups] == [group.n_pages for group in held(engine).cache.groups] == [7]


def test_a_draft_model_with_fewer_pages_than_rows_need_drafts_for_some():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5 + i] * 40, sampling=Sampling(seed=i), max_tokens=60) for i in range(4)]
    engine = drafting(decoder, DraftModel(decoder), max_rows=4, step_tokens=64, cache_bytes=2 * pages(decoder, 8))
    assert [r.token_ids for r, in engine.run(asked)] == [r.token_ids for r in plainly(decoder, asked)]
    assert engine.report().n_preempted > 0 < engine.report().n_accepted


def test_past_the_draft_models_context_nothing_is_drafted():
    decoder = small("llama-biases")
    request = Request(prompt_ids=[5, 6, 7], sampling=GREEDY, max_tokens=100)
    engine = drafting(decoder, DraftModel(shaken("llama-biases", by=0.0, n_ctx=PAGE)), n=4)
    [[result]] = engine.run([request])
    assert result.token_ids == plainly(decoder, [request])[0].token_ids
    assert 0 < engine.report().n_accepted == engine.report().n_drafted <= PAGE


def test_guesses_that_a_constraint_forbids_are_wrong_and_no_more():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7 + i], sampling=Sampling(seed=i), constraint=Even(20)) for i in range(3)]
    engine = drafting(decoder, DraftModel(decoder), n=3)
    assert [r.token_ids for r, in engine.run(asked)] == [r.token_ids for r in plainly(decoder, asked)]
    assert 0 < engine.report().n_accepted < engine.report().n_drafted


def test_nothing_is_drafted_behind_a_stop_id():
    decoder = small("llama-biases")
    request = Request(prompt_ids=[5, 6, 7], sampling=Sampling(seed=3), max_tokens=40)
    [whole] = plainly(decoder, [request])
    at = next(i for i, token_id in enumerate(whole.token_ids[10:], 10) if token_id not in whole.token_ids[:i])
    engine = drafting(decoder, DraftModel(decoder), n=8)
    [[result]] = engine.run([dataclasses.replace(request, stop_ids={whole.token_ids[at]})])
    assert (result.token_ids, result.finish_reason) == (whole.token_ids[: at + 1], "stop")
    assert engine.report().n_drafted == engine.report().n_accepted


def test_another_vocabulary_is_refused(decoder):
    model = small("llama-biases")
    words = rf"the draft model has {decoder.spec.n_vocab} tokens in its vocabulary, and the model {model.spec.n_vocab}: .* Draft with a smaller model"
    with pytest.raises(BadRequest, match=words) as caught:
        Engine(model, proposer=DraftModel(decoder))
    assert caught.value.field == "draft"


def test_a_row_ahead_draws_the_numbers_to_come_and_leaves_the_row_as_it_is():
    request = Request(prompt_ids=[1, 2], sampling=Sampling(seed=8, repetition_penalty=1.5, frequency_penalty=1.0))
    row, other = Row(request, 50), Row(request, 50)
    row.note(4)
    ahead = Ahead(row)
    numbers = []
    for token_id in (7, 7, 9, 30):
        numbers.append(ahead.u(len(ahead.output_ids)))
        ahead.note(token_id)
    assert (ahead.output_ids, row.output_ids) == ([4, 7, 7, 9, 30], [4])
    assert dict(zip(row.edits.ids_N.tolist(), row.edits.values_3N[2].tolist(), strict=True)) == {1: 0, 2: 0, 4: 1}
    assert dict(zip(ahead.edits.ids_N.tolist(), ahead.edits.values_3N[2].tolist(), strict=True)) == {1: 0, 2: 0, 4: 1, 7: 2, 9: 1, 30: 1}
    other.note(4)
    for i, number in enumerate(numbers, 1):
        assert row.u(i) == other.u(i) == number
        row.note(0)
        other.note(0)

"""Dynamic scaling past the original length, where every length turns by angles of its own: full passes are transformers', and a cached row is
what a full pass of the length it was planned for computes."""
from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.errors import BadConfig, BadRequest
from pellucid.families._describe import describe
from pellucid.model import decoder as whole
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder, Rows
from pellucid.model.rope import by_length, planned, turns_as
from pellucid.spec import Dynamic
from tests.families.build import TOLERANCE, build, error, logits, ours
from tests.families.case import SIZES
from tests.families.cases_llama import LLAMA

N = SIZES["max_position_embeddings"]  # 29: the original length
BUILT = {case.name: case for case in LLAMA}
GREEDY = Sampling(temperature=0)


@pytest.fixture
def past():
    built = build(BUILT["dynamic_past"])
    return ours(built.spec, built.tensors), built


def theirs(built, tokens_T):
    """transformers' full pass from a fresh module: one that saw a longer row keeps the frequencies of that."""
    fresh = copy.deepcopy(built.theirs)
    fresh.model.rotary_emb = type(fresh.model.rotary_emb)(fresh.config)
    with torch.inference_mode():
        return fresh(tokens_T[None], use_cache=False).logits[0]


@pytest.mark.parametrize("n", [N - 1, N, N + 1, N + 5, 41])
def test_a_full_pass_is_transformers_at_every_length(past, n):
    decoder, built = past
    assert error(logits(decoder, built.tokens_T[:n]), theirs(built, built.tokens_T[:n])) < TOLERANCE


def test_rows_of_one_batch_each_turn_by_their_own_length(past):
    decoder, built = past
    lengths = (N + 3, 7, 41, N, N + 3, N + 1)
    together_TV = logits(decoder, torch.cat([built.tokens_T[:n] for n in lengths]), Rows.of(*lengths))
    for n, part_TV in zip(lengths, together_TV.split(lengths), strict=True):
        assert error(part_TV, theirs(built, built.tokens_T[:n])) < TOLERANCE


def test_lengths_past_the_original_differ_from_one_another(past):
    decoder, built = past
    first_TV = logits(decoder, built.tokens_T[: N + 1])
    assert error(logits(decoder, built.tokens_T[: N + 5])[: N + 1], first_TV) > 1e-3
    assert error(logits(decoder, built.tokens_T[:N]), first_TV[:N]) > 1e-3


@pytest.mark.parametrize("end", [N, N + 1, 41])
def test_cached_passes_are_the_full_pass_of_the_planned_length(past, end):
    decoder, built = past
    cache = Cache(decoder.spec)
    cache.plan(0, end)
    n = min(end, N + 1)  # the row need not reach its plan: the first tokens of a longer pass see nothing of the others
    chunks = built.tokens_T[:n].split([7, 5, *[1] * (n - 12)])
    assert error(torch.cat([logits(decoder, chunk, cache=cache) for chunk in chunks]), theirs(built, built.tokens_T[:end])[:n]) < TOLERANCE


@pytest.mark.parametrize("held", [N, N + 2])
def test_a_row_that_outgrows_its_plan_is_refused_and_a_new_plan_forgets_it(past, held):
    decoder, built = past
    cache = Cache(decoder.spec)
    logits(decoder, built.tokens_T[:held], cache=cache)
    with pytest.raises(BadRequest) as refusal:
        logits(decoder, built.tokens_T[held : held + 1], cache=cache)
    assert str(refusal.value) == (
        f"a row of {held + 1} tokens was begun as one of {held}, and this model's rope turns all keys of so long a row by other angles. "
        f"Cache.plan(row, length) says it in time; or start the row anew.")
    assert cache.plan(0, held)
    assert cache.lengths == [held]
    assert not cache.plan(0, held + 1)
    assert cache.lengths == [0]
    assert error(logits(decoder, built.tokens_T[: held + 1], cache=cache), theirs(built, built.tokens_T[: held + 1])) < TOLERANCE


def greedy(decoder: Decoder, prompt: list[int], n: int) -> list[int]:
    """From full passes: of the ids alone up to the original length, and past it with fillers up to the length the row may become."""
    ids, end = list(prompt), len(prompt) + n - 1
    for _ in range(n):
        fillers = [3] * (end - len(ids) if len(ids) > N else 0)
        ids.append(int(logits(decoder, torch.tensor(ids + fillers))[len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_generation_is_plain_up_to_the_original_length_and_turned_for_its_end_past_it(past, chunk):
    decoder, built = past
    engine = Engine(decoder, max_rows=1, step_tokens=chunk)
    for n_prompt, n_more in ((10, 30), (N + 2, 9), (N + 2, 9), (N + 2, 8), (8, 4), (9, 3)):  # one end; another; before the original length
        prompt = built.tokens_T[:n_prompt].tolist()
        assert list(engine.submit(Request(prompt_ids=prompt, sampling=GREEDY, max_tokens=n_more))) == greedy(decoder, prompt, n_more)


def test_pages_are_taken_over_by_rows_that_turn_alike_and_by_no_others(past):
    decoder, built = past
    engine, prompt = Engine(decoder), built.tokens_T[: N + 12].tolist()
    for n_more, n_reused in ((9, 0), (9, PAGE), (8, 0), (8, PAGE)):
        [[result]] = engine.run([Request(prompt_ids=prompt, sampling=GREEDY, max_tokens=n_more)])
        assert result.n_reused == n_reused
        assert list(result.token_ids) == greedy(decoder, prompt, n_more)


def test_one_id_past_the_original_length_is_the_one_that_logits_say(past):
    decoder, built = past
    for n in (N + 1, N + 7):
        [[result]] = Engine(decoder).run([Request(prompt_ids=built.tokens_T[:n].tolist(), sampling=GREEDY, max_tokens=1)])
        assert list(result.token_ids) == [int(theirs(built, built.tokens_T[:n])[-1].argmax())]


def test_a_row_that_crosses_is_computed_anew_once(past):
    decoder, built = past
    fed = []
    handle = decoder.register_forward_pre_hook(lambda module, args: fed.append(len(args[0])))
    Engine(decoder).run([Request(prompt_ids=built.tokens_T[:10].tolist(), sampling=GREEDY, max_tokens=40)])
    handle.remove()
    assert sum(fed) == N + 49  # up to the original length; then all of it again, and on to 10 + 40 tokens, of which the last is not fed


def test_only_so_many_lengths_are_kept(past, monkeypatch):
    decoder, built = past
    monkeypatch.setattr(whole, "KEPT", 3)
    for n in range(N - 1, N + 8):
        assert error(logits(decoder, built.tokens_T[:n]), theirs(built, built.tokens_T[:n])) < TOLERANCE
        assert len(decoder._frequencies) <= 3


def test_lengths_that_turn_alike_are_known_without_a_tensor(past):
    decoder, _ = past
    dynamic = by_length(decoder.spec)
    assert dynamic == (Dynamic(original=N, factor=2.5),)
    assert turns_as(dynamic, 1) == turns_as(dynamic, N) != turns_as(dynamic, N + 1) != turns_as(dynamic, N + 2)
    assert [planned(dynamic, n, 50) for n in (3, N, N + 1, 60)] == [3, N, 50, 60]
    doubling = (dataclasses.replace(dynamic[0], doubling=True),)
    assert turns_as(doubling, N + 1) == turns_as(doubling, 2 * N) != turns_as(doubling, 2 * N + 1) == turns_as(doubling, 4 * N)
    assert planned(doubling, N + 1, 50) == N + 1


def test_the_context_is_what_scaling_makes_of_the_stated_length(past):
    assert past[0].spec.n_ctx == int(2.5 * N)


@pytest.mark.parametrize(("facts", "message"), [
    ({"head_dim": 2}, "the base of a rope with one pair cannot be stretched: nothing turns slower"),
    ({"max_position_embeddings": 0}, "original is 0, and no decoder has fewer than 1"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": "2"}}, "factor '2', and a positive number was expected"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1e308}}, "OverflowError: cannot convert float infinity to integer"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope scaling 'dynamic' lacks 'factor'"),
])
def test_a_config_that_cannot_be_stretched_is_refused(facts, message):
    with pytest.raises(BadConfig, match=message):
        describe(build(BUILT["dynamic_past"]).raw | facts)

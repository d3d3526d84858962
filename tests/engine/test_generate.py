"""One sequence through the engine against full passes."""
from __future__ import annotations

import time

import pytest
import torch

from pellucid.engine.engine import Engine
from pellucid.engine.generation import Generation
from pellucid.engine.request import Request, Result, Sampling
from pellucid.errors import BadRequest, EmptyPrompt, PellucidError, PromptTooLong
from pellucid.model.decoder import Decoder

from .conftest import N_CTX, N_VOCAB

GREEDY = Sampling(temperature=0)
PROMPT = [5, 9, 33, 2, 41, 17, 8]


def start(decoder: Decoder, request: Request) -> Generation:
    return Engine(decoder).submit(request)


def generate(decoder: Decoder, request: Request) -> Result:
    return Engine(decoder).run([request])[0][0]


def uncached(decoder: Decoder, prompt: list[int], n: int) -> list[int]:
    """The greedy continuation from a full pass a token, with no cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(n):
            ids.append(int(decoder.unembed(decoder(torch.tensor(ids)))[-1].argmax()))
    return ids[len(prompt):]


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_cached_greedy_equals_full_passes_whatever_the_chunk(decoder, chunk):
    generation = Engine(decoder, max_rows=1, step_tokens=chunk).submit(Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=25))
    assert list(generation) == uncached(decoder, PROMPT, 25)
    assert generation.result().finish_reason == "length"


def test_logprobs_equal_those_of_one_full_pass(decoder):
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=Sampling(seed=3, top_p=0.9, temperature=0.7), max_tokens=20, logprobs=True))
    ids = torch.tensor(PROMPT + list(result.token_ids))
    with torch.inference_mode():
        full_TV = decoder.unembed(decoder(ids[:-1])).log_softmax(-1)
    expected = full_TV[len(PROMPT) - 1 :].gather(1, ids[len(PROMPT) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.logprobs), expected, rtol=1e-4, atol=1e-5)


def test_without_logprobs_none_are_reported(decoder):
    assert generate(decoder, Request(prompt_ids=PROMPT, max_tokens=2)).logprobs is None


def test_any_of_several_stop_ids_ends_the_output_and_is_its_last_id(decoder):
    free = uncached(decoder, PROMPT, 25)
    never = (set(range(N_VOCAB)) - set(free)).pop()
    for stop in list(dict.fromkeys(free))[:4]:
        result = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=25, stop_ids=frozenset({stop, never})))
        assert (result.token_ids, result.finish_reason) == (tuple(free[: free.index(stop) + 1]), "stop")


def test_the_context_ends_the_output_when_prompt_and_output_fill_it(decoder):
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY))
    assert (len(result.token_ids), result.finish_reason) == (N_CTX - len(PROMPT), "context")
    exactly = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=N_CTX - len(PROMPT)))
    assert exactly.finish_reason == "length"


def test_the_longest_prompt_that_fits_leaves_one_token(decoder):
    result = generate(decoder, Request(prompt_ids=[1] * (N_CTX - 1), sampling=GREEDY, max_tokens=5))
    assert (len(result.token_ids), result.finish_reason) == (1, "context")


@pytest.mark.parametrize("n", [N_CTX, N_CTX + 13])
def test_a_prompt_that_does_not_fit_says_both_counts(decoder, n):
    words = rf"the prompt has {n} tokens; this model's context holds {N_CTX} .* Shorten the prompt by {n - N_CTX + 1}"
    with pytest.raises(PromptTooLong, match=words) as caught:
        start(decoder, Request(prompt_ids=[1] * n))
    assert (caught.value.n_prompt, caught.value.n_ctx) == (n, N_CTX)


def test_nothing_to_start_from_is_an_error(decoder):
    with pytest.raises(EmptyPrompt, match="the prompt has no tokens"):
        start(decoder, Request(prompt_ids=[]))


def test_ids_the_model_does_not_have_are_refused(decoder):
    with pytest.raises(BadRequest, match=f"stop_ids has token id {N_VOCAB}"):
        start(decoder, Request(prompt_ids=[1], stop_ids=frozenset({N_VOCAB})))
    with pytest.raises(BadRequest, match=f"prompt has token id {N_VOCAB}"):
        start(decoder, Request(prompt_ids=[N_VOCAB]))


def test_a_seed_repeats_and_another_differs(decoder):
    def drawn(seed):
        return generate(decoder, Request(prompt_ids=PROMPT, sampling=Sampling(seed=seed, temperature=1.5), max_tokens=20)).token_ids
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_caller_may_end_it(decoder):
    generation = start(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY))
    ids = [next(generation), next(generation)]
    generation.stop()
    assert list(generation) == []
    assert (generation.result().token_ids, generation.result().finish_reason) == (tuple(ids), "stop")


def test_there_is_no_result_before_the_end(decoder):
    generation = start(decoder, Request(prompt_ids=PROMPT))
    next(generation)
    with pytest.raises(RuntimeError, match="no result before it has ended"):
        generation.result()


def test_the_caller_is_not_left_in_inference_mode(decoder):
    generation = start(decoder, Request(prompt_ids=PROMPT))
    next(generation)
    assert not torch.is_inference_mode_enabled()


def test_seconds_count_the_engine_and_not_its_caller(decoder):
    began = time.perf_counter()
    generation = start(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=3))
    for _ in generation:
        time.sleep(0.05)
    result = generation.result()
    assert 0 < result.prefill_seconds <= result.seconds < time.perf_counter() - began - 0.15


class Alternating:
    """A constraint (and the grammar that starts it): ids of the wanted parity, turn by turn."""

    failure = None

    def __init__(self) -> None:
        self.n, self.done = 0, False

    def start(self) -> Alternating:
        return Alternating()

    def mask(self, words_W: torch.Tensor) -> None:
        words_W.fill_((0x55555555, -0x55555556)[self.n % 2])  # ...0101, and ...1010 as a signed word

    def advance(self, token_id: int) -> None:
        assert token_id % 2 == self.n % 2
        self.n += 1

    def rollback(self, n: int) -> None:
        self.n -= n


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=4, temperature=2.0)])
def test_a_constraint_is_asked_and_told_of_every_id(decoder, sampling):
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=sampling, max_tokens=20, constraint=Alternating()))
    assert [i % 2 for i in result.token_ids] == [0, 1] * 10
    assert len(set(result.token_ids)) > 2


def test_forced_ids_are_fed_like_any_others(decoder):
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=10, prefix_ids=(50, 3)))
    assert result.token_ids == (50, 3, *uncached(decoder, [*PROMPT, 50, 3], 8))


def test_no_stop_id_comes_before_the_minimum(decoder):
    even = frozenset(range(0, N_VOCAB, 2))
    assert len(generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=25, stop_ids=even)).token_ids) < 4  # or nothing is held back
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=25, min_tokens=4, stop_ids=even))
    assert (result.finish_reason, len(result.token_ids) > 4, [i % 2 for i in result.token_ids[:4]]) == ("stop", True, [1] * 4)


def test_the_likeliest_come_with_their_logprobs(decoder):
    result = generate(decoder, Request(prompt_ids=PROMPT, sampling=GREEDY, max_tokens=5, logprobs=True, top_logprobs=3))
    assert [top[0] for top in result.top_logprobs] == list(zip(result.token_ids, result.logprobs, strict=True))
    assert {len(top) for top in result.top_logprobs} == {3}
    assert generate(decoder, Request(prompt_ids=PROMPT, max_tokens=2, logprobs=True)).top_logprobs is None


def test_logits_that_are_not_numbers_end_the_generation_with_an_error(decoder, monkeypatch):
    generation = start(decoder, Request(prompt_ids=PROMPT, max_tokens=4))
    monkeypatch.setattr(decoder.unembed, "forward", lambda hidden_TD: torch.full((len(hidden_TD), N_VOCAB), torch.nan))
    with pytest.raises(PellucidError, match="the model computed logits that are not numbers"):
        next(generation)

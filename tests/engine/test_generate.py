"""One sequence through the engine against full passes."""
from __future__ import annotations

import time

import pytest
import torch

from pellucid.engine.engine import Engine
from pellucid.engine.generation import Generation
from pellucid.engine.request import Request, Result, Sampling
from pellucid.errors import BadRequest, EmptyPrompt, PromptTooLong
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

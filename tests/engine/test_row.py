"""What a row remembers: its numbers, its counts, what may not come. And that it is the same row in any company."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from pellucid.engine import sampler as sampler_module
from pellucid.engine.request import Request, Sampling
from pellucid.engine.row import HEAD, Row, seed
from pellucid.engine.sampler import Sampler

V = 73
WIDE = HEAD + 777  # more than is looked at first, no multiple of a block or a word


def row(n_vocab: int = V, prompt: tuple[int, ...] = (0,), index: int = 0, output_ids: tuple[int, ...] = (), **settings) -> Row:
    request = {k: settings.pop(k) for k in list(settings) if k in Request.__dataclass_fields__}
    return Row(Request(prompt_ids=prompt, sampling=Sampling(**settings), **request), n_vocab, index=index, output_ids=output_ids)


def logits(n: int, n_vocab: int = V, at: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(n, n_vocab, generator=torch.Generator().manual_seed(at)) * 3).to(dtype)


def test_the_numbers_of_a_seed_are_torchs_own_and_may_be_looked_at_ahead():
    expected = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    r = row(seed=5)
    assert [r.u(4), r.u(0), r.u(2)] == [expected[4], expected[0], expected[2]]
    for i in range(7):
        assert r.u(i) == expected[i]
        r.note(0)
    assert [r.u(8), r.u(7)] == [expected[8], expected[7]]
    with pytest.raises(AssertionError, match="number 6 is used and gone: 7 ids have come"):
        r.u(6)


def test_only_numbers_to_come_are_kept():
    r = row(seed=5)
    for i in range(2_000):
        r.u(i + 3)
        r.note(1)
        assert len(r._u) == 3


def test_outputs_of_one_request_have_numbers_of_their_own():
    seeds = [seed(asked, index) for asked in range(40) for index in range(40)]
    assert len(set(seeds)) == 1_600
    assert [seed(asked, 0) for asked in range(40)] == list(range(40))
    assert all(0 <= s < 2**63 for s in seeds)
    assert row(seed=7).u(0) == row(seed=7, index=0).u(0) != row(seed=7, index=1).u(0)


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_row_built_again_goes_on_as_the_one_that_was_lost(kept):
    options = {"seed": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "logit_bias": {9: 1.5}, "bad_words": ((4,), (7, 8)), "min_tokens": 6,
               "stop_ids": (1, 2), "prefix_ids": (11, 12, 13)}
    whole, sample = row(**options), Sampler(V)
    ids = [sample(logits(1, at=i), [whole]).ids[0] for i in range(12)]
    again = row(**options, output_ids=tuple(ids[:kept]))
    assert [sample(logits(1, at=i), [again]).ids[0] for i in range(kept, 12)] == ids[kept:]
    assert ids[:3] == [11, 12, 13]


def test_bad_words_equal_transformers_across_the_border_of_prompt_and_output():
    words = [[3], [5, 6], [5, 7], [1, 5, 8], [2, 2, 2, 9], [70, 71]]
    theirs = hf.NoBadWordsLogitsProcessor(words)
    generator = torch.Generator().manual_seed(1)
    n_more_than_never = 0
    for prompt, outputs in [((1, 5), 0), ((2,), 2), ((70,), 0), ((0, 1), 1), ((2, 2), 1), ((9,), 4), ((5,), 3)]:
        for _ in range(20):
            output = torch.randint(1, 6, (outputs,), generator=generator).tolist()
            r = row(prompt=prompt, bad_words=words, output_ids=tuple(output))
            expected = theirs(torch.tensor([[*prompt, *output]]), torch.zeros(1, V))[0].isinf().nonzero()[:, 0].tolist()
            assert sorted(set(r.forbidden())) == expected
            n_more_than_never += expected != [3]
    assert n_more_than_never > 60


def test_the_minimum_equals_transformers():
    prompt = (1, 2, 3)
    for minimum in (0, 1, 4):
        theirs = hf.MinNewTokensLengthLogitsProcessor(len(prompt), minimum, [6, 9])
        for n in range(6):
            r = row(prompt=prompt, min_tokens=minimum, stop_ids=(6, 9), output_ids=(5,) * n)
            expected = theirs(torch.ones(1, len(prompt) + n, dtype=torch.int64), torch.zeros(1, V))[0].isinf().nonzero()[:, 0].tolist()
            assert sorted(r.forbidden()) == expected


def test_bias_and_penalties_act_on_the_logits_as_transformers_and_the_formula_say():
    bias, presence, frequency = {5: 2.0, 60: -1.0, 8: 0.5}, 0.7, -0.3
    r = row(prompt=(5, 6, 7, 6), temperature=0, repetition_penalty=1.4, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    plain, sample, output = row(prompt=(1,), temperature=0), Sampler(V), []
    for step in range(40):  # more new tokens than the first room for them
        own = logits(2, at=step)
        kept = own.clone()
        expected = own[:1].clone()
        expected[0, list(bias)] += torch.tensor(list(bias.values()))
        expected = hf.RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[5, 6, 7, 6, *output]]), expected)
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=V)
        expected = expected - presence * (counts > 0) - frequency * counts
        torch.testing.assert_close(sample._edited(own, [r, plain], None), torch.cat([expected, own[1:]]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own, kept, rtol=0, atol=0)
        output.append(sample(own, [r, plain]).ids[0])
        assert output[-1] == expected.argmax()
    assert len(set(output)) > 16


def test_a_forced_prefix_overrides_all_and_the_draws_after_it_are_those_of_their_places():
    forced = row(prefix_ids=(3, 4, 3), bad_words=((3,), (4,)), logit_bias={3: -100.0}, seed=8, logprobs=True, top_logprobs=2)
    free, sample = row(seed=8, bad_words=((3,), (4,)), logit_bias={3: -100.0}), Sampler(V)
    nothing = torch.zeros(1, -(-V // 32), dtype=torch.int32)
    for i in range(3):
        sampled = sample(logits(1, at=i), [forced], nothing)
        free.note((3, 4, 3)[i])
        assert sampled.ids == ((3, 4, 3)[i],)
        assert sampled.logprobs[0] == pytest.approx(logits(1, at=i)[0].double().log_softmax(-1)[sampled.ids[0]].item(), abs=1e-5)
    for i in range(3, 20):
        assert sample(logits(1, at=i), [forced]).ids == sample(logits(1, at=i), [free]).ids


def test_a_forced_prefix_does_not_hide_logits_that_are_not_numbers():
    r = row(prefix_ids=(3,))
    assert list(Sampler(V)(torch.full((1, V), torch.nan), [r]).errors) == [0]
    assert r.output_ids == []


SETTINGS = st.fixed_dictionaries({
    "temperature": st.sampled_from([0, 0.3, 1.0, 1.0, 6.0]), "top_k": st.sampled_from([0, 0, 1, 7, 50, HEAD - 1, HEAD, HEAD + 300]),
    "top_p": st.sampled_from([1.0, 1.0, 0.4, 0.95, 0.9999]), "min_p": st.sampled_from([0.0, 0.0, 0.02, 0.5]),
    "repetition_penalty": st.sampled_from([1.0, 1.2]), "frequency_penalty": st.sampled_from([0.0, 0.6]),
    "logit_bias": st.sampled_from([{}, {WIDE - 1: 3.0, 0: -2.0}]), "bad_words": st.sampled_from([(), ((1,), (2, 3))]),
    "logprobs": st.booleans(), "seed": st.integers(0, 2**63 - 1)})


def test_a_row_that_comes_again_with_more_does_not_change_places_with_another():
    options = [{"top_k": HEAD, "temperature": 0.3}, {"top_p": 0.9999}, {"top_k": HEAD, "temperature": 0.3}]
    own, sample = logits(3, WIDE), Sampler(WIDE)
    together = sample(own, [row(WIDE, **o) for o in options]).ids
    assert together == tuple(sample(own[b : b + 1], [row(WIDE, **o)]).ids[0] for b, o in enumerate(options))


@settings(max_examples=40, deadline=None)
@given(options=st.lists(SETTINGS, min_size=2, max_size=6), at=st.integers(0, 10_000), masked=st.booleans(), halves=st.booleans(),
       plain=st.sampled_from([0, 2**13]), presence=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=4, max_size=4))
def test_a_row_is_bitwise_the_same_in_any_company(options, at, masked, halves, plain, presence):
    """Rows that come and go at random, beside the same rows each alone: ids, log-probabilities and errors. Halves: equal logits are common."""
    before, sampler_module.PLAIN = sampler_module.PLAIN, plain
    try:
        compare(options, at, masked, halves, presence)
    finally:
        sampler_module.PLAIN = before


def compare(options, at, masked, halves, presence):
    together, alone = [row(WIDE, **o) for o in options], [row(WIDE, **o) for o in options]
    sample = Sampler(WIDE)
    sample._n_together = 4  # so that a batch is cut where no one sees it
    for step, here in enumerate(presence):
        some = [b for b in range(len(options)) if here[b]]
        if not some:
            continue
        own = logits(len(options), WIDE, at + step, torch.bfloat16 if halves else torch.float32)
        mask = torch.randint(-2**31, 2**31, (len(options), -(-WIDE // 32)), generator=torch.Generator().manual_seed(at + step), dtype=torch.int32)
        sampled = sample(own[some], [together[b] for b in some], mask[some] if masked else None)
        for place, b in enumerate(some):
            single = sample(own[b : b + 1], [alone[b]], mask[b : b + 1] if masked else None)
            assert (single.ids[0], single.logprobs[0], single.top_logprobs[0]) == (sampled.ids[place], sampled.logprobs[place], sampled.top_logprobs[place])
            assert (0 in single.errors) == (place in sampled.errors)
    assert [r.output_ids for r in together] == [r.output_ids for r in alone]


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_gives_a_row_of_a_wide_vocabulary_the_same_bits_in_any_company(threads, monkeypatch):
    """exp, log and cumsum are not promised to do so, for any number of threads: here is where it would show."""
    n_vocab, before = 151_937, torch.get_num_threads()
    monkeypatch.setattr(sampler_module, "CACHED", 2**40)
    options = [{}, {"top_p": 0.9}, {"temperature": 8.0, "top_p": 0.7}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.01}]
    own = logits(5, n_vocab)
    torch.set_num_threads(threads)
    try:
        sampled = Sampler(n_vocab)(own, [row(n_vocab, logprobs=True, top_logprobs=3, seed=s, **o) for s, o in enumerate(options)])
        for b, o in enumerate(options):
            single = Sampler(n_vocab)(own[b : b + 1].clone(), [row(n_vocab, logprobs=True, top_logprobs=3, seed=b, **o)])
            assert (single.ids[0], single.logprobs[0], single.top_logprobs[0]) == (sampled.ids[b], sampled.logprobs[b], sampled.top_logprobs[b])
    finally:
        torch.set_num_threads(before)

"""The sampler against transformers' logits processors, closed forms, and frequencies."""
from __future__ import annotations

import re

import pytest
import torch
from transformers.generation import logits_process as hf

from pellucid.engine import sampler as sampler_module
from pellucid.engine.request import Request, Sampling
from pellucid.engine.row import HEAD, Row
from pellucid.engine.sampler import Sampler, halved, invert, presence_and_frequency, repetition, score, scores, total
from pellucid.errors import BadRequest

B, V = 5, 73


@pytest.fixture
def logits_BV() -> torch.Tensor:
    return torch.randn(B, V, generator=torch.Generator().manual_seed(3)) * 3


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def rows(settings: list[dict], n_vocab: int = V, prompt: tuple[int, ...] = (0,), **request) -> list[Row]:
    return [Row(Request(prompt_ids=prompt, sampling=Sampling(**s), **request), n_vocab) for s in settings]


def chosen(logits_BV: torch.Tensor, some: list[Row], mask: torch.Tensor | None = None) -> list[int]:
    """One call; every row must come through."""
    sampled = Sampler(logits_BV.shape[1])(logits_BV, some, mask)
    assert sampled.errors == {}
    assert sampled.ids_B.tolist() == list(sampled.ids)
    return list(sampled.ids)


def truncated(logits_BV: torch.Tensor, top_k: list[int], top_p: list[float], min_p: list[float]) -> torch.Tensor:
    """The rows as the draw sees them, (B, V): what was dropped is -inf."""
    some = rows([{"top_k": k, "top_p": p, "min_p": m} for k, p, m in zip(top_k, top_p, min_p, strict=True)], logits_BV.shape[1])
    kept_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    shifted_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    for places, weights_GV in Sampler(logits_BV.shape[1]).weights(shifted_BV, some):
        assert set(weights_GV[weights_GV > 0].tolist()) <= set(shifted_BV[places].exp().flatten().tolist())
        kept_BV[places] = weights_GV > 0
    return logits_BV.masked_fill(~kept_BV, -torch.inf)


def test_repetition_penalty_equals_transformers(logits_BV):
    history = torch.randint(V, (B, 20), generator=torch.Generator().manual_seed(4))
    seen_BV = torch.zeros(B, V, dtype=torch.bool).scatter(1, history, True)
    for penalty in (0.7, 1.0, 1.3):
        expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(history, logits_BV.clone())
        torch.testing.assert_close(repetition(logits_BV, seen_BV, column(*[penalty] * B)), expected, rtol=0, atol=0)


def test_presence_and_frequency_follow_their_formula(logits_BV):
    counts_BV = torch.randint(4, (B, V), generator=torch.Generator().manual_seed(5)).float()
    presence, frequency = [0.0, 0.5, -1.0, 2.0, 0.1], [1.0, 0.0, 0.3, -2.0, 0.7]
    out = presence_and_frequency(logits_BV, counts_BV, column(*presence), column(*frequency))
    for b in range(B):
        for v in range(V):
            count = counts_BV[b, v].item()
            assert out[b, v].item() == pytest.approx(logits_BV[b, v].item() - presence[b] * (count > 0) - frequency[b] * count, abs=1e-5)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [
    (1, 1.0, 0.0), (7, 1.0, 0.0), (V, 1.0, 0.0), (500, 1.0, 0.0), (0, 0.001, 0.0), (0, 0.3, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (0, 1.0, 0.9),
    (0, 1.0, 1.0), (12, 0.8, 0.0), (12, 0.95, 0.1), (0, 0.99, 0.02), (3, 0.5, 0.5)])
def test_truncation_equals_transformers_warpers_in_their_order(logits_BV, top_k, top_p, min_p):
    expected = logits_BV
    if top_k:
        expected = hf.TopKLogitsWarper(min(top_k, V))(None, expected)
    if top_p < 1:
        expected = hf.TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = hf.MinPLogitsWarper(min_p)(None, expected)
    torch.testing.assert_close(truncated(logits_BV, [min(top_k, V)] * B, [top_p] * B, [min_p] * B), expected, rtol=0, atol=0)


def test_rows_of_a_batch_keep_their_own_settings(logits_BV):
    top_k, top_p, min_p = [3, V, V, 40, V], [1.0, 0.6, 1.0, 0.9, 1.0], [0.0, 0.0, 0.2, 0.01, 0.0]
    together = truncated(logits_BV, top_k, top_p, min_p)
    for b in range(B):
        torch.testing.assert_close(together[b : b + 1], truncated(logits_BV[b : b + 1], [top_k[b]], [top_p[b]], [min_p[b]]), rtol=0, atol=0)
    assert torch.isfinite(together[4]).all()


@pytest.mark.parametrize("flat", [False, True])
def test_top_p_over_a_wide_vocabulary_equals_transformers_where_the_first_tokens_do_not_suffice(flat):
    wide = torch.randn(3, 4 * HEAD, generator=torch.Generator().manual_seed(6)) * (0.1 if flat else 4)
    for top_p in (0.05, 0.9, 0.999):
        expected = hf.TopPLogitsWarper(top_p)(None, wide)
        assert (expected[0].isfinite().sum() > HEAD) == (flat and top_p >= 0.9)
        torch.testing.assert_close(truncated(wide, [0] * 3, [top_p] * 3, [0.0] * 3), expected, rtol=0, atol=0)


def test_a_row_without_top_p_keeps_all_its_tokens_beside_one_that_has_it():
    steep = torch.arange(4 * HEAD).float()[None].repeat(2, 1) * -0.02  # down to e**-82: nothing rounds to 0
    together = truncated(steep, [0, 0], [0.9, 1.0], [0.0, 0.0])
    assert torch.isfinite(together[1]).all()
    assert torch.isfinite(together[0]).sum() == 116  # 1 - e**(-n / 50) >= 0.9 first holds at n = 116


def test_top_k_keeps_exactly_k_where_tokens_tie():
    assert torch.isfinite(truncated(torch.zeros(1, V), [4], [1.0], [0.0])).sum() == 4


def test_bias_and_penalties_come_before_the_greedy_choice():
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    def choose(**settings):
        return chosen(logits, rows([{"temperature": 0, **settings}], 3))[0]
    assert choose() == 0
    assert choose(logit_bias={2: 2.5}) == 2
    assert choose(logit_bias={0: -100.0}) == 1
    assert choose(repetition_penalty=2.0) == 1  # the prompt counts: 3 / 2 < 2
    assert choose(presence_penalty=2.0) == 0  # it does not count here
    # The bias is inside what the repetition penalty divides: (3 + 1.5) / 2 > 2, where 3 / 2 + 1.5 would be 3.
    assert choose(logit_bias={0: 1.5, 1: 0.5}, repetition_penalty=2.0) == 1


def test_penalties_count_the_output_token_by_token():
    logits = torch.tensor([[3.0, 2.5, 2.0]])
    def choices(n, **settings):
        row = rows([{"temperature": 0, **settings}], 3, prompt=(2,))
        return [chosen(logits, row)[0] for _ in range(n)]
    assert choices(4, presence_penalty=0.6) == [0, 1, 0, 0]  # 2.4 < 2.5, then 2.4 > 1.9: once taken, presence takes no more
    assert choices(6, frequency_penalty=0.6) == [0, 1, 0, 2, 1, 0]  # 3 2.5 2 | 2.4 2.5 2 | 2.4 1.9 2 | 1.8 1.9 2 | 1.8 1.9 1.4 | 1.8 1.3 1.4
    assert choices(3, repetition_penalty=1.4) == [0, 1, 0]  # 2.14 2.5 1.43 | 2.14 1.79 1.43


def test_temperature_divides_before_min_p_and_top_p_look():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    three = rows([{"temperature": t, "min_p": 0.3, "seed": 1} for t in (0.5, 1.0, 4.0)], 3)
    drawn = torch.tensor([chosen(logits.repeat(3, 1), three) for _ in range(400)])
    # e**(-1/t) against 0.3, e**(-2/t) against 0.3
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.7, "top_k": 9}, {"top_p": 0.7}, {"min_p": 0.1},
                                      {"top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3}])
def test_frequencies_follow_the_distribution_transformers_leaves(logits_BV, settings):
    """Chi-square over 20,000 draws: below the 99.99 % point for the degrees of freedom (Wilson-Hilferty)."""
    n = 20_000
    scores = logits_BV[:1]
    if settings.get("temperature", 1.0) != 1.0:
        scores = hf.TemperatureLogitsWarper(settings["temperature"])(None, scores)
    if settings.get("top_k"):
        scores = hf.TopKLogitsWarper(settings["top_k"])(None, scores)
    if "top_p" in settings:
        scores = hf.TopPLogitsWarper(settings["top_p"])(None, scores)
    if "min_p" in settings:
        scores = hf.MinPLogitsWarper(settings["min_p"])(None, scores)
    expected = scores.softmax(-1)[0].double() * n
    drawn = chosen(logits_BV[:1].expand(n, V), rows([{"seed": s, **settings} for s in range(n)]))
    counts = torch.bincount(torch.tensor(drawn), minlength=V).double()
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest = torch.stack([expected[~often].sum(), counts[~often].sum()])
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum() + (((rest[1] - rest[0]) ** 2 / rest[0]) if rest[0] >= 5 else 0)
    dof = int(often.sum()) - 1 + int(rest[0] >= 5)
    assert chi2 < dof * (1 - 2 / (9 * dof) + 3.72 * (2 / (9 * dof)) ** 0.5) ** 3


def test_successive_draws_of_one_seed_follow_the_distribution():
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    row = rows([{"seed": 11}], 4)
    n = 8_000
    drawn = torch.tensor([chosen(probs.log()[None], row)[0] for _ in range(n)])
    counts = torch.bincount(drawn, minlength=4) / n
    assert ((counts - probs).abs() < 4.5 * (probs * (1 - probs) / n).sqrt()).all()
    pairs = (drawn[1:] == drawn[:-1]).double().mean()  # independent draws repeat with probability sum p**2
    assert abs(pairs - (probs ** 2).sum()) < 4.5 * (0.344 * 0.656 / n) ** 0.5


def test_a_seed_gives_the_same_draws_whoever_shares_the_batch(logits_BV):
    def draws(seeds):
        some = rows([{"seed": seed, "top_p": 0.95} for seed in seeds])
        return torch.tensor([chosen(logits_BV[[seed % B for seed in seeds]] * k, some) for k in (0.1, 0.2, 0.3) * 4])
    alone, among = draws([1]), draws([4, 1, 2])
    assert alone[:, 0].tolist() == among[:, 1].tolist()
    assert among[:, 0].tolist() != among[:, 1].tolist()


def test_greedy_and_drawn_rows_share_a_batch(logits_BV):
    three = rows([{"temperature": 0}, {"seed": 5, "temperature": 2.0}, {"temperature": 0, "logit_bias": {17: 100.0}}])
    came = torch.tensor([chosen(logits_BV[:3], three) for _ in range(20)])
    assert came[:, 0].tolist() == [logits_BV[0].argmax().item()] * 20
    assert len(set(came[:, 1].tolist())) > 3
    assert came[:, 2].tolist() == [17] * 20


@pytest.mark.parametrize("plain", [0, 2**13])
@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
@pytest.mark.parametrize("second", [-1.0, -10.0, 0.0])  # totals of 1.37, a little above 1, and 2
def test_the_inverse_never_lands_on_a_token_without_probability(wide, second, plain, monkeypatch):
    monkeypatch.setattr(sampler_module, "PLAIN", plain)
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, second, -torch.inf]])
    last = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)).item()
    share = 1 / (1 + torch.tensor(second, dtype=torch.float64).exp().item())
    for u, place in [(0.0, 1), (share - 1e-6, 1), (min(share + 1e-6, last), 3), (last, 3)]:
        assert invert(logits.exp(), torch.tensor([[u]], dtype=torch.float64), wide).item() == place


def test_extreme_temperatures_neither_overflow_nor_vanish():
    logits = torch.tensor([[80.0, -80.0, 79.0]])
    assert chosen(logits, rows([{"temperature": 1e-6, "seed": 2}], 3)) == [0]
    hot = rows([{"temperature": 1e6, "seed": 2}], 3)
    assert {chosen(logits, hot)[0] for _ in range(60)} == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[1.0, float("nan"), 2.0], [float("-inf")] * 3, [float("inf"), 0.0, 0.0]])
def test_logits_that_are_not_numbers_fail_their_row_alone(row, temperature):
    three = rows([{"temperature": temperature}] * 3, 3)
    sampled = Sampler(3)(torch.tensor([[0.0, 9.0, 0.0], row, [0.0, 0.0, 99.0]]), three)
    assert (sampled.ids[1], sampled.ids_B[1].item(), three[1].output_ids) == (-1, -1, [])
    assert (sampled.ids[2], [len(r.output_ids) for r in three]) == (2, [1, 0, 1])
    assert list(sampled.errors) == [1]
    assert re.match(r"the model computed logits that are not numbers .* try another dtype", str(sampled.errors[1]))


def test_ids_outside_the_vocabulary_are_refused_before_anything_runs():
    with pytest.raises(BadRequest, match=r"logit_bias has token id 73, and this model's vocabulary has ids 0 to 72"):
        rows([{"logit_bias": {73: 1.0}}])
    with pytest.raises(BadRequest, match=r"prompt has token id 99"):
        rows([{}], prompt=(99,))
    for name, value in (("stop_ids", [74]), ("prefix_ids", [1, 74]), ("bad_words", [[1], [2, 74]])):
        with pytest.raises(BadRequest, match=rf"{name} has token id 74") as caught:
            rows([{}], **{name: value})
        assert caught.value.field == name


def test_half_precision_logits_are_sampled_in_float32():
    logits = torch.tensor([[1.0, 1.0009765625, 1.0]]).bfloat16()
    drawn = chosen(logits.expand(3000, 3), rows([{"seed": s} for s in range(3000)], 3))
    assert torch.bincount(torch.tensor(drawn)).min() > 850  # about 1000 each


def packed(allowed_BV: torch.Tensor) -> torch.Tensor:
    """Bit by bit, as the words are said to be."""
    words = [[sum(1 << i % 32 for i in range(w * 32, min(w * 32 + 32, len(row))) if row[i]) for w in range(-(-len(row) // 32))] for row in allowed_BV.tolist()]
    return torch.tensor(words, dtype=torch.int64).where(torch.tensor(words) < 2**31, torch.tensor(words) - 2**32).to(torch.int32)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 3.0, "seed": 1}, {"top_k": 2, "seed": 1}, {"top_p": 0.5, "seed": 1}])
def test_a_mask_forbids_all_that_it_does_not_allow(logits_BV, settings):
    allowed_BV = torch.rand(B, V, generator=torch.Generator().manual_seed(9)) < 0.1
    allowed_BV[:, 0], allowed_BV[1], allowed_BV[2, :] = True, True, torch.arange(V) == V - 1
    some = rows([settings] * B)
    for _ in range(30):
        ids = chosen(logits_BV, some, packed(allowed_BV))
        assert all(allowed_BV[b, i] for b, i in enumerate(ids))
        assert ids[2] == V - 1
        if settings == {"temperature": 0}:
            assert ids == logits_BV.masked_fill(~allowed_BV, -torch.inf).argmax(-1).tolist()


def test_top_k_and_top_p_look_at_what_the_mask_leaves():
    logits = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    for settings in ({"top_k": 2}, {"top_p": 0.99}):
        some = rows([{"seed": 2, **settings}], 4)
        mask = packed(torch.tensor([[False, False, True, True]]))
        assert {chosen(logits, some, mask)[0] for _ in range(60)} == {2, 3}


def test_a_mask_of_ones_changes_nothing(logits_BV):
    ones = torch.full((B, -(-V // 32)), -1, dtype=torch.int32)
    options = [{"seed": s, "temperature": t, "top_k": k} for s, t, k in zip(range(B), (0, 1, 2, 1, 3), (0, 5, 0, 9, 0), strict=True)]
    free, bound = rows(options), rows(options)
    assert [chosen(logits_BV, free) for _ in range(20)] == [chosen(logits_BV, bound, ones) for _ in range(20)]


def test_a_row_left_without_a_choice_fails_alone_and_says_why(logits_BV):
    mask = packed(torch.arange(V).expand(3, V) == 7)
    three = [rows([{}])[0], rows([{}], bad_words=[[7]])[0], rows([{}], stop_ids=[7], min_tokens=1)[0]]
    sampled = Sampler(V)(logits_BV[:3], three, mask)
    assert (sampled.ids, sorted(sampled.errors)) == ((7, -1, -1), [1, 2])
    for error in sampled.errors.values():
        assert str(error).startswith("the constraint, bad_words and min_tokens leave no token that may come next")


def test_settings_that_overflow_are_told_so():
    some = rows([{"temperature": 0, "repetition_penalty": 1e-38}], prompt=(2,))
    sampled = Sampler(V)(torch.full((1, V), 9.0), some)
    assert str(sampled.errors[0]) == "logit_bias and repetition_penalty took logits past what float32 holds (largest: inf). Choose smaller ones"


def test_logprobs_are_the_models_own_whatever_the_settings(logits_BV):
    settings = [{"temperature": 0}, {"temperature": 5.0, "seed": 1}, {"top_k": 3, "seed": 2}, {"repetition_penalty": 1.9, "seed": 3}, {"logit_bias": {4: 9.0}}]
    tops = [0, 1, 20, 4, 2]
    some = [rows([s], logprobs=True, top_logprobs=k)[0] for s, k in zip(settings, tops, strict=True)]
    sampled = Sampler(V)(logits_BV, some, packed(torch.arange(V).expand(B, V) % 2 == 0))
    expected_BV = logits_BV.double().log_softmax(-1)
    for b, k in enumerate(tops):
        assert sampled.ids[b] % 2 == 0
        assert sampled.logprobs[b] == pytest.approx(expected_BV[b, sampled.ids[b]].item(), abs=2e-6)  # a float32 logit near 8 is known to 5e-7
        best = expected_BV[b].topk(k)
        assert [i for i, _ in sampled.top_logprobs[b]] == best.indices.tolist()
        assert [p for _, p in sampled.top_logprobs[b]] == pytest.approx(best.values.tolist(), abs=2e-6)


def test_only_rows_that_ask_have_logprobs(logits_BV):
    some = [rows([{}])[0], rows([{}], logprobs=True)[0], rows([{"temperature": 1}], n=1, best_of=2)[0]]
    sampled = Sampler(V)(logits_BV[:3], some)
    assert [p is None for p in sampled.logprobs] == [True, False, False]  # best_of chooses by them
    assert sampled.top_logprobs == (None, (), ())


def test_scores_of_given_ids_are_bitwise_those_of_sampled_ones(logits_BV):
    some = rows([{"seed": s} for s in range(B)], logprobs=True, top_logprobs=3)
    sampled = Sampler(V)(logits_BV, some)
    again = [scores(values, 3) for values in score(logits_BV, sampled.ids_B, True).double().tolist()]
    assert again == list(zip(sampled.logprobs, sampled.top_logprobs, strict=True))


def test_of_equal_logits_at_the_border_those_of_the_lowest_ids_stay():
    logits = torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 0.0]])
    assert truncated(logits, [4], [1.0], [0.0])[0].isfinite().nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    even = torch.zeros(1, 10)
    assert truncated(even, [0], [0.35], [0.0])[0].isfinite().nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    flat = torch.zeros(2, 2 * HEAD)  # equals past what is looked at first
    kept = truncated(flat, [HEAD - 1, 0], [1.0, 0.25], [0.0, 0.0]).isfinite()
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [list(range(HEAD - 1)), list(range(HEAD // 2))]
    assert truncated(logits, [4], [1.0], [0.3])[0].isfinite().nonzero()[:, 0].tolist() == [1, 3]  # min-p's floor is the higher one


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000, 4096])
@pytest.mark.parametrize("plain", [0, 2**13])
def test_the_inverse_equals_the_running_sum_of_float64(n, plain, monkeypatch):
    monkeypatch.setattr(sampler_module, "PLAIN", plain)
    generator = torch.Generator().manual_seed(n)
    weights_1N = (torch.randn(1, n, generator=generator) * 4).exp() * (torch.rand(1, n, generator=generator) < 0.7)
    weights_1N[0, n // 2] = 1.0
    cdf_N = weights_1N[0].double().cumsum(-1)
    cdf_N /= cdf_N[-1].clone()
    u_B1 = torch.rand(500, 1, dtype=torch.float64, generator=generator)
    places = invert(weights_1N.expand(500, n), u_B1)[:, 0]
    before = torch.cat([torch.zeros(1, dtype=torch.float64), cdf_N])[places]
    assert (weights_1N[0, places] > 0).all()
    # Sums of blocks are float32's: eight roundings of 6e-8.
    assert ((u_B1[:, 0] >= before - 5e-7) & (u_B1[:, 0] <= cdf_N[places] + 5e-7)).all()


def test_a_place_is_drawn_as_often_as_it_weighs_over_many_blocks(monkeypatch):
    """Evenly spaced numbers meet a place as often as its share of them, give or take the two at its ends."""
    monkeypatch.setattr(sampler_module, "PLAIN", 0)
    n, draws = 1000, 40_000
    weights_1N = torch.rand(1, n, generator=torch.Generator().manual_seed(2)) ** 3
    u_B1 = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws)[:, None]
    counts = torch.cat([torch.bincount(invert(weights_1N.expand(len(u), n), u)[:, 0], minlength=n)[None] for u in u_B1.split(4_000)]).sum(0)
    expected = weights_1N[0].double() / weights_1N.double().sum() * draws
    assert ((counts - expected).abs() <= 1.02).all()


def test_a_batch_cut_in_pieces_is_reported_as_one(logits_BV, monkeypatch):
    monkeypatch.setattr(sampler_module, "CACHED", 2 * V)
    broken = logits_BV.clone()
    broken[3, 5] = torch.nan
    some = [rows([{"temperature": 0}], logprobs=b % 2 == 0)[0] for b in range(B)]
    sampled = Sampler(V)(broken, some)
    best = logits_BV.argmax(-1).tolist()
    assert sampled.ids == (*best[:3], -1, best[4]) == tuple(sampled.ids_B.tolist())
    assert list(sampled.errors) == [3]
    assert [p is not None for p in sampled.logprobs] == [True, False, True, False, True]


def test_a_mask_of_the_wrong_shape_is_a_bug_of_the_caller(logits_BV):
    with pytest.raises(AssertionError, match=r"a mask of torch.int32, \(5, 2\); expected \(torch.int32, 3\)"):
        Sampler(V)(logits_BV, rows([{}] * B), torch.zeros(B, 2, dtype=torch.int32))


def test_no_rows_are_no_ids():
    sampled = Sampler(V)(torch.empty(0, V), [])
    assert (sampled.ids, sampled.ids_B.shape, sampled.errors) == ((), (0,), {})


@pytest.mark.parametrize("add", [total, halved])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 150_001])
def test_sums_of_rows_are_right_and_the_same_in_any_company(n, add):
    weights = torch.rand(7, n, generator=torch.Generator().manual_seed(n))
    sums = add(weights)
    torch.testing.assert_close(sums, weights.double().sum(-1, keepdim=True).float(), rtol=1e-6, atol=0)  # log2(150,001) / 2 roundings of 6e-8
    assert all(torch.equal(add(weights[b : b + n_rows].clone()), sums[b : b + n_rows]) for b in range(4) for n_rows in (1, 2, 3))

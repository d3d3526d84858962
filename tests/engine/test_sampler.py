"""The sampler against transformers' logits processors, closed forms, and frequencies."""
from __future__ import annotations

import re

import pytest
import torch
from transformers.generation import logits_process as hf

from pellucid.engine import sampler as sampler_module
from pellucid.engine.request import Request, Sampling
from pellucid.engine.sampler import Row, Sampler, invert, presence_and_frequency, repetition
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
    """The rows as the draw sees them, (B, V): what was dropped is -inf. Every row has a seed of its own and must land on what is left."""
    n_vocab = logits_BV.shape[1]
    out_BV = torch.full_like(logits_BV, -torch.inf)
    some = rows([{"top_k": k, "top_p": p, "min_p": m} for k, p, m in zip(top_k, top_p, min_p, strict=True)], n_vocab)
    for places, logits_GN, ids_GN in Sampler(n_vocab).candidates(logits_BV, some):
        out_BV[places] = logits_GN if ids_GN is None else torch.full_like(logits_BV[places], -torch.inf).scatter(1, ids_GN, logits_GN)
    return out_BV


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
    wide = torch.randn(3, 4 * sampler_module.HEAD, generator=torch.Generator().manual_seed(6)) * (0.1 if flat else 4)
    for top_p in (0.05, 0.9, 0.999):
        expected = hf.TopPLogitsWarper(top_p)(None, wide)
        assert (expected[0].isfinite().sum() > sampler_module.HEAD) == (flat and top_p >= 0.9)
        torch.testing.assert_close(truncated(wide, [0] * 3, [top_p] * 3, [0.0] * 3), expected, rtol=0, atol=0)


def test_a_row_without_top_p_keeps_all_its_tokens_beside_one_that_has_it():
    steep = torch.arange(4 * sampler_module.HEAD).float()[None].repeat(2, 1) * -1.0  # the first few hold all the mass float32 can see
    together = truncated(steep, [0, 0], [0.9, 1.0], [0.0, 0.0])
    assert torch.isfinite(together[1]).all()
    assert torch.isfinite(together[0]).sum() == 3  # 1 - e**-n >= 0.9 first holds at n = 3


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


@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
@pytest.mark.parametrize("second", [-1.0, -10.0, 0.0])  # totals of 1.37, a little above 1, and 2
def test_the_inverse_never_lands_on_a_token_without_probability(wide, second):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, second, -torch.inf]])
    last = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)).item()
    share = 1 / (1 + torch.tensor(second, dtype=torch.float64).exp().item())
    for u, place in [(0.0, 1), (share - 1e-6, 1), (min(share + 1e-6, last), 3), (last, 3)]:
        assert invert(logits, torch.tensor([[u]], dtype=torch.float64), wide).item() == place


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

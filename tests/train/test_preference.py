"""Preference losses in closed form: where policies are equal, where answers change sides, and as beta grows; and a step in parts is the whole step."""
from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from pellucid.ops.fused import Fused
from pellucid.train.kto import Kto, Verdicts, mismatched
from pellucid.train.loop import Run, step
from pellucid.train.method import Method
from pellucid.train.optim import Optimizer
from pellucid.train.preference import Answers, Dpo, Ipo, Orpo, Preference, SimPo, log_odds
from pellucid.train.recipe import read_recipe
from pellucid.train.reference import Reference
from pellucid.train.trainable import trained
from tests.train.tiny import N_VOCAB, tiny_decoder

log_p = st.floats(-300, -0.01)
beta = st.floats(0.01, 5)
n_tokens = st.integers(1, 400)


def answers(log_p: float, n: float, log_r: float | None = None) -> Answers:
    return Answers(torch.tensor([log_p], dtype=torch.float64), torch.tensor([float(n)]), None if log_r is None else torch.tensor([log_r], dtype=torch.float64))


@given(log_p, n_tokens, log_p, n_tokens, beta)
def test_what_equals_its_reference_loses_log_2_in_dpo(p_w: float, n_w: int, p_l: float, n_l: int, beta: float) -> None:
    assert Dpo(beta=beta).losses(answers(p_w, n_w, p_w), answers(p_l, n_l, p_l)).item() == pytest.approx(math.log(2), rel=1e-9)


@given(log_p, n_tokens, log_p, n_tokens, beta)
def test_what_equals_its_reference_is_a_whole_margin_away_in_ipo(p_w: float, n_w: int, p_l: float, n_l: int, beta: float) -> None:
    assert Ipo(beta=beta).losses(answers(p_w, n_w, p_w), answers(p_l, n_l, p_l)).item() == pytest.approx((1 / (2 * beta)) ** 2, rel=1e-6)


@given(log_p, log_p, log_p, log_p, beta)
def test_swapped_pairs_differ_by_the_margin_in_dpo(p_w: float, p_l: float, r_w: float, r_l: float, beta: float) -> None:
    """-log σ(m) + log σ(-m) = -m."""
    dpo, w, worse = Dpo(beta=beta), answers(p_w, 3, r_w), answers(p_l, 5, r_l)
    margin = beta * ((p_w - r_w) - (p_l - r_l))
    assert (dpo.losses(w, worse) - dpo.losses(worse, w)).item() == pytest.approx(-margin, rel=1e-6, abs=1e-9)


@given(log_p, log_p, log_p, log_p)
def test_a_large_beta_makes_dpo_a_hinge_and_a_small_one_nothing(p_w: float, p_l: float, r_w: float, r_l: float) -> None:
    w, worse = answers(p_w, 3, r_w), answers(p_l, 5, r_l)
    margin = (p_w - r_w) - (p_l - r_l)
    assert Dpo(beta=1e4).losses(w, worse).item() / 1e4 == pytest.approx(max(0.0, -margin), abs=1e-4)
    assert Dpo(beta=1e-9).losses(w, worse).item() == pytest.approx(math.log(2), abs=1e-6)


@given(st.floats(-60, -1e-7))
def test_log_odds_are_those_of_float64(log_q: float) -> None:
    q = torch.tensor(log_q, dtype=torch.float64).exp()
    assert log_odds(torch.tensor(log_q)).item() == pytest.approx(math.log(q / -math.expm1(float(torch.tensor(log_q)))), rel=1e-4, abs=1e-5)


def test_log_odds_have_a_gradient_at_both_ends() -> None:
    log_q = torch.tensor([-1e-6, -0.5, -0.7, -80.0], requires_grad=True)
    log_odds(log_q).sum().backward()
    torch.testing.assert_close(log_q.grad, 1 / -torch.expm1(log_q.detach()))  # d/dx (x - log(1 - e^x)) = 1 / (1 - e^x)


@given(st.lists(st.tuples(log_p, log_p, st.booleans()), min_size=1, max_size=6), st.floats(0, 50), beta, st.floats(0.1, 3), st.floats(0.1, 3))
def test_kto_weighs_each_side_and_is_half_of_it_at_z(rows: list[tuple[float, float, bool]], z: float, beta: float, good: float, bad: float) -> None:
    method = Verdicts(Kto(beta=beta, good=good, bad=bad), Reference(None), 64)
    method._z = z
    v = torch.tensor([p - r for p, r, _ in rows], dtype=torch.float64)
    side = torch.tensor([good for *_, good in rows])
    found = method.losses(v, side)
    share = torch.where(side, good, bad).double()
    torch.testing.assert_close(found, share * (1 - torch.sigmoid(beta * torch.where(side, v - z, z - v))), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found + method.losses(2 * z - v, side), share, rtol=1e-6, atol=1e-9)  # a mirror at z
    assert bool((method.losses(torch.full_like(v, z), side) == share / 2).all())


def row(prompt: int, answer: int, draw: random.Random, origin: str) -> Example:
    ids = tuple(draw.randrange(N_VOCAB) for _ in range(prompt + answer))
    return Example(ids, (False,) * prompt + (True,) * answer, origin)


def pairs(n: int, seed: int = 0) -> list[Item]:
    draw, out = random.Random(seed), []
    for i in range(n):
        prompt = draw.randrange(1, 5)
        w, worse = (row(prompt, draw.randrange(1, 9), draw, f"pairs:{i}") for _ in range(2))
        out.append(Comparison(w, Example(w.ids[:prompt] + worse.ids[prompt:], worse.learned, worse.origin), f"pairs:{i}"))
    return out


def verdicts(n: int, seed: int = 0) -> list[Item]:
    draw = random.Random(seed)
    return [Verdict(row(draw.randrange(1, 5), draw.randrange(1, 9), draw, f"verdicts:{i}"), draw.random() < 0.6, f"verdicts:{i}") for i in range(n)]


def run(method: Method, items: list[Item], micro_tokens: int, decoder: Decoder, kind: str = "full") -> tuple[dict[str, float], dict[str, Tensor]]:
    """What a step tells, and its gradients."""
    recipe = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, "tune": {"kind": kind},
                          "optim": {"clip": None}, "micro_tokens": micro_tokens})
    what = trained(decoder, recipe.tune, 0)
    if kind == "lora":  # beyond its first step, where it changes something
        for name, p in what.parameters.items():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(p, 0, 0.1, generator=torch.Generator().manual_seed(3))
    optimizer = Optimizer(what.parameters, recipe.optim)
    optimizer.step = lambda share: None  # type: ignore[method-assign]  # the gradients stay
    done = step(Run(decoder=decoder, trained=what, method=method, optimizer=optimizer, recipe=recipe, steps=1, items=lambda n: items))
    return {"loss": done.loss, **done.told}, {name: p.grad for name, p in what.parameters.items()}


METHODS: dict[str, Any] = {
    "dpo": (Dpo(), pairs), "dpo and sft": (Dpo(sft=0.5), pairs), "ipo": (Ipo(), pairs), "simpo": (SimPo(), pairs), "orpo": (Orpo(), pairs),
    "orpo of prompts": (Orpo(learn_prompt=True), pairs), "kto": (Kto(good=1.2), verdicts)}


def made(name: str, reference: Reference) -> Method:
    how = METHODS[name][0]
    return Verdicts(how, reference, 64) if isinstance(how, Kto) else Preference(name, how, reference if how.refers else None)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_8_in_1_2_4_or_8_parts_is_one_step(name: str) -> None:
    items = METHODS[name][1](8)
    told, expected = run(made(name, Reference(tiny_decoder(Fused(), seed=1))), items, 10_000, tiny_decoder(Fused()))
    for micro_tokens in (90, 45, 1):
        again, found = run(made(name, Reference(tiny_decoder(Fused(), seed=1))), items, micro_tokens, tiny_decoder(Fused()))
        assert again == pytest.approx(told, rel=1e-5, abs=1e-6)
        for tensor, gradient in expected.items():
            torch.testing.assert_close(found[tensor], gradient, rtol=1e-4, atol=1e-6, msg=tensor)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_the_reference_is_the_model_without_its_adapter_or_what_was_computed_ahead(name: str) -> None:
    items = METHODS[name][1](5)
    told, expected = run(made(name, Reference(tiny_decoder(Fused()))), items, 50, tiny_decoder(Fused()), "lora")
    same = tiny_decoder(Fused())
    ahead = Reference(None)
    ahead.ahead(tiny_decoder(Fused()), made(name, ahead).referred(items), 30)
    for reference, decoder in ((Reference(same), same), (ahead, tiny_decoder(Fused()))):
        again, found = run(made(name, reference), items, 50, decoder, "lora")
        assert again == pytest.approx(told, rel=1e-5, abs=1e-6)
        for tensor, gradient in expected.items():
            torch.testing.assert_close(found[tensor], gradient, rtol=1e-4, atol=1e-6, msg=tensor)
    assert told["accuracy"] > 0


def test_dpo_before_its_first_change_loses_log_2_and_has_no_margin() -> None:
    decoder = tiny_decoder(Fused())
    told, _ = run(made("dpo", Reference(tiny_decoder(Fused()))), pairs(6), 40, decoder)
    assert told["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert told["margin"] == pytest.approx(0, abs=1e-5)


def test_orpo_adds_the_chosen_answers_loss_a_token_to_the_odds() -> None:
    decoder, items = tiny_decoder(Fused()), pairs(4)
    told, _ = run(made("orpo", Reference(None)), items, 10_000, decoder)
    nll, tokens, odds = 0.0, 0, 0.0
    for item in items:
        assert isinstance(item, Comparison)
        mean = []
        for side in (item.chosen, item.rejected):
            ids = torch.tensor(side.ids)
            with torch.no_grad():
                all_T = decoder.unembed(decoder(ids)).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            asked = all_T[torch.tensor(side.learned[1:])]
            mean.append(asked.mean())
            if side is item.chosen:
                nll, tokens = nll - asked.sum().item(), tokens + len(asked)
        w, worse = (m.exp() / (1 - m.exp()) for m in mean)
        odds -= 0.1 * F.logsigmoid(torch.log(w / worse)).item()
    assert told["loss"] == pytest.approx(nll / tokens + odds / len(items), rel=1e-5)
    assert told["chosen_loss"] == pytest.approx(nll / tokens, rel=1e-5)


@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=20)
def test_each_prompt_meets_the_answer_before_it_and_no_context_is_passed(n: int, seed: int) -> None:
    items = verdicts(n, seed)
    for i, (found, item) in enumerate(zip(mismatched(items, 9), items, strict=True)):
        before = items[i - 1].example
        prompt, answer = item.example.learned.index(True), before.learned.index(True)
        assert found.ids == (item.example.ids[:prompt] + before.ids[answer:])[:9]
        assert found.learned == ((False,) * prompt + before.learned[answer:])[:9]


def test_a_step_of_one_verdict_is_an_error() -> None:
    with pytest.raises(BadRequest, match=r"this step has 1 item\. Set batch to at least 2"):
        mismatched(verdicts(1), 64)


def test_a_row_that_was_not_computed_ahead_is_an_error() -> None:
    [item] = pairs(1)
    with pytest.raises(BadRequest, match=r"pairs:0: the reference's log-probability was not computed .* settings.reference to beside"):
        Reference(None).log_probs(Batch.of([item]))


def test_rows_that_are_the_same_are_computed_once_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import pellucid.train.reference as module
    done: list[int] = []
    answer_log_probs = module.answer_log_probs
    monkeypatch.setattr(module, "answer_log_probs", lambda decoder, batch, how: done.append(len(batch.lengths)) or answer_log_probs(decoder, batch, how))
    reference, told = Reference(None), []
    item = pairs(3)
    method = made("dpo", reference)
    reference.ahead(tiny_decoder(Fused()), method.referred([*item, *item]), 20, told.append)
    assert sum(done) == sum(told) == len(reference.kept) == 6
    assert reference.log_probs(Batch.of(item)).shape == (6,)


def test_a_gradient_goes_to_the_policy_and_none_to_the_reference() -> None:
    frozen = tiny_decoder(Fused(), trained=True, seed=1)
    run(made("dpo", Reference(frozen)), pairs(3), 40, tiny_decoder(Fused()))
    assert all(p.grad is None for p in frozen.parameters())

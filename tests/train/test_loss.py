"""Losses made a part at a time are those of all logits at once, with their gradients."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import pellucid.train.loss as loss
from pellucid.data.batch import IGNORED
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.train.loss import by_row, cross_entropy, token_log_probs
from tests.train.tiny import tiny_decoder

LENGTHS = (7, 1, 5)
TARGET = [3, IGNORED, 5, 6, 7, 0, IGNORED, IGNORED, 4, IGNORED, 2, 9, IGNORED]


@pytest.fixture(params=["tied", "untied", "softcap"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    how = {"tied": {"tied": True}, "untied": {"tied": False}, "softcap": {"tied": False, "logit_softcap": 3.0}}[request.param]
    return tiny_decoder(Fused(), trained=True, **how)


def run(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.arange(sum(LENGTHS)) % decoder.spec.n_vocab
    return decoder(tokens, rows=Rows.of(*LENGTHS)), torch.tensor(TARGET)


def gradients(decoder: Decoder, value: torch.Tensor) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("part", [1, 4, 100], ids=lambda n: f"{n} at a time")
def test_the_loss_and_its_gradient_are_those_of_all_logits(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", part * 4 * decoder.spec.n_vocab)
    hidden, target = run(decoder)
    whole = F.cross_entropy(decoder.unembed(hidden), target, reduction="sum", ignore_index=IGNORED)
    expected = gradients(decoder, 0.25 * whole)
    hidden, target = run(decoder)
    mine = cross_entropy(decoder, hidden, target)
    assert mine.item() == pytest.approx(whole.item(), rel=1e-6)
    found = gradients(decoder, 0.25 * mine)
    assert expected.keys() == found.keys() == dict(decoder.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    with torch.no_grad():
        assert cross_entropy(decoder, hidden, target).item() == pytest.approx(whole.item(), rel=1e-6)


def test_each_targets_log_probability_has_its_own_gradient(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 4 * decoder.spec.n_vocab)
    hidden, target = run(decoder)
    weight = torch.linspace(-1, 1, int((target != IGNORED).sum()))
    whole = decoder.unembed(hidden).log_softmax(-1)[target != IGNORED, target[target != IGNORED]]
    expected = gradients(decoder, (weight * whole).sum())
    hidden, target = run(decoder)
    mine = token_log_probs(decoder, hidden, target)
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(decoder, (weight * mine).sum()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    sums = by_row(mine.detach(), target, LENGTHS)
    torch.testing.assert_close(sums, torch.stack([mine[:5].sum(), torch.tensor(0.0), mine[5:].sum()]).detach())


def test_a_batch_without_targets_loses_nothing(decoder: Decoder) -> None:
    hidden, target = run(decoder)
    assert cross_entropy(decoder, hidden, torch.full_like(target, IGNORED)).item() == 0


def test_only_rows_with_a_target_meet_the_vocabulary(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    forward = decoder.unembed.forward
    monkeypatch.setattr(decoder.unembed, "forward", lambda x, choice=None: met.append(len(x)) or forward(x, choice))
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 4 * decoder.spec.n_vocab)
    hidden, target = run(decoder)
    cross_entropy(decoder, hidden, target).backward()
    assert met == [3, 3, 2]

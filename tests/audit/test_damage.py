"""What two models lose against each other, held against closed forms and against plain logits."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.audit import damage as module
from pellucid.audit.compare import compare
from pellucid.audit.damage import Seen, check_pair, look, told
from pellucid.audit.held_out import windows
from pellucid.audit.intervals import Interval
from pellucid.errors import BadCheckpoint, BadTokenizer, UnsupportedModel
from tests.audit.conftest import TEXT

Make = Callable[..., Path]


def test_kl_of_known_distributions() -> None:
    """KL((1/2, 1/4, 1/4) || (1/4, 1/2, 1/4)) = ln(2) / 4."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    kl, logprob_a, logprob_b, first_a, first_b, share_a, share_b = told(p, q, torch.tensor([1]))
    assert kl.item() == pytest.approx(math.log(2) / 4, rel=1e-14)
    assert (logprob_a.exp().item(), logprob_b.exp().item()) == pytest.approx((0.25, 0.5))
    assert (first_a.item(), first_b.item(), share_a.item(), share_b.item()) == (0, 1, 0.5, 0.5)
    assert told(p, p, torch.tensor([1]))[0].item() == 0.0


def test_what_the_first_model_never_says_adds_nothing() -> None:
    p, q = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64), torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    assert told(p, q, torch.tensor([0]))[0].item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("at_once", [1, 7 * 259, 1 << 21])
def test_every_token_is_judged_by_the_position_before_it(make: Make, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However few logits are held at once, and over windows that overlap."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    a, b = (pellucid.load(make(name, seed=seed, scale=3)) for name, seed in (("a", 0), ("b", 1)))
    ids = a.tokenizer.encode(TEXT)
    cut = windows(ids, 100, bos=None, most=1_100)
    seen = look(a.decoder, b.decoder, cut)
    expected: list[tuple[float, ...]] = []
    for window in cut:
        p, q = (model.logits(window.ids).double().softmax(-1) for model in (a, b))
        for i in range(window.n_context, len(window.ids)):
            token, x, y = window.ids[i], p[i - 1], q[i - 1]
            expected.append((token, window.start + i - window.n_context, (x * (x / y).log()).sum().item(), x[token].log().item(), y[token].log().item(),
                             x.argmax().item(), y.argmax().item(), x.max().item(), y.max().item()))
    found = list(zip(*(getattr(seen, field.name).tolist() for field in fields(Seen)), strict=True))
    assert len(found) == len(expected)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)
    assert bool((seen.ids == torch.tensor(ids)[seen.places]).all())


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_and_bits_are_those_of_the_scores(make: Make, bos: bool) -> None:
    a, b = pellucid.load(make("a", scale=3, bos=bos, n_ctx=4096)), pellucid.load(make("b", scale=2, bos=bos, n_ctx=4096))
    report = compare(a, b, TEXT, window=4096)
    ids = a.tokenizer.encode(TEXT)
    context = [a.tokenizer.bos_id] if bos else ids[:1]
    d = report.damage
    for model, perplexity, bits in ((a, d.perplexity_a, d.bits_per_byte_a), (b, d.perplexity_b, d.bits_per_byte_b)):
        [score] = model.score([(context, ids if bos else ids[1:])])
        nats = -sum(score.logprobs) / len(score.logprobs)
        assert perplexity.value == pytest.approx(math.exp(nats), rel=1e-5)
        assert bits.value == pytest.approx(nats / math.log(2), rel=1e-5)  # one byte a token
    assert report.damage.perplexity_ratio.value == pytest.approx(report.damage.perplexity_b.value / report.damage.perplexity_a.value)
    assert (report.damage.n_tokens, report.damage.n_bytes) == (len(TEXT) - (not bos), len(TEXT) - (not bos))


def test_a_model_beside_itself_lost_nothing(make: Make) -> None:
    model = pellucid.load(make("a"))
    report = compare(model, model, TEXT)
    nothing = Interval(0.0, 0.0, 0.0)
    d = report.damage
    assert (d.kl_mean, d.kl_p99, d.kl_median, d.flips, d.logprob_difference, d.logprob_spread) == (nothing,) * 6
    assert d.perplexity_ratio == Interval(1.0, 1.0, 1.0)
    assert report.passages == ()
    assert all(each.error == 0 for each in report.tensors.changed)


def test_the_worst_passages_are_where_kl_is_largest_and_do_not_overlap(make: Make) -> None:
    a, b = pellucid.load(make("a", scale=4)), pellucid.load(make("b", scale=4, seed=1))
    report = compare(a, b, TEXT)
    first = report.passages[0]
    i = int(report.seen.kl.argmax())
    assert first.tokens[first.worst].kl == report.seen.kl[i].item() == report.seen.kl.max().item()
    assert first.place == report.seen.places[i]
    text = "".join(token.text for token in first.tokens)
    assert text in TEXT
    spans = sorted((p.place - p.worst, p.place - p.worst + len(p.tokens)) for p in report.passages)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
    assert sorted((p.tokens[p.worst].kl for p in report.passages), reverse=True) == [p.tokens[p.worst].kl for p in report.passages]


def test_models_that_cannot_be_compared_are_named(make: Make) -> None:
    a, b = pellucid.load(make("a")), pellucid.load(make("b"))
    b.decoder.spec = replace(b.spec, n_vocab=300)
    with pytest.raises(UnsupportedModel, match="'a' has logits for 259 ids and 'b' for 300: distributions over different ids are not compared"):
        check_pair(a.decoder, b.decoder, ("a", "b"))


def test_numbers_that_are_none_are_an_error(make: Make) -> None:
    a, b = pellucid.load(make("a")), pellucid.load(make("b"))
    b.decoder.unembed.weight.data[3] = torch.nan
    with pytest.raises(BadCheckpoint, match=r"'b' computes NaN or infinity on this text.*Try --dtype float32"):
        compare(a, b, TEXT)


def test_a_model_without_a_tokenizer_takes_the_others_and_says_so(make: Make) -> None:
    paths = make("a"), make("b", seed=1)
    for path in paths:
        (path / "tokenizer.json").rename(path / "kept")
    with pytest.raises(BadTokenizer, match="neither 'a' nor 'b' has a tokenizer"):
        compare(*map(pellucid.load, paths), TEXT)
    (paths[1] / "kept").rename(paths[1] / "tokenizer.json")
    report = compare(*map(pellucid.load, paths), TEXT)
    assert report.notes == ("a has no tokenizer: it is taken to have that of b",)

"""What a student loses by its teacher: trl's divergences, in parts that hold few logits, with gradients of all logits at once."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import pellucid
import pellucid.train.distill as distill
from pellucid.data.batch import IGNORED, Batch
from pellucid.data.example import Example
from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.train.distill import Distill, Imitation, check_teacher, divergence
from pellucid.train.recipe import TunePart
from pellucid.train.trainable import trained
from tests.train.test_methods import SHIPPED, recipe, run, turn
from tests.train.tiny import N_VOCAB, tiny_decoder

ROWS = [Example(tuple((7 * i + 3 * k) % N_VOCAB for k in range(n)), (False, *(k % 3 > 0 for k in range(n - 1))), f"rows:{i}")
        for i, n in enumerate((9, 4, 12), 1)]
KINDS = [Distill(teacher="t"), Distill(teacher="t", divergence="reverse", temperature=2.0), Distill(teacher="t", divergence="js", beta=0.3, temperature=0.5),
         Distill(teacher="t", hard=0.4, temperature=3.0)]


def teacher() -> Decoder:
    return tiny_decoder(Fused(), seed=9, d_model=24)  # as wide as it likes: only the vocabulary is shared


def whole(decoder: Decoder, theirs: Decoder, how: Distill, batch: Batch, rows: Rows) -> torch.Tensor:
    """The loss of all logits at once, as the formulas in the module's docstring say."""
    asked = batch.target_T != IGNORED
    from pellucid.model.low_rank import Choice
    logits = decoder.unembed(decoder(batch.tokens_T, rows=rows), Choice.of(rows.adapters, rows.lengths))[asked]
    with torch.no_grad():
        others = theirs.unembed(theirs(batch.tokens_T, rows=Rows.of(*batch.lengths)))[asked]
    p, q = (others / how.temperature).softmax(-1), (logits / how.temperature).softmax(-1)
    m = how.beta * p + (1 - how.beta) * q
    pairs = {"forward": [(1.0, p, q)], "reverse": [(1.0, q, p)], "js": [(how.beta, p, m), (1 - how.beta, q, m)]}[how.divergence]
    apart = sum(share * (a * (a / b).log()).sum() for share, a, b in pairs)
    return (1 - how.hard) * how.temperature**2 * apart + how.hard * F.cross_entropy(logits, batch.target_T[asked], reduction="sum")


@pytest.mark.parametrize("how", KINDS, ids=lambda how: f"{how.divergence} {how.hard}")
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("part", [1, 5, 1000])
def test_parts_lose_and_learn_what_the_whole_does(how: Distill, kind: Any, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHUNK_BYTES", part * 4 * N_VOCAB)
    decoder, batch = tiny_decoder(Fused()), Batch.of(ROWS)
    what = trained(decoder, TunePart(kind=kind, rank=3, targets=("all-linear", "unembed") if kind == "lora" else ("all-linear",)), 0)
    if kind == "lora":
        for name, p in what.parameters.items():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(p, 0, 0.1, generator=torch.Generator().manual_seed(3))
    rows = Rows(batch.lengths, (0, 1, 2), () if what.adapter is None else (what.adapter,) * 3)
    expected = whole(decoder, teacher(), how, batch, rows)
    (0.5 * expected).backward()
    gradients = {name: p.grad.clone() for name, p in what.parameters.items()}
    for p in what.parameters.values():
        p.grad = None
    loss, told = Imitation(how, teacher()).loss(decoder, batch, rows)
    (0.5 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(what.parameters[name].grad, gradient, rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad():
        again, _ = Imitation(how, teacher()).loss(decoder, batch, rows)
    assert again.item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 <= told["agreement"] <= sum(row.n_learned for row in ROWS)


@given(st.integers(0, 9), st.sampled_from(["forward", "reverse", "js"]), st.floats(0.01, 0.99), st.floats(0.2, 5))
def test_a_divergence_is_zero_of_equals_and_above_it_else(seed: int, kind: Any, beta: float, temperature: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4, 30, generator=noise)
    how = Distill(teacher="t", divergence=kind, beta=beta, temperature=temperature)
    assert (divergence(a, b, how) > 0).all()
    torch.testing.assert_close(divergence(a, a + 3, how), torch.zeros(4), atol=1e-5, rtol=0)  # logits are the same up to a constant
    torch.testing.assert_close(divergence(F.pad(a, (0, 5)), b, how), divergence(a, b, how))  # rows of the table that no token has


def test_no_more_than_a_part_of_the_logits_is_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHUNK_BYTES", 4 * 4 * N_VOCAB)
    decoder, theirs, met = tiny_decoder(Fused(), trained=True), teacher(), []
    for one in (decoder, theirs):
        forward = one.unembed.forward
        monkeypatch.setattr(one.unembed, "forward", lambda x, choice=None, forward=forward: met.append(len(x)) or forward(x, choice))
    batch = Batch.of(ROWS)
    loss, _ = Imitation(KINDS[0], theirs).loss(decoder, batch, Rows.of(*batch.lengths))
    loss.backward()
    n = sum(row.n_learned for row in ROWS)
    assert max(met) == 4
    assert sum(met) == 2 * n


def test_a_teacher_that_is_the_student_teaches_nothing_and_a_changed_student_returns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": turn(f"Say {n}.", f"{n}, of course.")}) + "\n" for n in ("one", "two", "six")))
    tuning, steps = run(recipe(str(tmp_path / "rows.jsonl"), tmp_path / "out", "distill", settings={"teacher": str(SHIPPED)}, steps=1,
                               model={"path": str(SHIPPED)}))
    assert steps[0].loss == pytest.approx(0, abs=1e-3)  # in bfloat16
    assert steps[0].told["agreement"] == 1
    for name, p in tuning.trained.parameters.items():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(p, 0, 0.02, generator=torch.Generator().manual_seed(1))
    from pellucid.train.loop import step
    losses = [step(tuning.run).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    model = pellucid.load(SHIPPED)
    check_teacher(model.tokenizer, model)

    class Other:
        n_vocab = model.tokenizer.n_vocab
        encoder = type("Encoder", (), {"token_of": staticmethod(lambda i: "§" if i == 300 else model.tokenizer.encoder.token_of(i))})

    with pytest.raises(BadRequest, match=r"another vocabulary: id 300 is .* there and '§' in the model that is tuned.*method: sft"):
        check_teacher(Other(), model)  # type: ignore[arg-type]

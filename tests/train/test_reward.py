"""A reward model is trained, written as transformers has it, and read back: the same scores in both."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import pellucid
from pellucid.errors import BadRequest, EmptyPrompt, LostTuning, MissingTensors, UnsupportedModel
from pellucid.train.methods import method_settings
from pellucid.train.outcome import finish
from pellucid.train.recipe import read_recipe
from pellucid.train.reward import SCORE, RewardModel, new_head
from tests.train.test_methods import ASKED, BETTER, SHIPPED, WORSE, recipe, rows, run, turn  # noqa: F401, a fixture
from tests.train.test_trl import N_VOCAB, llama

IDS = [[3, 4, 5, 12], [6, 7], [8, 9, 10, 11, 17, 0]]


def theirs(folder: Path, ids: list[list[int]]) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([each]), use_cache=False).logits.item() for each in ids]


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    model = llama(0, transformers.LlamaForSequenceClassification, num_labels=1)
    model.config.tie_word_embeddings = tied
    model.save_pretrained(tmp_path)
    assert RewardModel.load(tmp_path, device="cpu").scores(IDS, max_tokens=6) == pytest.approx(theirs(tmp_path, IDS), abs=1e-5)


def test_a_model_of_another_family_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(vocab_size=N_VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, num_labels=1, pad_token_id=1)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert RewardModel.load(tmp_path, device="cpu").scores(IDS) == pytest.approx(theirs(tmp_path, IDS), abs=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_reward_model_learns_is_written_and_scores_what_it_learned(rows: dict[str, str], tmp_path: Path, kind: str) -> None:  # noqa: F811
    facts: dict[str, Any] = {"tune": {"kind": kind}, "batch": 6, "steps": 8, "optim": {"lr": 1e-3 if kind == "full" else 1e-2, "warmup": 0}}
    tuning, steps = run(recipe(rows["pairs"], tmp_path / "out", "reward", **facts))
    assert steps[-1].told["accuracy"] == 1
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert SCORE in tuning.trained.parameters
    done = finish(tuning)
    assert (done.kind, done.next) == ("reward", ["pellucid", "show", str(done.out)])
    config = json.loads((done.out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    record = json.loads(done.record.read_text())
    assert set(record["output"]["files"]) == {str(path) for path in done.out.iterdir() if path.name != "record.json"}
    model = RewardModel.load(done.out, device="cpu")
    good, bad = (model.scores([turn(q, a) for q, a in zip(ASKED, answers, strict=True)]) for answers in (BETTER, WORSE))
    assert all(w > worse for w, worse in zip(good, bad, strict=True))
    item = tuning.data.stock.sources[0].items[0]
    ids = [list(item.chosen.ids), list(item.rejected.ids)]
    assert [good[0], bad[0]] == pytest.approx(model.scores(ids), abs=1e-5)  # rendered as in training
    assert model.scores(ids) == pytest.approx(theirs(done.out, ids), abs=1e-4)
    assert (done.out / "tokenizer.json").is_file()


def test_a_reward_model_that_scores_otherwise_when_written_is_refused(rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    tuning, _ = run(recipe(rows["pairs"], tmp_path / "out", "reward", steps=1))
    monkeypatch.setattr(RewardModel, "scores", lambda self, rows: [float(i % 2) for i, _ in enumerate(rows)])
    with pytest.raises(LostTuning, match=r"scores \d+ rows otherwise than the model in training.*nothing was kept"):
        finish(tuning)
    assert not (tmp_path / "out" / "model").exists()


def test_a_head_is_the_same_for_a_seed() -> None:
    decoder = pellucid.load(SHIPPED).decoder
    a, b, other = (new_head(decoder, seed).weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert a.std().item() == pytest.approx((256 + 1) ** -0.5, rel=0.2)


def test_what_is_no_reward_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingTensors, match=r"'shipped' has no score.weight.*method: reward"):
        RewardModel.load(SHIPPED)
    llama(0, transformers.LlamaForSequenceClassification, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"gives 3 numbers \(score.weight is \[3, 16\]\), and a reward is one"):
        RewardModel.load(tmp_path)


@pytest.mark.parametrize(("answer", "error", "message"), [
    ([], EmptyPrompt, "answer 2 is empty"),
    (list(range(2, 22)) * 4, BadRequest, "answer 2 has 80 tokens, and this model's context is 64"),
    ("words", BadRequest, "has no tokenizer, so it scores token ids only"),
])
def test_what_cannot_be_scored_is_said(tmp_path: Path, answer: Any, error: type[Exception], message: str) -> None:
    llama(0, transformers.LlamaForSequenceClassification, num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        RewardModel.load(tmp_path, device="cpu").scores([[3, 4], answer])


def test_a_reward_model_is_written_merged(tmp_path: Path) -> None:
    of = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": str(tmp_path), "format": "gguf"}, "method": "reward"})
    with pytest.raises(BadRequest, match=r"out.format=gguf: a reward model is written merged"):
        method_settings(of)



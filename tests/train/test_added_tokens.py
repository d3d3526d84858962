"""Tokens that are added become one id each, rows of embedding are made for them, what the model said of others stays, and they are learned and written."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.cli._options import SHIPPED
from pellucid.errors import BadRequest
from pellucid.train.added_tokens import add_tokens
from pellucid.train.outcome import finish
from pellucid.train.recipe import Recipe, read_recipe
from pellucid.train.tuning import prepare
from pellucid.weights.hub import resolve

NEW = ["<date>", "</date>"]


def recipe(folder: Path, tokens: list[str], kind: str = "full") -> Recipe:
    rows = [{"prompt": f"When is day {n}?", "completion": f"<date>{n}</date>"} for n in range(1, 9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_recipe({"model": {"path": SHIPPED, "added_tokens": tokens, "dtype": "float32"}, "data": {"sources": [{"path": str(folder / "rows.jsonl")}]},
                        "tune": {"kind": kind}, "out": {"folder": str(folder / "out")}, "batch": 8, "steps": 12,
                        "optim": {"lr": 5e-4, "schedule": "constant", "warmup": 0}})


def test_what_the_model_said_stays_and_new_tokens_are_average(tmp_path: Path) -> None:
    add_tokens(SHIPPED, tmp_path / "wide", NEW)
    before, after = pellucid.load(SHIPPED, dtype="float32"), pellucid.load(tmp_path / "wide", dtype="float32")
    n = before.tokenizer.n_vocab
    ids = before.tokenizer.encode("Once upon a time there was a date", special=True)
    assert after.tokenizer.encode("Once upon a time there was a date", special=True) == ids
    torch.testing.assert_close(after.logits(ids)[:, :n], before.logits(ids)[:, :n], rtol=0, atol=1e-5)
    new = after.tokenizer.encode("on <date>3</date>.")
    assert [token for token in new if token >= n] == [n, n + 1]
    assert after.tokenizer.decode(new) == "on <date>3</date>."
    means = before.logits(ids)[:, :n].mean(-1)
    torch.testing.assert_close(after.logits(ids)[:, n], means, rtol=0, atol=2e-2)  # rows are rounded as the file's numbers are
    assert after.spec.n_vocab == before.spec.n_vocab + 2


def test_new_tokens_are_learned_and_written(tmp_path: Path) -> None:
    tuning = prepare(recipe(tmp_path, NEW))
    tuning.train()
    done = finish(tuning)
    model = pellucid.load(done.out)
    n = model.tokenizer.id_of("<date>")
    assert n == pellucid.load_tokenizer(str(resolve(SHIPPED))).n_vocab
    embedded = model.decoder.embed.weight.detach().float()  # type: ignore[union-attr]
    assert not torch.equal(embedded[n], embedded[n + 1])  # they began alike
    asked = model.tokenizer.encode("When is day 3?", special=True)
    base = pellucid.load(tmp_path / "out" / "base")
    before, after = (float(each.logits(asked)[-1].log_softmax(-1)[n]) for each in (base, model))
    assert after > before + 3  # nats
    again = prepare(recipe(tmp_path, NEW))  # the base that is there serves
    assert again.recipe.model.path == str(tmp_path / "out" / "base")
    with pytest.raises(BadRequest, match="was made for other tokens"):
        prepare(recipe(tmp_path, ["<time>"]))


def test_tokens_that_cannot_be_added_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"adapters leave the embedding as it is.*tune.kind: full"):
        prepare(recipe(tmp_path, NEW, kind="lora"))
    with pytest.raises(BadRequest, match=r"<\|end\|> is in the vocabulary already"):
        add_tokens(SHIPPED, tmp_path / "a", ["<|end|>"])
    with pytest.raises(BadRequest, match="named twice"):
        add_tokens(SHIPPED, tmp_path / "b", ["<x>", "<x>"])

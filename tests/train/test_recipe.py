"""A recipe says all of a tuning, and what nobody reads is an error."""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import pellucid
from pellucid.errors import BadRequest
from pellucid.train import recipe as recipes
from pellucid.train.recipe import Recipe, read_recipe

PACKAGE = Path(pellucid.__file__).parent
LEAST: dict[str, Any] = {"model": {"path": "m"}, "data": {"sources": [{"path": "d.jsonl"}]}, "out": {"folder": "out"}}


def test_the_least_recipe_is_three_lines_and_the_rest_has_defaults() -> None:
    recipe = read_recipe(LEAST)
    assert (recipe.method, recipe.tune.kind, recipe.batch, recipe.data.train_on) == ("sft", "lora", 16, "assistant")


def test_a_file_and_overrides_on_top(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {path: m}\ndata:\n  sources:\n  - path: d.jsonl\nout: {folder: out}\noptim: {lr: 1.0e-3}\n")
    recipe = read_recipe(tmp_path / "r.yaml", ["optim.lr=3e-4", "steps=7", "data.sources.0.weight=2", "tune.targets=[attention]", "model.path=other"])
    assert (recipe.optim.lr, recipe.steps, recipe.data.sources[0].weight, recipe.tune.targets, recipe.model.path) == (3e-4, 7, 2, ("attention",), "other")
    assert read_recipe(recipe.plain()) == recipe


@pytest.mark.parametrize(("change", "words"), [
    ({"optim": {"learning_rate": 1}}, r"key 'optim.learning_rate', which nothing reads.* lr"),
    ({"bach": 3}, r"'bach', which nothing reads. Did you mean batch"),
    ({"data": {"sources": [{"path": "d", "colums": {}}]}}, r"'data.sources.0.colums', which nothing reads. Did you mean columns"),
    ({"data": {"sources": []}}, "data.sources"),
    ({"data": {"sources": [{"path": "d", "hub": "a/b"}]}}, "one of the three"),
    ({"data": {"sources": [{"made": "d.py"}]}}, "made needs it"),
    ({"data": {"sources": [{"path": "d", "n": 3}]}}, "n is how many rows"),
    ({"eval": {"exact_match": {"schemas": "a"}}}, r"'eval.exact_match.schemas', which nothing reads. Did you mean schema"),
    ({"model": {}}, "has no model.path"),
    ({"optim": {"lr": -1}}, "optim.lr: input should be greater than 0, got -1"),
    ({"optim": {"lr": float("nan")}}, "optim.lr"),
    ({"tune": {"kind": "half"}}, "tune.kind"),
    ({"steps": 0}, "steps"),
])
def test_what_cannot_be_is_named_with_what_may(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_recipe({**LEAST, **change})


@pytest.mark.parametrize("text", ["", "lr", "=3", "data.sources.5.weight=2", "steps.x=1"])
def test_an_override_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        read_recipe({**LEAST, "steps": 3}, [text])


@pytest.mark.parametrize("text", ["{", "- a", "\t"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(BadRequest, match=r"r.yaml"):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(BadRequest, match="no recipe can be read"):
        read_recipe(tmp_path / "none.yaml")


def test_the_hash_is_of_what_decides_the_result() -> None:
    base = read_recipe(LEAST)
    assert base.sha256 == read_recipe({**LEAST, "out": {"folder": "elsewhere"}, "save": {"every": 3}}).sha256
    assert base.sha256 != read_recipe({**LEAST, "seed": 1}).sha256
    assert base.facts()["optim.betas"] == [0.9, 0.999]
    assert base.facts()["data.sources"][0]["path"] == "d.jsonl"
    assert not {key for key in base.facts() if key.startswith(("out", "save"))}


def test_every_key_is_read_by_somebody() -> None:
    """A key that changes nothing is a silent default: each is asked for by its name outside of the file that parses it."""
    readers = "".join(path.read_text("utf8") for room in ("train", "data", "cli") for path in (PACKAGE / room).rglob("*.py") if path.name != "recipe.py")
    parts = {name: kind for name, kind in vars(recipes).items() if dataclasses.is_dataclass(kind) and isinstance(kind, type)}
    keys = [(name, field.name) for name, kind in parts.items() for field in dataclasses.fields(kind)]
    assert len(keys) > 60
    assert not [(name, key) for name, key in keys if not re.search(rf"\.{key}\b", readers)]


def test_every_part_is_frozen() -> None:
    with pytest.raises(AttributeError):
        read_recipe(LEAST).batch = 3  # type: ignore[misc]
    assert Recipe.__dataclass_params__.frozen  # type: ignore[attr-defined]

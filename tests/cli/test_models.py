"""`pellucid models`: filters, sorting, one row in full, words for what nobody knows."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.catalog import models as catalog
from tests.cli.conftest import Said


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "pellucid" / "models.toml"


def names(said: Said) -> list[str]:
    return [line.split()[0] for line in said.out.splitlines()[1:]]


def test_the_table_lists_every_model_in_eighty_columns(say: Callable[..., Said], own: Path) -> None:
    said = say("models")
    assert said.code == 0
    assert sorted(names(said)) == sorted(catalog.table())
    assert max(map(len, said.out.splitlines())) <= 80
    assert f"models, as of {catalog.as_of()}. You may add rows of your own: {own}" in said.err


@pytest.mark.parametrize("args", [("--fits", "8GB"), ("--min", "mmlu=1", "--min", "humaneval=1"), ("--sort", "humaneval", "--fits", "24GB")], ids=" ".join)
def test_what_was_asked_for_is_a_column_and_eighty_still_suffice(say: Callable[..., Said], args: tuple[str, ...]) -> None:
    assert max(map(len, say("models", *args).out.splitlines())) <= 80


def test_filters_hold_together_and_the_largest_comes_first(say: Callable[..., Said]) -> None:
    found = json.loads(say("models", "--kind", "code", "--context", "16k", "--open", "data", "--sort", "size", "--json").out)["models"]
    assert [model["name"] for model in found] == ["starcoder2-15b", "starcoder2-7b", "starcoder2-3b"]
    scored = json.loads(say("models", "--min", "mmlu=60", "--sort", "mmlu", "--json").out)["models"]
    assert [model["scores"]["mmlu"] for model in scored] == sorted((model["scores"]["mmlu"] for model in scored), reverse=True)
    assert min(model["scores"]["mmlu"] for model in scored) >= 60


def test_what_fits_is_told_with_its_format_and_leaves_room_for_the_cache(say: Callable[..., Said]) -> None:
    found = {model["name"]: model["fits"] for model in json.loads(say("models", "--fits", "8GB", "--json").out)["models"]}
    assert found["llama-3.1-8b"]["format"] == "q4_k_m"
    assert found["gpt2"] == {"format": "bf16", "n_bytes": 2 * catalog.find("gpt2").count + 2 * 4096 * 2 * 12 * 768}
    assert "llama-3.1-70b" not in found
    assert all(fit["n_bytes"] <= 8e9 for fit in found.values())


def test_one_model_in_full_says_where_each_fact_was_read(say: Callable[..., Said]) -> None:
    said = say("models", "llama-2-7b")
    assert "6.74 B (published: 6738419712)" in said.out
    assert "made of it  llama-2-7b-chat" in said.out
    assert "models/llama2/MODEL_CARD.md" in said.out
    told = json.loads(say("models", "llama-2-7b", "--json").out)
    assert told["model"]["parameters"] == 6_738_415_616
    assert set(told["sources"]) == set(told["model"]["sources"])


def test_a_distill_says_so_in_the_table_and_alone(say: Callable[..., Said]) -> None:
    row = next(line for line in say("models", "--maker", "deepseek").out.splitlines() if line.startswith("deepseek-r1-distill-llama-8b"))
    assert row.split()[3:5] == ["128k", "distill"]
    assert "it learned outputs of deepseek-r1, and is not deepseek-r1" in say("models", "deepseek-r1-distill-llama-8b").out


def test_a_row_of_ones_own_is_listed_and_shown(say: Callable[..., Said], own: Path) -> None:
    own.parent.mkdir()
    own.write_text("[house-7b]\nmaker = 'house'\nkinds = ['chat']\nsize = '7B'\nbase = 'mistral-7b-v0.1'\n")
    assert names(say("models", "--maker", "house")) == ["house-7b"]
    assert "no repository (yours)" in say("models", "house-7b").out


@pytest.mark.parametrize(("args", "message"), [
    (("qwen3-5b",), "'qwen3-5b' is not in the catalog. Did you mean"), (("--kind", "cod"), "--kind 'cod' is nothing the catalog knows (audio, base"),
    (("--license", "apache-2.0"), "--license 'apache-2.0' is neither a license of the catalog"), (("--min", "mmlu"), "--min 'mmlu' is not SCORE=N"),
    (("--license", "commercal"), "Did you mean commercial?"), (("--min", "gpqa=200"), "scores are percent, 100 at most"),
    (("--min", "mlu=3"), "Did you mean mmlu?"), (("--context", "much"), "--context 'much' is no number of tokens"),
    (("--fits", "8 parsecs"), "--fits '8 parsecs' is not a size"), (("--sort", "beauty"), "--sort 'beauty' is nothing the catalog knows"),
    (("--local", "--kind", "code"), "--local and --families list other things")], ids=str)
def test_what_cannot_be_meant_is_said_with_what_can(say: Callable[..., Said], args: tuple[str, ...], message: str) -> None:
    said = say("models", *args)
    assert said.code == 2
    assert message in said.err


def test_what_a_license_allows_is_judged_with_all_it_was_made_from(say: Callable[..., Said]) -> None:
    commercial = {model["name"] for model in json.loads(say("models", "--license", "commercial", "--json").out)["models"]}
    assert {"mistral-7b-v0.1", "gpt-neox-20b", "bloom"} <= commercial
    assert commercial.isdisjoint({"llama-7b", "alpaca-7b", "vicuna-13b-v1.1", "galactica-30b", "opt-175b", "command-r"})
    unknown = {name for name, row in catalog.table().items() if row.license is None}
    assert unknown
    assert commercial.isdisjoint(unknown)
    hosted = {model["name"] for model in json.loads(say("models", "--license", "commercial", "--hosting", "--json").out)["models"]}
    assert "falcon-180b" not in hosted
    assert hosted < commercial | {"falcon-180b"}
    assert {model["license"] for model in json.loads(say("models", "--license", "Apache-2.0", "--json").out)["models"]} == {"Apache-2.0"}


def test_nothing_found_is_said_and_no_failure(say: Callable[..., Said]) -> None:
    said = say("models", "--min", "mmlu=99.9")
    assert (said.code, said.out) == (0, "")
    assert "what nobody read of a model counts as not so" in said.err

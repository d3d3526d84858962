"""`pellucid plan`, as it is typed."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.catalog import models
from tests.cli.conftest import Said

Say = Callable[..., Said]


def test_a_plan_says_weights_cache_and_what_fits_where_in_eighty_columns(say: Say) -> None:
    said = say("plan", "llama-3.1-8b", "--memory", "16GB", "--on", "here", "--on", "h100", "--on", "l4")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "llama-3.1-8b · 8.03 B parameters" in said.out
    assert "128 KiB a token in 16 bits" in said.out
    rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line.startswith(("here", "h100", "l4"))}
    assert (rows["here"][3], rows["here"][7]) == ("q8_0", "-")  # nobody measured its speed
    assert said.err.endswith("next: pellucid plan llama-3.1-8b --measure\n")


def test_json_holds_every_number_and_bounds_are_ordered(say: Say) -> None:
    told = json.loads(say("plan", "mixtral-8x7b-v0.1", "--on", "h100", "--on", "h200", "--quantize", "q4_k_m", "--price", "10", "--grid", "fr", "--json").out)
    h100, h200 = told["places"]
    assert told["weight_bytes"]["q4_k_m"] < told["weight_bytes"]["q8_0"] < told["weight_bytes"]["bf16"] == 2 * told["parameters"]
    assert (h100["best_format"], h200["best_format"]) == ("q8_0", "bf16")
    assert h100["speed"]["decode"] < h200["speed"]["decode"]
    assert h100["price"]["co2_grams"] == pytest.approx(56 * h100["price"]["kwh"])
    assert h100["price"]["break_even"] == pytest.approx(4.76 * 73 * 1e6)
    assert set(told["training_bytes"]) == {"full", "lora", "qlora"}


def test_a_row_of_more_tokens_than_the_memory_holds_does_not_fit_and_says_so(say: Say) -> None:
    said = say("plan", "llama-3.1-8b", "--memory", "3GB", "--on", "here", "--context", "32k")
    assert "here             3.0 GB    none" in said.out
    assert "does not fit: q2_k is the narrowest that is tried" in said.out
    assert "does not fit in bf16" in say("plan", "llama-3.1-8b", "--memory", "16GB", "--on", "here", "--quantize", "bf16").out


def test_a_folder_and_its_gguf_file_make_the_same_plan(say: Say, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(models.config_of(models.find("smollm2-135m"))))
    folder, row = (json.loads(say("plan", each, "--on", "h100", "--memory", "8GB", "--json").out)
                   for each in (str(tmp_path), "smollm2-135m"))  # free memory changes between two runs
    assert {key: value for key, value in folder.items() if key not in ("model", "read_from")} == {
        key: value for key, value in row.items() if key not in ("model", "read_from")}
    assert folder["read_from"] == str(tmp_path / "config.json")


def test_a_fine_tune_has_memory_time_and_money(say: Say) -> None:
    told = json.loads(say("plan", "llama-3.1-8b", "--train", "qlora", "--tokens", "20M", "--on", "h100", "--on", "rtx-3090", "--json").out)["training"]
    assert (told["tokens"], told["rank"], told["total_bytes"]) == (20_000_000, 16, sum(told["bytes"].values()))
    h100, rtx = told["places"]
    assert h100["device_seconds"] < rtx["device_seconds"]
    assert h100["dollars"] == pytest.approx(h100["device_seconds"] / 3600 * 4.76)
    said = say("plan", "llama-3.1-70b", "--train", "full", "--on", "h100")
    assert "17 ×" in said.out
    told = json.loads(say("plan", "llama-3.1-8b", "--train", "lora", "--seq", "2048", "--on", "h100", "--on", "rtx-3090", "--json").out)["training"]
    assert [place["recomputed"] for place in told["places"]] == [False, True]
    assert all(place["fits"] for place in told["places"])
    assert told["recomputed_bytes"] < 0.7 * told["total_bytes"]
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_budget_makes_a_compute_optimal_plan_and_names_its_fit(say: Say) -> None:
    said = say("plan", "--pretrain", "--budget", "10000", "--on", "h100")
    assert "10,000 dollars" in said.out
    assert "https://arxiv.org/abs/2404.10102" in said.err
    old, new = (json.loads(say("plan", "--pretrain", "--flops", "1e22", "--fit", fit, "--json").out) for fit in ("hoffmann", "besiroglu"))
    assert old["parameters"] < new["parameters"]


@pytest.mark.parametrize(("args", "message"), [
    (("qwen3-5b",), "'qwen3-5b' is not in the catalog. Did you mean"), ((), "no model was named"), (("gpt2", "--on", "h1000"), "--on 'h1000' is no hardware"),
    (("gpt2", "--context", "4k"), "gpt2 reaches 1,024 tokens"), (("gpt2", "--quantize", "q4_k_n"), "Did you mean Q4_K_S, Q4_K_M"),
    (("gpt2", "--train", "lore"), "Did you mean lora"), (("gpt2", "--train", "lora", "--seq", "99999"), "--seq 99999: gpt2 reaches 1,024 tokens"),
    (("gpt2", "--price", "-3"), "--price -3: dollars a million tokens were expected"), (("",), "'' is not in the catalog"),
    (("gpt2", "--grid", "mars"), "--grid 'mars' is neither"), (("gpt2", "--batch", "0"), "begin at 1"), (("--pretrain",), "needs one of --flops"),
    (("gpt2", "--pretrain", "--flops", "1"), "leave 'gpt2' out"), (("--pretrain", "--budget", "9", "--on", "m2"), "nobody read what Apple M2, 16 GB costs"),
    (("--pretrain", "--flops", "1e20", "--fit", "mine"), "--fit 'mine' is none of"),
    (("whisper-large-v3",), "does not know the widths of 'whisper-large-v3'")], ids=str)
def test_what_cannot_be_planned_is_said_with_the_next_step(say: Say, args: tuple[str, ...], message: str) -> None:
    said = say("plan", *args)
    assert said.code == 2
    assert message in said.err


def test_a_plan_of_the_catalog_imports_no_torch(program: Say) -> None:
    said = program("plan", "qwen3-8b", "--on", "h100", "--json", PYTHONPROFILEIMPORTTIME="1")
    assert said.code == 0
    assert "torch" not in {line.split("|")[-1].strip().partition(".")[0] for line in said.err.splitlines()}


def test_the_cards_of_this_machine_are_places_of_their_own(say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034, 22000'\necho 'NVIDIA L4, 23034, 512'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = json.loads(say("plan", "llama-3.1-8b", "--json").out)
    assert [card["name"] for card in told["machine"]["gpus"][:2]] == ["NVIDIA L4"] * 2
    assert [place["key"] for place in told["places"]][:2] == ["here", "gpu0"]
    card, = (place for place in json.loads(say("plan", "llama-3.1-8b", "--on", "gpu", "--json").out)["places"] if place["key"] == "gpu0")
    assert (card["memory"], card["best_format"], card["speed"] is not None) == (22000 << 20, "bf16", True)
    said = say("plan", "llama-3.1-8b")
    assert "2 × NVIDIA L4" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_cards_that_are_not_here_are_refused_with_what_is(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.catalog.cards.cards", lambda: ())
    said = say("plan", "llama-3.1-8b", "--on", "gpu")
    assert (said.code, said.err) == (2, "error: --on gpu: this machine has no GPU. Name one of the catalog, such as --on l4\n")

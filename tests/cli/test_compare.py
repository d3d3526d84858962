"""`pellucid compare`: the command, its page, its record, and what it refuses."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.cli import compare
from pellucid.records import Record, sha256_of
from tests.audit.conftest import TEXT, random_model
from tests.cli.conftest import Said

Say = Callable[..., Said]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(random_model(tmp_path / "a", scale=3)), str(random_model(tmp_path / "b", scale=3.3))


def test_json_has_every_number_with_its_interval(say: Say, pair: tuple[str, str], tmp_path: Path) -> None:
    done = say("compare", *pair, "--text", str(tmp_path / "text.txt"), "--json", "-q", "--tokens", "1200")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    for name in ("perplexity_a", "perplexity_b", "perplexity_ratio", "bits_per_byte_a", "bits_per_byte_b", "kl_mean", "kl_median", "kl_p99", "flips",
                 "logprob_difference", "logprob_spread"):
        assert said[name]["low"] <= said[name]["value"] <= said[name]["high"]
    assert said["kl_mean"]["value"] > 0
    assert said["intervals"] == {"level": 0.95, "draws": 1000, "blocks": said["n_tokens"] // 64, "tokens_per_block": 64, "seed": 0}
    assert [each["name"] for each in said["tensors"] if each["error"]] == ["unembed.weight"]
    assert said["tensors"][0]["error"] == pytest.approx(0.01, rel=1e-3)  # (3.3 / 3 - 1) squared
    assert 1_200 <= said["n_tokens"] < said["text_tokens"]


def test_the_page_comes_with_a_record_and_is_not_written_over(say: Say, pair: tuple[str, str], tmp_path: Path) -> None:
    html, text = tmp_path / "damage.html", str(tmp_path / "text.txt")
    done = say("compare", *pair, "--text", text, "--html", str(html), "--tokens", "1100")
    assert done.code == 0, done.err
    for part in ("perplexity", "top-1 flips", "most changed", "unembed.weight", "95% intervals from 1,000 resamplings"):
        assert part in done.out
    assert done.err.endswith(f"next: pellucid run {pair[1]} -p 'Once upon a time'\n")
    record = Record.read(tmp_path / "damage.record.json")
    assert (record.kind, record.seed, record.settings["a"], record.output["page"]) == ("compare", 0, pair[0], sha256_of(html))
    assert {"a/model.safetensors", "b/model.safetensors", "a/tokenizer.json", "text"} <= record.inputs.keys()
    before = html.read_bytes()
    refused = say("compare", *pair, "--text", text, "--html", str(html))
    assert (refused.code, html.read_bytes()) == (2, before)
    assert f"{html} is there, and nothing was written" in refused.err
    assert "is no page's name: write NAME.html" in say("compare", *pair, "--text", text, "--html", str(tmp_path / "x.txt")).err


def test_where_nothing_changed_that_is_said_and_no_tensor_is_called_most_changed(say: Say, pair: tuple[str, str], tmp_path: Path) -> None:
    html = tmp_path / "same.html"
    done = say("compare", pair[0], pair[0], "--text", str(tmp_path / "text.txt"), "--tokens", "1100", "--html", str(html), "-q")
    assert done.code == 0, done.err
    assert "no tensor changed: every number is the same" in done.out
    assert "most changed" not in done.out
    assert "None changed: every number of every tensor is the same." in html.read_text()


def test_a_text_that_is_too_short_or_not_there_is_an_error(say: Say, pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    done = say("compare", *pair, "--text", str(tmp_path / "short.txt"), "-q")
    assert (done.code, done.err) == (2, "error: the text has 9 tokens to score, and 1,024 are the least from which intervals can be told. Give more text\n")
    assert "cannot be read" in say("compare", *pair, "--text", str(tmp_path / "gone.txt")).err
    assert "--tokens -1: a count of tokens, or 0 for all of the text" in say("compare", *pair, "--tokens", "-1").err


def test_without_text_the_one_in_the_package_is_read(say: Say, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = say("compare", *pair, "--json", "--tokens", "1024")
    said = json.loads(done.out)
    assert done.err.startswith("no --text: held_out.txt of the package, prose of old books. Give --text FILE")
    assert Path(said["text_file"]) == compare.held_out_file()
    assert math.isfinite(said["kl_mean"]["value"])
    (tmp_path / "shipped").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name is not the package's
    assert compare.held_out_file() == Path(said["text_file"])
    monkeypatch.setattr(compare, "HELD_OUT", "gone.txt")
    assert say("compare", *pair).err == ("error: no text. Give one with --text FILE: a few pages or more of what the model will read and write, "
                                         "in UTF-8\n")

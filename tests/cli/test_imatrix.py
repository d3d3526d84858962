"""`pellucid imatrix`, as a user meets it."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pellucid.records import Record, sha256_of
from pellucid.weights.imatrix import read_imatrix
from tests.api.scripted import scripted_model
from tests.cli.conftest import Said

Say = Callable[..., Said]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return scripted_model(tmp_path / "abc", [list("abc")], dtype=torch.float32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("abc " * 30)
    return tmp_path / "text.txt"


def test_the_options_are_these(say: Say) -> None:
    listed = say("imatrix", "--help").out.split("Options:")[1]
    assert set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", listed, re.M)) == {
        "--text", "--out", "--chunk", "--chunks", "--force", "--device", "--dtype", "--threads", "--accept-unread", "--quiet", "--json", "--debug", "--help"}


def test_text_becomes_a_file_with_a_record_and_the_next_command(say: Say, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "abc.imatrix.gguf"
    done = say("imatrix", str(model), "--text", str(text), "-o", str(out), "--chunk", "8")
    assert done.code == 0, done.err
    assert done.out == f"{sha256_of(out)}  {out}\n"
    assert re.search(r"abc.imatrix.gguf  \d+ matrices, 15 windows of 8 tokens, [\d.]+ s\n", done.err)
    assert done.err.endswith(f"next: pellucid quantize {model} abc.Q4_K_M.gguf --to Q4_K_M --imatrix {out}\n")
    found = read_imatrix(out)
    assert (found.n_chunks, found.chunk, found.datasets) == (15, 8, ("text.txt",))
    record = Record.read(tmp_path / "abc.imatrix.record.json")
    assert (record.kind, record.output["sha256"], record.inputs["text"].sha256) == ("imatrix", sha256_of(out), sha256_of(text))


def test_json_and_fewer_windows(say: Say, model: Path, text: Path, tmp_path: Path) -> None:
    done = say("imatrix", str(model), "--text", str(text), "-o", str(tmp_path / "a.dat"), "--chunk", "8", "--chunks", "3", "--json", "-q")
    said = json.loads(done.out)
    assert (said["n_chunks"], said["chunk"], said["n_tokens"], said["unseen_experts"], done.err) == (3, 8, 24, 0, "")
    assert read_imatrix(tmp_path / "a.dat").n_chunks == 3


def test_what_cannot_be_done_is_said_before_the_model_is_read(say: Say, model: Path, text: Path, tmp_path: Path) -> None:
    def refused(*args: str, text: Path = text) -> str:
        done = say("imatrix", str(model), "--text", str(text), *args)
        assert done.code == 2
        assert "family" not in done.err
        return done.err
    assert "-o a.bin says no format: an imatrix is written as NAME.gguf, or as NAME.dat" in refused("-o", str(tmp_path / "a.bin"))
    assert "there is no folder" in refused("-o", str(tmp_path / "no" / "a.dat"))
    assert "text.txt is there" not in refused("-o", str(tmp_path / "a.dat"), "--chunk", "0")
    assert "--chunk 0: at least 1 of each" in refused("-o", str(tmp_path / "a.dat"), "--chunk", "0")
    assert "--text" in (told := refused("-o", str(tmp_path / "a.dat"), text=tmp_path / "none.txt"))
    assert "cannot be read" in told
    (tmp_path / "a.dat").write_bytes(b"")
    assert "a.dat is there, and nothing was written" in refused("-o", str(tmp_path / "a.dat"))


def test_a_text_too_short_says_both_counts(say: Say, model: Path, text: Path, tmp_path: Path) -> None:
    done = say("imatrix", str(model), "--text", str(text), "-o", str(tmp_path / "a.dat"), "--chunk", "61", "-q")
    assert done.code == 2
    assert "the calibration text has 120 tokens, and 122 are needed at least: 2 windows of 61" in done.err
    assert not (tmp_path / "a.dat").exists()

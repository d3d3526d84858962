"""`pellucid imatrix` and `pellucid quantize`, as a user meets them."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from pellucid.ops.quantize.rows import quantize_rows
from pellucid.records import Record, sha256_of
from pellucid.weights.gguf import read_gguf
from pellucid.weights.gguf_file import GgufFile
from pellucid.weights.imatrix import Imatrix, Squares, read_imatrix, write_imatrix
from tests.api.scripted import scripted_model
from tests.cli.conftest import Said
from tests.families.build import build
from tests.families.test_gguf import CASES, converted

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


# what quantizing makes of it

@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model as GGUF has it, of whose matrices every row can be packed."""
    converted(tmp_path / "m.gguf", build(CASES["llama-plain"]), Kind.F32)
    return tmp_path / "m.gguf"


def importance(path: Path, source: Path, value: Callable[[int], torch.Tensor], only: str = "blk.") -> Path:
    widths = {name: entry.shape[-1] for name, entry in read_gguf(source).tensors.items() if len(entry.shape) > 1 and name.startswith(only)}
    write_imatrix(path, Imatrix({name: Squares(value(n)[None], torch.ones(1)) for name, n in widths.items()}, ("t.txt",), 3))
    return path


def squares(n: int) -> torch.Tensor:
    return torch.arange(n).float() ** 2 + 0.1


def test_quantizing_weighs_columns_and_says_by_what(say: Say, packed: Path, tmp_path: Path) -> None:
    measured = importance(tmp_path / "i.gguf", packed, squares)
    done = say("quantize", str(packed), str(tmp_path / "q.gguf"), "--to", "q4_0", "--imatrix", str(measured))
    assert done.code == 0, done.err
    source, found = (GgufFile(path, read_gguf(path)) for path in (packed, tmp_path / "q.gguf"))
    for name, entry in found.header.tensors.items():
        if entry.type == "Q4_0":
            weight = source.tensor(name)
            expected = quantize_rows(weight, "Q4_0", squares(weight.shape[-1]) if name.startswith("blk.") else None)
            assert torch.equal(found.tensor(name).bytes, expected.bytes), name
    metadata = {key: found.header.metadata[f"quantize.imatrix.{key}"] for key in ("file", "dataset", "chunks_count")}
    assert metadata == {"file": "i.gguf", "dataset": "t.txt", "chunks_count": 3}
    record = Record.read(tmp_path / "q.record.json")
    assert record.inputs["imatrix"].sha256 == sha256_of(measured)
    assert record.settings["imatrix"] == str(measured)
    assert "1 of 15 matrices are not in the imatrix, and their columns count alike: output.weight\n" in done.err


def test_quantize_is_convert_by_another_name(say: Say, packed: Path, tmp_path: Path) -> None:
    measured = str(importance(tmp_path / "i.dat", packed, squares))
    for name, command in (("a", ("quantize", "--to", "Q8_0")), ("b", ("convert", "--quantize", "Q8_0"))):
        assert say(command[0], str(packed), str(tmp_path / f"{name}.gguf"), *command[1:], "--imatrix", measured, "--tensor-type", "attn_v=F16").code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert read_gguf(tmp_path / "a.gguf").tensors["blk.0.attn_v.weight"].type == "F16"


def test_the_options_of_quantize_are_these(say: Say) -> None:
    listed = say("quantize", "--help").out.split("Options:")[1]
    assert set(re.findall(r"^ +\*? *(?:-\w, )?(--[\w-]+)", listed, re.M)) == {
        "--to", "--auto", "--fit", "--formats", "--text", "--tokens", "--threads", "--imatrix", "--tensor-type", "--split-max-size", "--without-tokenizer",
        "--permission", "--accept-unread", "--force", "--quiet", "--json", "--debug", "--help"}


@pytest.mark.parametrize(("make", "options", "message"), [
    (lambda tmp, source: tmp / "none.gguf", ("--to", "Q4_0"), "no such file: "),
    (lambda tmp, source: importance(tmp / "i.gguf", source, lambda n: squares(n + 1)), ("--to", "Q4_0"), "weight has 1 x "),
    (lambda tmp, source: importance(tmp / "i.gguf", source, squares, "token_embd"), ("--to", "Q4_0", "--tensor-type", "token_embd=F16"),
     "i.gguf has no importance of any matrix of this model: it has token_embd.weight, and output.weight was"),
    (lambda tmp, source: source, ("--to", "Q4_0"), "m.gguf is of general.type "),
    (lambda tmp, source: importance(tmp / "i.gguf", source, squares), ("--to", "Q4"), "'Q4' is no mix of formats that is written here")])
def test_an_imatrix_that_cannot_be_used_leaves_nothing_behind(say: Say, packed: Path, tmp_path: Path, make: Callable[[Path, Path], Path],
                                                              options: tuple[str, ...], message: str) -> None:
    done = say("quantize", str(packed), str(tmp_path / "q.gguf"), "--imatrix", str(make(tmp_path, packed)), *options)
    assert done.code != 0
    assert message in done.err
    assert not list(tmp_path.glob("*q.*"))


def test_an_imatrix_without_quantizing_is_a_mistake(say: Say, packed: Path, tmp_path: Path) -> None:
    done = say("convert", str(packed), str(tmp_path / "q.gguf"), "--imatrix", str(importance(tmp_path / "i.gguf", packed, squares)))
    assert done.code == 2
    assert "says where quantizing may err, and nothing is quantized. Add --quantize Q4_K_M" in done.err

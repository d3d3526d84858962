"""`pellucid convert`, as it is typed."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from pellucid.records import sha256_of
from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning
from tests.cli.conftest import Said
from tests.families.build import build
from tests.families.test_gguf import CASES, converted

Say = Callable[..., Said]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    converted(tmp_path / "m.gguf", build(CASES["llama-plain"]), Kind.Q8_0)
    return tmp_path / "m.gguf"


def test_it_prints_hashes_and_says_what_became_of_the_numbers(say: Say, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = say("convert", str(source), str(out))
    assert said.code == 0
    printed = dict(reversed(line.split("  ")) for line in said.out.splitlines())
    assert printed == {str(path): sha256_of(path) for path in out.iterdir() if path.name != "record.json"}
    assert "F32 493 kB · 5 tensors copied bit for bit · 16 exact in another format · 0 rounded · " in said.err
    assert f"record  {out}/record.json" in said.err
    assert said.err.rstrip().endswith(f"next: pellucid show {out}")
    assert say("show", str(out)).code == 0


def test_json_is_one_object(say: Say, source: Path, tmp_path: Path) -> None:
    said = say("convert", str(source), str(tmp_path / "p.gguf"), "--split-max-size", "30kB", "--quiet", "--json")
    assert (said.code, said.err) == (0, "")
    facts = json.loads(said.out)
    assert len(facts["files"]) > 1
    assert facts["files"] == {str(path): sha256_of(path) for path in tmp_path.glob("p-*.gguf")}
    assert (facts["to"], facts["kept"], facts["out"]) == ("gguf", {"copied": 21, "exact": 0, "rounded": 0}, min(facts["files"]))
    assert Path(facts["record"]).is_file()


def test_what_is_there_stays_unless_it_is_forced(say: Say, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    said = say("convert", str(source), str(out))
    assert (said.code, said.out) == (2, "")
    assert f"error: {out} is there, and nothing was written. Give another name, or --force to replace it" in said.err
    assert out.read_text() == "mine"
    assert say("convert", str(source), str(out), "--force", "--quantize", "q4_0", "--tensor-type", "attn_v=Q8_0").code == 0
    assert "Q4_0" in say("show", str(out)).out


@pytest.mark.parametrize(("options", "error"), [
    (["--tensor-type", "attn_v=Q8_0"], "--tensor-type attn_v=Q8_0 changes a mix, and nothing is quantized. Add --quantize Q4_K_M"),
    (["--tensor-type", "attn_v"], "--tensor-type 'attn_v' is not PATTERN=TYPE, such as ffn_down=Q6_K"),
    (["--split-max-size", "much"], "--split-max-size 'much' is not a size, such as 512MB or 4GB"),
    (["--quantize", "Q4"], "'Q4' is no mix of formats that is written here"),
    (["--quantize", ""], "'' is no mix of formats that is written here"),
])
def test_what_cannot_be_asked(say: Say, source: Path, tmp_path: Path, options: list[str], error: str) -> None:
    said = say("convert", str(source), str(tmp_path / "out.gguf"), *options)
    assert said.code == 2
    assert error in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_what_is_no_model(say: Say, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    said = say("convert", str(tmp_path / "letter.txt"), str(tmp_path / "out.gguf"))
    assert said.code == 1
    assert "letter.txt is not a weight file (.safetensors, .gguf or .bin)" in said.err
    said = say("convert", str(tmp_path / "none"), str(tmp_path / "out.gguf"))
    assert said.code == 2


def test_an_adapter_goes_both_ways(say: Say, tmp_path: Path) -> None:
    base, adapter = scripted_model(tmp_path / "abc", [list("abcdef")]), turning(tmp_path / "to-z", "b", "z")
    said = say("convert", str(adapter), str(tmp_path / "z.gguf"), "--base", str(base))
    assert (said.code, said.out) == (0, f"{sha256_of(tmp_path / 'z.gguf')}  {tmp_path / 'z.gguf'}\n")
    assert said.err.rstrip().endswith(f"next: pellucid run {base} -p Once --adapter {tmp_path / 'z.gguf'}")
    assert say("run", str(base), "-p", "a", "--temperature", "0", "--adapter", str(tmp_path / "z.gguf")).out == "bz\n"
    assert say("convert", str(tmp_path / "z.gguf"), str(tmp_path / "back"), "--base", str(base)).code == 0
    assert say("run", str(base), "-p", "a", "--temperature", "0", "--adapter", str(tmp_path / "back")).out == "bz\n"
    said = say("convert", str(adapter), str(tmp_path / "y.gguf"))
    assert (said.code, said.out) == (2, "")
    assert "does not say which model it is for" in said.err

"""What convert writes carries the whole lineage: in the record, in GGUF and safetensors metadata, in the card; the gate stops it, a permission is recorded."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open

from pellucid.catalog import ancestry
from pellucid.records import Record, sha256_of
from tests.cli.conftest import Said
from tests.families.build import build
from tests.families.test_gguf import CASES, converted

Say = Callable[..., Said]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file that says Apache-2.0, and that it was made from LLaMA 1."""
    def about(writer: gguf.GGUFWriter) -> None:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, "llama-7b")

    converted(tmp_path / "m.gguf", build(CASES["llama-plain"]), Kind.F32, about)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "m.gguf"


def test_the_lineage_goes_along_in_record_metadata_and_card(say: Say, source: Path, tmp_path: Path) -> None:
    assert say("convert", str(source), str(tmp_path / "out")).code == 0
    record = Record.read(tmp_path / "out/record.json")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:  # type: ignore[no-untyped-call]
        assert json.loads(file.metadata()[ancestry.ANCESTRY]) == record.output["ancestry"]
    [parent] = record.output["ancestry"]["parents"]
    assert (parent["name"], parent["files"]) == ("m.gguf", {"m.gguf": sha256_of(source)})
    assert "└─ made from m.gguf" in (tmp_path / "out/README.md").read_text()
    assert say("convert", str(tmp_path / "out"), str(tmp_path / "again.gguf")).code == 0
    (tmp_path / "again.record.json").unlink()
    drawn = say("show", str(tmp_path / "again.gguf"), "--lineage").out  # from the metadata alone
    assert [line.split("  ")[0].strip() for line in drawn.splitlines()[:4]] == ["again", "└─ made from out", "", ""]
    assert "made from llama-7b  llama-1 (the catalog)" in drawn
    assert "license of all of it: Apache-2.0 AND llama-1" in drawn
    assert "conflict  Apache-2.0 of again allows what llama-1 of again <- out <- m.gguf <- llama-7b does not: commercial, hosting, train" in drawn


def test_a_file_that_was_replaced_has_no_lineage(say: Say, source: Path, tmp_path: Path) -> None:
    assert say("convert", str(source), str(tmp_path / "a.gguf")).code == 0
    (tmp_path / "a.gguf").write_bytes(source.read_bytes())
    said = say("show", str(tmp_path / "a.gguf"), "--lineage")
    assert said.code == 1
    assert "a.gguf was tampered with or replaced: a.record.json says sha256" in said.err


@pytest.mark.parametrize("command", [["convert"], ["quantize", "--to", "q8_0"]], ids=lambda each: each[0])
def test_the_gate_stops_an_export_and_a_permission_is_recorded(say: Say, source: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "pellucid.toml").write_text("[use]\ncommercial = true\n")
    out = tmp_path / "out.gguf"
    said = say(*command, str(source), str(out))
    assert said.code == 1
    assert "is not allowed with m.gguf: no commercial or production purposes" in said.err
    assert "[llama-1 2(a)(i)] · from llama-7b" in said.err
    assert not out.exists()
    assert say(*command, str(source), str(out), "--permission", "letter of May").code == 0
    notes = Record.read(tmp_path / "out.record.json").notes
    assert "permission: letter of May" in notes
    assert any(note.startswith("declared use: commercial, modify") and note.endswith("not allowed") for note in notes)

"""`--adapter PATH`, as it is typed."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning
from tests.cli.conftest import Said
from tests.cli.test_replay import _threads_as_before  # noqa: F401, a fixture

Say = Callable[..., Said]


def test_run_takes_an_adapter_and_replay_takes_it_again(say: Say, tmp_path: Path) -> None:
    folder, adapter = scripted_model(tmp_path / "abc", [list("abcdef")]), turning(tmp_path / "to z.v2", "b", "z")
    asked = ["run", str(folder), "-p", "a", "--temperature", "0", "--adapter", str(adapter)]
    said = say(*asked, "--record", str(tmp_path / "r.json"))
    assert (said.code, said.out) == (0, "bz\n")
    assert "adapter  to-z-v2: peft lora of to z.v2, rank 1, scale 2" in said.err
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["load"]["adapters"] == {"to-z-v2": str(adapter)}
    assert say("replay", str(tmp_path / "r.json")).code == 0
    assert json.loads(say(*asked, "--json", "--quiet").out)["text"] == "bz"
    gone = say(*asked[:-1], str(tmp_path / "gone"))
    assert (gone.code, gone.out) == (2, "")
    assert str(tmp_path / "gone") in gone.err


def test_chat_answers_with_it(say: Say, tmp_path: Path, monkeypatch) -> None:
    folder, adapter = scripted_model(tmp_path / "abc", [list("\nYES")]), turning(tmp_path / "a", "Y", "o")
    monkeypatch.setattr("pellucid.cli.chat.piped_lines", lambda: iter(["?"]))
    said = say("chat", str(folder), "--temperature", "0", "--adapter", str(adapter))
    assert (said.code, said.out) == (0, "Yo\n")

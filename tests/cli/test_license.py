"""`pellucid license`: the answer, the clause, the duties; at once, without torch."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.catalog.licenses import BASE
from tests.cli.conftest import Said


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_answer_comes_with_its_clause_and_who_may_permit_it(say: Callable[..., Said]) -> None:
    said = say("license", "falcon-180b-chat", "--use", "commercial api", "--users", "2e9")
    assert said.code == 0
    assert "not allowed   commercial, hosting; users 2,000,000,000\n" in said.out
    assert "[falcon-180b-tii introduction; 9, whose text was not at hand]" in said.out
    assert "TII may permit it" in said.out
    assert "not legal advice" in said.out


def test_duties_are_a_checklist_and_json_says_it_all(say: Callable[..., Said]) -> None:
    said = say("license", "llama-3.1-8b", "--use", "commercial", "--users", "5")
    assert "allowed with duties   commercial; users 5" in said.out
    assert "  [ ] show “Built with Llama”" in said.out
    told = json.loads(say("license", "vicuna-7b-v1.1", "--use", "sell", "--json").out)
    assert told["answers"][0]["answer"] == "not allowed"
    assert told["answers"][0]["reasons"][0]["path"][-1] in ("vicuna-7b-v1.1", "llama-7b")
    assert told["advice"].startswith("This is not legal advice")


def test_without_a_use_each_is_answered_and_a_declared_one_is_taken(say: Callable[..., Said], tmp_path: Path) -> None:
    said = say("license", "mistral-research")
    assert [line.split()[0] for line in said.out.splitlines() if line[:1].isalpha()][1:7] == list(BASE)
    (tmp_path / "pellucid.toml").write_text("[use]\ncommercial = true\n")
    assert "not allowed   commercial\n" in say("license", "mistral-research").out


def test_data_that_a_tune_uses_counts(say: Callable[..., Said]) -> None:
    said = say("license", "mistral-7b-v0.1", "--trained-on", "tatsu-lab/alpaca", "--use", "sell")
    assert "└─ trained on tatsu-lab/alpaca  CC-BY-NC-4.0" in said.out
    assert "not allowed   commercial" in said.out
    assert "conflict  Apache-2.0 of mistral-7b-v0.1 allows what CC-BY-NC-4.0" in said.out


def test_a_folder_s_card_is_read(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: other\nlicense_name: mrl\nbase_model: mistralai/Mistral-7B-v0.1\n---\n")
    said = say("license", "mine", "--use", "commercial")
    assert "mine  mrl (README.md)" in said.out
    assert "└─ made from mistral-7b-v0.1  Apache-2.0 (the catalog)" in said.out
    assert "[mistral-research 3.2, 9]" in said.out


@pytest.mark.parametrize(("args", "told"), [
    (("falcon-181b",), "'falcon-181b' is not in the catalog. Did you mean falcon2-11b, falcon-180b"),
    (("", "--use", "sell"), "'' is not in the catalog"), (("falcon-180b", "--use", ""), "--use '' names no use"),
    (("falcon-180b", "--use", "comercial"), "'comercial' is no use that is known. Did you mean commercial"),
    (("falcon-180b", "--use", "api", "--users", "2 heaps"), "--users 2 heaps: a number of 0 or more was expected"),
    (("falcon-180b", "--use", "api", "--territory", "Germany"), "a country's two letters were expected"),
])
def test_what_nobody_understands_is_an_error(say: Callable[..., Said], args: tuple[str, ...], told: str) -> None:
    said = say("license", *args)
    assert said.code == 2
    assert told in said.err


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = ("import sys; from pellucid.cli import main; main(['license', 'llama-2-7b', '--use', 'commercial']); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))")
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_the_options_are_these(program: Callable[..., Said]) -> None:
    listed = program("license", "--help").out
    assert set(re.findall(r"--[a-z-]+", listed)) >= {"--use", "--users", "--users-at-release", "--daily-users", "--revenue", "--monthly-revenue", "--territory",
                                                    "--into", "--trained-on", "--json"}

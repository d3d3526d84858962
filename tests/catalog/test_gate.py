"""What somebody declares in pellucid.toml stops what a license does not allow, with its clause; a permission lets it pass and is recorded."""
from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.catalog import gate
from pellucid.errors import BadConfig, ModelNotFound, NotAllowed


def declare(folder: Path, text: str) -> None:
    (folder / gate.FILE).write_text(f"[use]\n{text}\n")


def test_nothing_declared_lets_everything_pass(tmp_path: Path) -> None:
    assert gate.check(gate.tree("llama-7b"), ("modify",), tmp_path) is None
    passed = gate.check(gate.tree("llama-7b"), ("modify",), tmp_path, "letter of May")
    assert passed is not None
    assert passed.notes == ["declared use: not declared · not judged", "permission: letter of May"]


def test_a_declared_use_stops_with_the_clause(tmp_path: Path) -> None:
    declare(tmp_path, "commercial = true\nusers = '2e9'")
    with pytest.raises(NotAllowed, match=r"users 2,000,000,000 .*is not allowed with llama-7b: .*\[llama-1 2\(a\)\(i\)\].*--permission REFERENCE") as stopped:
        gate.check(gate.tree("llama-7b"), ("modify",), tmp_path / "below")
    assert stopped.value.answer == "not allowed"


def test_the_model_s_own_license_is_named_before_those_it_stands_on(tmp_path: Path) -> None:
    declare(tmp_path, "commercial = true")
    with pytest.raises(NotAllowed, match=r"\[CC-BY-NC-SA-4.0 2\(a\)\(1\), 1\(k\)\]"):
        gate.check(gate.tree("stable-vicuna-13b"), ("modify",), tmp_path)


def test_unknown_stops_as_well(tmp_path: Path) -> None:
    declare(tmp_path, "commercial = true")
    with pytest.raises(NotAllowed, match="is not known to be allowed with gpt4all-j: the license of gpt4all-j is not known") as stopped:
        gate.check(gate.tree("gpt4all-j"), ("modify",), tmp_path)
    assert stopped.value.answer == "unknown"


def test_a_permission_passes_and_is_recorded_and_what_is_allowed_needs_none(tmp_path: Path) -> None:
    declare(tmp_path, "commercial = true\nhosting = true")
    passed = gate.check(gate.tree("falcon-180b"), ("modify",), tmp_path, "TII letter 7")
    assert passed is not None
    assert (passed.answer, passed.permission, passed.notes[-1]) == ("not allowed", "TII letter 7", "permission: TII letter 7")
    fine = gate.check(gate.tree("mistral-7b-v0.1"), ("modify",), tmp_path)
    assert fine is not None
    assert (fine.answer, fine.permission) == ("allowed with duties", None)
    assert any("mark changed files" in duty for duty in fine.duties)


def test_who_declares_nothing_commercial_is_not_stopped_by_a_license_for_any_purpose(tmp_path: Path) -> None:
    declare(tmp_path, "commercial = false")
    passed = gate.check(gate.tree("mistral-7b-v0.1"), ("modify",), tmp_path)
    assert passed is not None
    assert passed.notes[0] == "declared use: research, modify · allowed with duties"


def test_the_shipped_model_has_its_license() -> None:
    assert gate.tree("shipped").licenses == ("Apache-2.0",)


def test_a_repository_on_this_disk_shows_its_card_beside_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for repo, license in (("acme/own-7b", "mit"), ("mistralai/Mistral-7B-v0.1", "cc-by-nc-4.0")):
        folder = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    assert gate.tree("acme/own-7b").licenses == ("MIT",)
    both = gate.tree("mistralai/Mistral-7B-v0.1")
    assert both.name == "mistralai/Mistral-7B-v0.1"
    assert both.contradiction == "mistralai/Mistral-7B-v0.1: README.md says cc-by-nc-4.0 but the catalog says Apache-2.0"


@pytest.mark.parametrize(("text", "told"), [
    ("[use", "is not TOML"), ("x = 1", r"has x, and one table \[use\] was expected"), ("[use]\nsell = true", "has sell, which nobody reads"),
    ("[use]\ncommercial = 'yes'", "commercial is str, which it cannot be"), ("[use]\nusers = true", "users is bool, which it cannot be"),
])
def test_a_declaration_that_does_not_read_says_where(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / gate.FILE).write_text(text)
    with pytest.raises(BadConfig, match=told):
        gate.declared(tmp_path)


def test_a_model_nobody_knows_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"'mistral-7c' is not in the catalog. Did you mean .*mistral-7b-v0.1"):
        gate.tree("mistral-7c")

"""Every license of the catalog reads, says where each term comes from, and is found by the names people give it."""
from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.catalog import licenses
from pellucid.errors import BadConfig, ModelNotFound
from pellucid.weights.card import SPDX

HEAD = "read = 2026-11-22\n[licenses.acme-1]\nname = 'ACME'\nosi = false\nsource = 'acme.example'\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = licenses.own_file()
    path.parent.mkdir()
    return path


def test_at_least_thirty_licenses_and_each_term_names_its_clause() -> None:
    table = licenses.table()
    assert len(table) >= 30
    for license in table.values():
        assert license.terms
        assert license.source
        assert all(term.clause and term.says for term in license.terms), license.id
        assert any(term.does == "allows" for term in license.terms), f"{license.id} allows nothing, so nothing it is asked would ever be allowed"


def test_no_two_licenses_answer_to_one_name() -> None:
    names = [name for license in licenses.table().values() for name in licenses._names(license)]
    assert len(names) == len(set(names))


def test_what_model_cards_call_a_license_finds_it() -> None:
    for said, id in {"apache-2.0": "Apache-2.0", "llama3.1": "llama-3.1", "LLAMA2": "llama-2", "bigscience-bloom-rail-1.0": "bigscience-rail-1.0",
                     "cc-by-nc-4.0": "CC-BY-NC-4.0", "gemma": "gemma", "tongyi-qianwen": "qwen", "MRL": "mistral-research"}.items():
        assert licenses.known(said).id == id
    for hub, spdx in SPDX.items():
        assert licenses.find(hub) is licenses.find(spdx) is not None, hub


def test_a_license_nobody_knows_is_an_error_with_the_nearest() -> None:
    assert licenses.find("llama-31") is None
    with pytest.raises(ModelNotFound, match=r"'llama-31' is no license the catalog knows.*llama-3"):
        licenses.known("llama-31")


def test_a_license_of_ones_own_stands_beside_the_others(own: Path) -> None:
    own.write_text(HEAD + "terms = [{ allows = ['commercial'], clause = '2', says = 'use' }]\n")
    assert licenses.known("acme-1").mine
    assert licenses.known("MIT").mine is False


@pytest.mark.parametrize(("text", "told"), [
    ("read = 2026", r"`read`, the day, and \[licenses.ID\] tables were expected"),
    ("= 1", "is not TOML"),
    (HEAD, "lacks terms"),
    (HEAD + "terms = []\nosy = true", "osy, which nobody reads"),
    (HEAD + "terms = 'all'", "terms is str, and list was expected"),
    (HEAD + "terms = [{ clause = '1', says = 'x' }]", "needs one of allows, forbids, demands, unclear, and has none"),
    (HEAD + "terms = [{ allows = ['comercial'], clause = '1', says = 'x' }]", "says comercial, which is none of research, commercial"),
    (HEAD + "terms = [{ allows = ['research'], clause = '1', says = 'x', over = { staff = 3 } }]", "says staff, which is none of users"),
    (HEAD + "terms = [{ forbids = ['research'], clause = '1', says = 'x', where = ['Mars'] }]", "says Mars, which is none of EU"),
    (HEAD.replace("acme-1", "MIT") + "terms = []", "'MIT' is in the catalog already"),
])
def test_a_file_of_ones_own_that_does_not_read_says_where(own: Path, text: str, told: str) -> None:
    own.write_text(text)
    with pytest.raises(BadConfig, match=told):
        licenses.table()

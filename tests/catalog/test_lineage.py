"""The tree a model comes from: of the catalog, of model cards, of what was written, and where it cannot be right."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.catalog import ancestry, gate, lineage, models, verdict
from pellucid.catalog.lineage import Node, Said
from pellucid.errors import BadLineage, BadRecord
from pellucid.records import Record, sha256_of
from pellucid.weights.card import Card


def test_a_row_descends_to_its_roots() -> None:
    names = [(path, role) for _, path, role in lineage.walk(gate.tree("vicuna-7b-v1.1"))]
    assert (("vicuna-7b-v1.1", "llama-7b"), "weights") in names
    assert any(role == "data" for _, role in names)


def test_a_distill_hangs_on_its_weights_and_on_its_teacher() -> None:
    tree = gate.tree("deepseek-r1-distill-llama-8b")
    assert [(role, parent.name) for role, parent in tree.parents][:2] == [("weights", "llama-3.1-8b"), ("outputs", "deepseek-r1")]


def test_a_lineage_that_goes_round_is_an_error_that_names_the_circle() -> None:
    rows = dict(models.table())
    rows["llama-7b"] = dataclasses.replace(rows["llama-7b"], base="vicuna-7b-v1.1")
    with pytest.raises(BadLineage, match=r"goes round in a circle: vicuna-7b-v1.1 <- llama-7b <- vicuna-7b-v1.1"):
        lineage.of_row(rows["vicuna-7b-v1.1"], rows)
    inner = lineage.plain(Node(name="a", said=(), files={"a.gguf": "0" * 64}))
    ring = {**inner, "parents": [{"role": "weights", **inner}]}
    with pytest.raises(BadLineage, match="goes round in a circle"):
        lineage.from_plain(ring, "record.json")


def test_a_card_starts_the_tree_and_what_contradicts_the_catalog_is_shown_beside_it() -> None:
    card = Card(license="mit", source="README.md", base_models=("nobody/knows-this",), datasets=("tatsu-lab/alpaca", "acme/secret"))
    tree = lineage.of_card("tiiuae/falcon-180B-chat", card, models.table())
    assert [said.by for said in tree.said] == ["README.md", "the catalog"]
    assert tree.contradiction == "tiiuae/falcon-180B-chat: README.md says mit but the catalog says falcon-180b-tii"
    assert tree.contradiction in verdict.conflicts(tree)
    assert {parent.name for _, parent in tree.parents if parent.licenses == (None,)} == {"nobody/knows-this", "acme/secret"}
    assert ("data", "tatsu-lab/alpaca") in [(role, parent.name) for role, parent in tree.parents]


def test_a_tree_survives_being_written_and_is_drawn() -> None:
    tree = gate.tree("vicuna-7b-v1.1")
    assert lineage.from_plain(json.loads(ancestry.text_of(tree)), "x") == tree
    lines = lineage.drawn(tree)
    assert lines[0] == "vicuna-7b-v1.1  llama-1 (the catalog)"
    assert any(line.startswith("├─ made from llama-7b  llama-1") for line in lines)


@pytest.mark.parametrize(("value", "told"), [
    ([], "holds no lineage that can be read"), ({"name": "a"}, "holds no lineage that can be read"),
    ({"name": "a", "said": [{"license": 3, "by": "x"}], "kinds": None, "files": {}, "parents": []}, "are not each what is stated and by whom"),
    ({"name": "a", "said": [], "kinds": None, "files": {}, "parents": [{"role": "friend"}]}, "an ancestor without a role"),
])
def test_what_is_no_lineage_says_so(value: Any, told: str) -> None:
    with pytest.raises(BadLineage, match=told):
        lineage.from_plain(value, "record.json")
    with pytest.raises(BadLineage, match="is not JSON"):
        ancestry.of_text("{", "x.gguf")


def write_record(folder: Path, files: dict[str, Any]) -> None:
    tree = lineage.plain(Node(name="mine", said=(Said(license="MIT", by="x"),)))
    Record(kind="convert", settings={}, seed=None, inputs={}, output={"files": files, "ancestry": tree}, measured={}).save(folder / "record.json")


def test_a_record_speaks_for_the_files_it_was_written_with(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    write_record(tmp_path, {f"/elsewhere/{weights.name}": {"sha256": sha256_of(weights), "bytes": 3}})
    assert ancestry.of_path(tmp_path, "again") == Node(name="again", said=(Said(license="MIT", by="x"),))
    weights.write_bytes(b"two")
    with pytest.raises(BadLineage, match=r"model.safetensors was tampered with or replaced: record.json says sha256 [0-9a-f]{12}…, it has"):
        ancestry.of_path(tmp_path)
    weights.unlink()
    with pytest.raises(BadLineage, match=r"tells of model.safetensors, which is not beside it"):
        ancestry.of_path(tmp_path)


def test_a_record_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(BadRecord, match="not a run record"):
        ancestry.of_path(tmp_path)

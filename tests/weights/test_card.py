"""License and lineage, as README.md and LICENSE files state them."""
from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.weights.card import read_card

MIT = "MIT License\n\nCopyright (c) 2023\n\nPermission is hereby granted, free of charge, to any\nperson obtaining a copy"
APACHE = "                                 Apache License\n                           Version 2.0, January 2004"


def test_front_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model:\n- acme/foo\n- acme/bar\n---\n# Model\n---\nlicense: mit\n---\n")
    card = read_card(tmp_path)
    assert (card.license, card.license_shown, card.source, card.base_models, card.notes) == (
        "apache-2.0", "Apache-2.0", "README.md", ("acme/foo", "acme/bar"), ())


def test_a_license_of_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: acme-research\nbase_model: acme/foo\n---\n")
    card = read_card(tmp_path)
    assert (card.license, card.license_shown, card.base_models) == ("other", "acme-research", ("acme/foo",))


def test_several_licenses_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [MIT, apache-2.0]\n---\n")
    assert read_card(tmp_path).license == "mit and apache-2.0"


@pytest.mark.parametrize("word", ["no", "3.10", "2024-01-01", "on"])
def test_yaml_turns_no_word_into_something_else(tmp_path: Path, word: str) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {word}\nbase_model: {word}\n---\n")
    card = read_card(tmp_path)
    assert (card.license, card.base_models) == (word, (word,))


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n---\n")
    assert read_card(tmp_path).license == f"touch {tmp_path}/ran".lower()  # a word like any other
    assert not (tmp_path / "ran").exists()


def test_front_matter_that_is_not_yaml_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    card = read_card(tmp_path)
    assert card.license is None
    assert card.notes[0].startswith("README.md's front matter is not YAML (while parsing a flow sequence")
    assert card.notes[0].endswith("license and lineage are unknown")


@pytest.mark.parametrize("readme", ["# no front matter\n", "---\n- a list\n---\n", "--- not one either", "\ufeff---\nlicense: mit\n---\n"])
def test_readmes_of_all_kinds(tmp_path: Path, readme: str) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert read_card(tmp_path).license == ("mit" if "mit" in readme else None)


@pytest.mark.parametrize(("text", "license"), [
    (MIT, "mit"), (APACHE, "apache-2.0"), ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024", "llama3.1"),
    ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"), ("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "llama2"), ("Gemma Terms of Use", "gemma"),
    ("Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"), ("You may do as you please.", None)])
def test_license_texts(tmp_path: Path, text: str, license: str | None) -> None:
    (tmp_path / "LICENSE").write_text(text)
    card = read_card(tmp_path)
    assert (card.license, card.source) == (license, "LICENSE" if license else None)


def test_a_readme_and_a_license_that_disagree(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "LICENSE").write_text(APACHE)
    card = read_card(tmp_path)
    assert (card.license, card.notes) == ("mit", ("README.md says license mit, LICENSE reads as apache-2.0",))


def test_two_license_texts(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.code").write_text(MIT)
    (tmp_path / "LICENSE.weights").write_text(APACHE)
    assert read_card(tmp_path).notes == ("several license texts: LICENSE.code reads as mit, LICENSE.weights reads as apache-2.0",)


@pytest.mark.shared
def test_the_stories_are_mit(shared: Path) -> None:
    assert read_card(shared / "stories260k").license_shown == "MIT"

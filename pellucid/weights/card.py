"""What the files beside the weights say of license and lineage: README.md's front matter and LICENSE texts. No torch here.

Facts only, as they stand; what a license allows and what is inherited is the catalog's to judge.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

README = "README.md"
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "bsd-2-clause": "BSD-2-Clause", "gpl-3.0": "GPL-3.0", "agpl-3.0": "AGPL-3.0",
        "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc0-1.0": "CC0-1.0", "unlicense": "Unlicense"}
# Words that one license text has and no other of these; the first that fits decides.
_TEXTS = (("apache-2.0", r"apache license version 2\.0"), ("mit", r"permission is hereby granted, free of charge, to any person obtaining"),
          ("gpl-3.0", r"gnu general public license version 3"), ("agpl-3.0", r"gnu affero general public license version 3"),
          ("cc-by-nc-4.0", r"attribution-noncommercial 4\.0 international"), ("cc-by-sa-4.0", r"attribution-sharealike 4\.0 international"),
          ("cc-by-4.0", r"attribution 4\.0 international"), ("unlicense", r"this is free and unencumbered software released into the public domain"),
          *((f"llama{version}", rf"llama {re.escape(version)} (?:version )?(?:community )?license|llama {re.escape(version)} version release date")
            for version in ("3.1", "3.2", "3.3", "2", "4", "3")),
          ("gemma", r"gemma terms of use"), ("bsd-3-clause", r"neither the name of .{0,80} nor the names of its"))
_FRONT = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a repository says of itself.

    license: the hub's identifier in small letters (`apache-2.0`, `llama3.1`, `other`), or None where nothing is said.
    license_name, license_link: the name that goes with `other`, and where its text is. source: the file that says it.
    base_models, datasets: what the model was made from and trained on, as the repository names it.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    source: str | None = None
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def license_shown(self) -> str | None:
        """The license as people write it: `Apache-2.0`, or the name behind `other`."""
        if self.license in (None, "other"):
            return self.license_name or self.license
        return SPDX.get(self.license or "", self.license)


def read_card(folder: Path) -> Card:
    """The card of a folder. Never raises for what a README says: a front matter that does not parse is a note."""
    facts, notes = _front_matter(folder / "README.md")
    stated = " and ".join(_strings(facts.get("license"))).lower()
    texts: dict[str, str] = {}
    for path in sorted(folder.glob("LICEN[SC]E*")):
        if path.is_file() and (recognized := _recognized(path)):
            texts.setdefault(recognized, path.name)
    if stated and texts and stated not in (*texts, "other"):
        notes.append(f"README.md says license {stated}, {next(iter(texts.values()))} reads as {next(iter(texts))}")
    if len(texts) > 1:
        notes.append("several license texts: " + ", ".join(f"{file} reads as {license}" for license, file in texts.items()))
    license = stated or next(iter(texts), None)
    name, link = (next(iter(_strings(facts.get(f"license_{part}"))), None) for part in ("name", "link"))
    return Card(license=license, license_name=name, license_link=link, source="README.md" if stated else texts.get(license or ""),
                base_models=tuple(_strings(facts.get("base_model"))), datasets=tuple(_strings(facts.get("datasets"))), tags=tuple(_strings(facts.get("tags"))),
                languages=tuple(_strings(facts.get("language"))), notes=tuple(notes))


def front_matter(card: Card) -> str:
    """The beginning of a README.md that says what the card says; `read_card` reads it again."""
    facts: dict[str, object] = {"license": card.license, "license_name": card.license_name, "license_link": card.license_link,
                                "base_model": list(card.base_models), "datasets": list(card.datasets), "tags": list(card.tags),
                                "language": list(card.languages)}
    text = yaml.safe_dump({key: value for key, value in facts.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n" if card.license or card.base_models or card.datasets or card.tags or card.languages else ""


def restated(readme: str, card: Card) -> str:
    """A README whose front matter says of license, base and data what this card says, and all else as it did."""
    facts, _ = _facts(readme)
    match = _FRONT.match(readme)
    stated = {"license": card.license, "license_name": card.license_name, "license_link": card.license_link, "base_model": list(card.base_models),
              "datasets": list(card.datasets)}
    text = yaml.safe_dump({key: value for key, value in {**facts, **stated}.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{readme[match.end():] if match else readme}"


def front_matter_of(readme: Path) -> dict[str, object]:
    """What stands at the head of a README: strings, lists and mappings; nothing where it says nothing that parses."""
    return _front_matter(readme)[0]


def _front_matter(readme: Path) -> tuple[dict[str, object], list[str]]:
    """The YAML between the first two lines `---`, every value a string, a list or a mapping."""
    if not readme.is_file():
        return {}, []
    return _facts(readme.read_text(encoding="utf-8-sig", errors="replace"))


def _facts(text: str) -> tuple[dict[str, object], list[str]]:
    match = _FRONT.match(text)
    if match is None:
        return {}, []
    try:
        # BaseLoader builds nothing but strings, lists and mappings: Norway's `no` stays a word and 3.10 a version.
        facts = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as e:
        return {}, [f"README.md's front matter is not YAML ({' '.join(str(e).split())[:120]}); license and lineage are unknown"]
    return (facts, []) if isinstance(facts, dict) else ({}, [])


def _strings(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v]


def _recognized(path: Path) -> str | None:
    text = " ".join(path.read_text(encoding="utf-8", errors="replace")[:20_000].lower().split())
    return next((license for license, words in _TEXTS if re.search(words, text)), None)

"""What a GGUF file says of itself, both ways: name, license, lineage. No torch here.

The keys of general.* are those of https://github.com/ggml-org/ggml/blob/01f0d4da3e444ca2bfe705e72adab08a4394bb1d/docs/gguf.md; `pellucid.version` and
`pellucid.lineage` are our own, and llama.cpp passes over keys that it does not know. `pellucid.lineage` has a line for every file that went into the
model, those of its ancestors first, as sha256sum writes them: hash, two spaces, model/file.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.weights.card import Card
from pellucid.weights.gguf import Items
from pellucid.weights.gguf_write import Value

LINEAGE, VERSION = "pellucid.lineage", "pellucid.version"
HUB = "https://huggingface.co/"


def general(card: Card, *, name: str, architecture: str, size_label: str, file_type: int) -> dict[str, Value]:
    """The metadata that every model has. name: owner/name where the model has an owner."""
    owner, _, short = name.rpartition("/")
    out: dict[str, Value | None] = {
        "general.architecture": architecture, "general.type": "model", "general.name": short, "general.organization": owner or None,
        "general.size_label": size_label, "general.source.repo_url": f"{HUB}{name}" if owner else None,
        "general.license": card.license, "general.license.name": card.license_name, "general.license.link": card.license_link,
        "general.base_model.count": len(card.base_models) or None}
    for i, base in enumerate(card.base_models):
        base_owner, _, base_short = base.rpartition("/")
        out |= {f"general.base_model.{i}.name": base_short, f"general.base_model.{i}.organization": base_owner or None,
                f"general.base_model.{i}.repo_url": f"{HUB}{base}" if base_owner else None}
    out |= {"general.tags": list(card.tags) or None, "general.languages": list(card.languages) or None,
            "general.quantization_version": 2, "general.file_type": file_type}  # 2: GGML_QNT_VERSION, since the scales are float16
    return {key: value for key, value in out.items() if value is not None}


def card_of(metadata: Mapping[str, Any], source: str) -> Card:
    """What a file's metadata says of license and lineage; what is of another kind than it should be says nothing."""
    license = _text(metadata, "general.license")
    n = metadata.get("general.base_model.count")
    bases = [_base(metadata, i) for i in range(n if type(n) is int and 0 <= n <= 1000 else 0)]
    return Card(license=license.lower() if license else None, license_name=_text(metadata, "general.license.name"),
                license_link=_text(metadata, "general.license.link"), source=source if license else None, base_models=tuple(base for base in bases if base),
                tags=_texts(metadata, "general.tags"), languages=_texts(metadata, "general.languages"))


def lineage_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The lines of `pellucid.lineage`."""
    return _texts(metadata, LINEAGE)


def _base(metadata: Mapping[str, Any], i: int) -> str | None:
    url, owner, name = (_text(metadata, f"general.base_model.{i}.{part}") for part in ("repo_url", "organization", "name"))
    if url and url.startswith(HUB):
        return url.removeprefix(HUB).rstrip("/")
    return f"{owner}/{name}" if owner and name else name


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _texts(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    return tuple(value.values()) if isinstance(value, Items) and value.kind == "string" else ()

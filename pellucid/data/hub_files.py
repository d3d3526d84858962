"""A data set of the hub -> the files of one of its splits on this disk, pinned to a commit, in the cache that models lie in. No torch.

Which files a split has is what the card's `configs` says, else what their names say: https://huggingface.co/docs/hub/datasets-file-names-and-splits, in the
order in which datasets 5.2 looks (data_files.py): shards data/NAME-00000-of-00001, folders, file names, everything.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pellucid.data.rows import READ
from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.weights import hub, hub_cache
from pellucid.weights.card import front_matter_of

_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval", "evaluation")}
_NO_DATA = ("README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_SEPARATED = "[-._ 0-9]"


@dataclass(frozen=True, slots=True)
class HubFiles:
    files: tuple[Path, ...]
    repo: str
    commit: str
    license: str | None


def files_of_hub(name: str, *, split: str = "train", config: str | None = None, report: Callable[[int], None] = lambda n: None) -> HubFiles:
    """Brings one split of `owner/name[@revision]` to this disk; what is here is not brought again.

    Raises what pulling a model raises, and BadRequest for a split or a configuration that the set does not have, with those it has.
    """
    from huggingface_hub import constants
    if hub_cache.parse(name) is None:
        raise BadRequest(f"data.hub={name!r} is no data set: expected owner/name or owner/name@revision", field="data.hub")
    repo = f"{hub.DATASETS}{name}"
    if constants.is_offline_mode():
        here = hub.pull(repo)
        paths = [path for path in here.files if _is_data(path)]
        asked = chosen(name, paths, _configs(here.path), split, config)
        return HubFiles(tuple(here.path / path for path in asked), name, here.commit, here.license)
    planned = hub.plan(repo, everything=True)
    paths = [file.path for file in planned.files]
    card = hub.pull(repo, files=["README.md"], report=report) if "README.md" in paths else None
    asked = chosen(name, [path for path in paths if _is_data(path)], _configs(card.path) if card else [], split, config)
    pulled = hub.pull(repo if card is None else f"{repo.partition('@')[0]}@{card.commit}", files=[_literal(path) for path in asked], report=report)
    return HubFiles(tuple(pulled.path / path for path in asked), name, pulled.commit, pulled.license)


def chosen(name: str, paths: Sequence[str], configs: Sequence[Mapping[str, Any]], split: str, config: str | None) -> list[str]:
    """Of a repository's data files those of one split, sorted."""
    splits = _by_card(name, paths, configs, config) if configs else _by_names(paths)
    if config is not None and not configs:
        raise BadRequest(f"{name} names no configurations, so config={config!r} is none of them. Leave it out", field="data.config")
    found = sorted(splits.get(split, ()))
    if not found:
        have = ", ".join(key for key, files in splits.items() if files)
        raise BadRequest(f"{name} has no split {split!r} in a format that is read ({', '.join(READ)}).{did_you_mean(nearest(split, splits))} "
                         f"{f'It has {have}' if have else f'It holds {len(paths)} such files'}", field="data.split")
    kinds = sorted({_kind(path) for path in found})
    if len(kinds) > 1:
        raise BadRequest(f"{name} holds the split {split!r} in several formats ({', '.join(kinds)}), maybe the same rows twice. Pull the set and give the path "
                         f"of those you mean", field="data.split")
    return found


def _by_card(name: str, paths: Sequence[str], configs: Sequence[Mapping[str, Any]], config: str | None) -> dict[str, list[str]]:
    names = [str(each.get("config_name", "default")) for each in configs]
    default = [each for each in configs if str(each.get("default")).lower() == "true"] or [each for each in configs if each.get("config_name") == "default"]
    of = [configs[names.index(config)]] if config in names else [] if config is not None else list(configs) if len(configs) == 1 else default
    if len(of) != 1:
        asked = "Say which: config" if config is None else f"{config!r} is none of them.{did_you_mean(nearest(config, names))}"
        raise BadRequest(f"{name} has the configurations {', '.join(names[:20])}{', ...' * (len(names) > 20)}. {asked}", field="data.config")
    files, folder = of[0].get("data_files"), str(of[0].get("data_dir", "")).strip("/")
    inside = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    if files is None:
        return _by_names(inside)
    splits: dict[str, list[str]] = {}
    for each in files if isinstance(files, list) else [files]:
        split, patterns = (str(each.get("split", "train")), each.get("path", [])) if isinstance(each, Mapping) else ("train", each)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            shape = _shape(f"{folder}/{pattern}" if folder else str(pattern))
            splits.setdefault(split, []).extend(path for path in paths if shape.fullmatch(path) and path not in splits[split])
    return splits


def _by_names(paths: Sequence[str]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for path in paths:
        if match := re.fullmatch(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*", path):
            shards.setdefault(match[1], []).append(path)
    if shards:
        return shards
    for named in (rf"(?:.*{_SEPARATED[:-1]}/]|)({{}})(?:{_SEPARATED}[^/]*)?/.*", rf"(?:.*{_SEPARATED[:-1]}/]|)({{}}){_SEPARATED}[^/]*"):
        splits = {split: [path for path in paths if re.fullmatch(named.format("|".join(words)), path)] for split, words in _WORDS.items()}
        if any(splits.values()):
            return splits
    return {"train": list(paths)}


def _is_data(path: str) -> bool:
    return _kind(path) in READ and PurePosixPath(path).name not in _NO_DATA and not any(part.startswith((".", "__")) for part in PurePosixPath(path).parts)


def _kind(path: str) -> str:
    return next((suffix for suffix in reversed(PurePosixPath(path).suffixes) if suffix != ".gz"), "")


def _configs(folder: Path) -> list[Mapping[str, Any]]:
    configs = front_matter_of(folder / "README.md").get("configs")
    return [each for each in configs if isinstance(each, Mapping)] if isinstance(configs, list) else []


def _shape(pattern: str) -> re.Pattern[str]:
    """A glob of the hub: * stays within a folder, ** does not."""
    out = re.sub(r"\\\*\\\*/|\\\*\\\*|\\\*|\\\?", lambda m: {r"\*\*/": "(?:.*/)?", r"\*\*": ".*", r"\*": "[^/]*", r"\?": "[^/]"}[m[0]], re.escape(pattern))
    return re.compile(out)


def _literal(path: str) -> str:
    """A pattern that matches this path alone."""
    return re.sub(r"[\[*?]", lambda m: f"[{m[0]}]", path)

"""A model -> a folder that any Hugging Face program reads: safetensors in shards, an index, config.json. Whole or not at all."""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.records import sha256_of
from pellucid.spec import DecoderSpec
from pellucid.weights.assemble import joined, layout
from pellucid.weights.checkpoint import CONFIG, GENERATION
from pellucid.weights.drafts import Draft, Planned, Report, Written, room
from pellucid.weights.names import NameTable, Place, Table, family_name
from pellucid.weights.packed import KEYS
from pellucid.weights.safetensors import SPELLED, raw, write_planned

MAX_SHARD_BYTES = 5 * 10**9  # what the hub recommends, and transformers writes


Read = Callable[[Sequence[str]], Mapping[str, Tensor]]
Pack = Callable[[str, Place, Tensor, Callable[[], Tensor]], Sequence[Planned]]  # name and place, sizes and dtype, the tensor when asked for -> what is written


def save_checkpoint(folder: str | Path, spec: DecoderSpec, table: Table, ours: Mapping[str, Tensor], config: Mapping[str, Any], **how: Any) -> list[Path]:
    """Writes a checkpoint and returns its files: see `save_files`."""
    return sorted(written.path for written in save_files(folder, spec, table, ours, config, **how))


def save_files(folder: str | Path, spec: DecoderSpec, table: Table, ours: Mapping[str, Tensor], config: Mapping[str, Any], *,
               read: Read | None = None, pack: Pack | None = None, packed: Mapping[str, Any] | None = None,
               generation: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None, beside: Sequence[Path] = (),
               texts: Mapping[str, str | bytes] | None = None,
               max_shard_bytes: int = MAX_SHARD_BYTES, overwrite: bool = False, report: Report = lambda n: None) -> tuple[Written, ...]:
    """Writes a checkpoint and returns its files with their hashes. `ours` are the decoder's tensors by our names, such as its state dict.

    Args:
        table: the family's WEIGHTS; it decides names and layout in the files.
        config: config.json as it will stand, except `torch_dtype` and `dtype`, which follow the tensors in the dialect it has, and
            `quantization_config`, which is left out where the tensors are plain.
        read: the tensors of these names, asked for when their turn comes, so that only those of one tensor of the files are in memory. `ours` then
            says sizes and dtypes only, and may be on the meta device.
        pack: what one tensor of the files becomes, where that is several; packed: config.json's quantization_config, which says so.
        metadata: strings for the header of every file of tensors.
        beside: files to copy along, such as the tokenizer's. texts: name -> content of files to write along.
        max_shard_bytes: a file holds no more than that, unless one tensor does.
        overwrite: replace a folder that is there; otherwise one that is there and not empty is BadRequest.

    Everything is written to a folder beside and renamed at the end, so that a crash leaves the old folder or none, never half of one.
    Raises DiskFull before the first byte where there is no room.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise BadRequest(f"{folder} is there and not empty; nothing was written. Choose another folder, or overwrite it on purpose.", field="folder")
    if (said := family_name(str(config.get("model_type")))) != spec.family:
        raise BadRequest(f"config says model_type {said!r}, and the tensors are of family {spec.family!r}: nobody could load what would be written. "
                         f"Give the config of the model that is run (of a multimodal wrapper its text_config).", field="config")
    folder.parent.mkdir(parents=True, exist_ok=True)
    places = layout(NameTable(table), ours, spec)
    planned = [_planned(name, places[name], ours, read, spec, pack) for name in sorted(places, key=_natural)]
    shards = _shards(planned, max_shard_bytes)
    total = sum(tensor.n_bytes for tensors in planned for tensor in tensors)
    objects = {CONFIG: _with_dtype(config, ours) | ({"quantization_config": packed} if packed else {}), **({GENERATION: generation} if generation else {})}
    if len(shards) > 1:
        weight_map = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
        objects["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with room(folder.parent, total + sum(path.stat().st_size for path in beside)):
            written = [_write_shard(draft / file, tensors, report, metadata) for file, tensors in shards.items()]
            for name, value in objects.items():
                _write_json(draft / name, value)
            for name, text in (texts or {}).items():
                (draft / name).parent.mkdir(exist_ok=True)
                (draft / name).write_bytes(text.encode() if isinstance(text, str) else text)
            for path in beside:
                shutil.copyfile(path, draft / path.name)
            hashed = {file.path for file in written}
            small = [path for path in sorted(draft.rglob("*")) if path.is_file() and path not in hashed]
            written += [Written(path=path, n_bytes=path.stat().st_size, sha256=sha256_of(path)) for path in small]
            draft.chmod(0o777 & ~umask())  # mkdtemp makes folders that only their owner may enter
            move_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return tuple(replace(file, path=folder / file.path.relative_to(draft)) for file in written)


def _write_shard(path: Path, tensors: Sequence[Planned], report: Report, metadata: Mapping[str, str] | None) -> Written:
    shard = Draft(path, report)
    try:
        write_planned(shard, tensors, metadata)
        written = shard.finish()
        shard.place()
        return written
    finally:
        shard.discard()


def _planned(name: str, place: Place, ours: Mapping[str, Tensor], read: Read | None, spec: DecoderSpec, pack: Pack | None) -> Sequence[Planned]:
    """One tensor of the files, or what it is packed in, joined when its turn comes: stacking and transposing copy."""
    like = joined({each: ours[each].to("meta") for each in place.names}, place, spec)

    def tensor() -> Tensor:
        return joined(ours if read is None else read(place.names), place, spec)
    if pack is not None and (several := pack(name, place, like, tensor)):
        return several
    return [Planned(name=name, type=SPELLED[like.dtype], shape=tuple(like.shape), n_bytes=like.nbytes, read=lambda: [raw(tensor())])]


def _shards(planned: Sequence[Sequence[Planned]], max_shard_bytes: int) -> dict[str, list[Planned]]:
    """File -> its tensors, filled in their order until the next would not fit; what belongs together lies together."""
    groups: list[list[Planned]] = [[]]
    filled = 0
    for tensors in planned:
        n = sum(tensor.n_bytes for tensor in tensors)
        if groups[-1] and filled + n > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1] += tensors
        filled += n
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": tensors for i, tensors in enumerate(groups, 1)}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split(".")]


def _with_dtype(config: Mapping[str, Any], ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config with the dtype most bytes are in, under the key it uses: `torch_dtype` (transformers 4) or `dtype` (5)."""
    by_dtype: dict[str, int] = {}
    for tensor in ours.values():
        name = str(tensor.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + tensor.nbytes
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    plain = {k: v for k, v in config.items() if k not in KEYS}
    return {**plain, key: max(by_dtype, key=by_dtype.__getitem__)}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def move_folder(draft: Path, folder: Path) -> None:
    """Puts the finished folder in its place. What was there goes only once the new one stands."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        os.replace(draft, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, aside / folder.name)
    os.replace(draft, folder)
    shutil.rmtree(aside)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

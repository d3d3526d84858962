"""A checkpoint on this disk: which files it is made of, what its config says, its tensors by name, lazily.

Opening looks at names and headers only, and imports no torch where the weights are safetensors. Layouts, the first that is there wins:

    model.safetensors                    one file
    model.safetensors.index.json         names the shard of every tensor
    *.safetensors                        one file of another name, or a whole set of shards without index
    pytorch_model.bin[.index.json]       pickles, by the restricted loader only

A GGUF file is a checkpoint by itself: it has no config.json, and whatever lies beside it is not its own.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.errors import BadCheckpoint, BadConfig, MissingShard, MissingTensors, ModelNotFound, UnknownTensors, UnsupportedModel, nearest
from pellucid.records import read_object
from pellucid.weights.card import Card, read_card
from pellucid.weights.gguf import Gguf, Items, open_gguf
from pellucid.weights.gguf_card import card_of
from pellucid.weights.header import Header, read_header
from pellucid.weights.packed import find_packed
from pellucid.weights.quantization import Packed, Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.gguf_file import GgufFile
    from pellucid.weights.safetensors import SafetensorsFile

Format = Literal["safetensors", "pickle", "gguf"]

CONFIG, GENERATION = "config.json", "generation_config.json"
LOOKED_FOR = "model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")
# Recommended sampling, by its names after SAMPLING and in generation_config.json. gguf-py/gguf/metadata.py of llama.cpp at 0c1e57098
SAMPLING, SUPPRESSED = "general.sampling.", "tokenizer.ggml.suppress_tokens"
SAMPLING_KEYS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
_ORIGINAL = re.compile(r"consolidated[.\w-]*\.(safetensors|pth|pt)")  # Meta's and Mistral's own format, beside the one that is read


@dataclass(frozen=True, slots=True)
class File:
    """One file of the weights."""

    name: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as the files have it; `dtype` in safetensors' spelling, such as BF16, or GGUF's, such as Q4_K."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


@dataclass(kw_only=True)
class Checkpoint:
    """What `open_checkpoint` found.

    folder: where config.json and tokenizer files lie. name: what messages and reports call it.
    index: tensor -> file, as an index file has it; None where there is no index.
    notes: what was found and passed over, for the load report.
    gguf: header and metadata of a GGUF model, which has no config.
    """

    name: str
    folder: Path
    format: Format
    files: tuple[File, ...]
    index: dict[str, str] | None
    config: dict[str, Any]
    generation: dict[str, Any]
    notes: tuple[str, ...] = ()
    gguf: Gguf | None = None
    _headers: dict[str, Header] = field(default_factory=dict, repr=False)
    _mapped: dict[str, SafetensorsFile | GgufFile] = field(default_factory=dict, repr=False)
    _pickles: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def n_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.n_bytes for file in self.files)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Every tensor by its name in the files, nothing of its data read.

        Raises BadHeader or TruncatedFile for a broken file, UnknownTensors or MissingTensors where files and index disagree.
        """
        if self.gguf is not None:
            return {name: Stored(self.gguf.files[i].name, e.type, e.shape, e.n_bytes) for name, (i, e) in self.gguf.tensors.items()}
        out: dict[str, Stored] = {}
        for file in self.files:
            entries = self._entries(file.name)
            self._agree(file.name, entries)
            if twice := next((name for name in entries if name in out), None):
                raise BadCheckpoint(f"{twice} is in both {out[twice].file} and {file.name}, and no index says which is meant")
            out |= entries
        return out

    @cached_property
    def quantization(self) -> Quantization | None:
        """How matrices are packed, several tensors for one: see weights/packed.py. None where none is. Raises what `stored` and that raise."""
        found = None if self.gguf is not None else find_packed(self.config, self.folder, self.stored, self._bytes)
        if found is not None and self.format == "pickle":
            raise UnsupportedModel(f"{self.name!r} holds weights packed by {found.method} in pickles, and they are read from safetensors only. Is there a "
                                   f"safetensors revision of it?")
        return found

    @cached_property
    def packed(self) -> Mapping[str, Packed]:
        """Name -> how it is packed, of what `quantization` finds."""
        return {} if self.quantization is None else self.quantization.matrices

    @cached_property
    def left_out(self) -> Mapping[str, str]:
        """Name -> why, of tensors beside packed matrices that nothing here reads."""
        return {} if self.quantization is None else self.quantization.left_out

    @cached_property
    def unpacked(self) -> dict[str, Stored]:
        """Every tensor under the name that `tensors` gives it; of packed ones `dtype` names the format and `n_bytes` counts all their parts.

        Raises UnknownTensors where a matrix is there both packed and plain.
        """
        parts = {part for packed in self.packed.values() for part in packed.parts.values()}
        out = {name: t for name, t in self.stored.items() if name not in parts and name not in self.left_out}
        for name, packed in self.packed.items():
            if name in out:
                raise UnknownTensors(f"{name} is there, and {next(iter(packed.parts.values()))} packs it too. Which of the two is meant, nothing says.")
            of = [self.stored[part] for part in packed.parts.values()]
            out[name] = Stored(of[0].file, packed.format.upper(), packed.shape, sum(part.n_bytes for part in of))
        return out

    @cached_property
    def card(self) -> Card:
        """License and lineage, as README.md and LICENSE state them, or a GGUF file's own metadata."""
        if self.gguf is not None:
            return card_of(self.gguf.metadata, self.files[0].name)
        return read_card(self.folder)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence: generation_config.json's where it names any, else config.json's."""
        return self._ids("eos_token_id")

    def tensors(self, *, release: bool = False, used: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Any]]:
        """(name, tensor) of everything that is not left out, as views of the files where the format allows it. What is packed stays so: a PackedWeight.

        used: whether a packed tensor will be used; of one that will not, a part is given as it is.
        release: memory of a tensor's pages goes back to the system once the next one is asked for. What reads a tensor only once (to copy
        or compare it) then never holds two; whoever keeps a view and reads it later reads it again. Not for tensors changed in place.
        Raises what `stored` and `quantization` raise, and UnsafePickle.
        """
        if self.format == "pickle":
            for file in self.files:
                tensors = self._unpickled(file.name)
                self._agree(file.name, tensors)
                del self._pickles[file.name]  # what is used keeps itself alive; the rest may go
                yield from tensors.items()
            return
        for name in self.unpacked:
            packed = self.packed.get(name)
            parts = (name,) if packed is None else tuple(packed.parts.values())
            yield name, self.tensor(name) if packed is None or used(name) else self._tensor(parts[0])
            if release:
                for part in parts:
                    if mapped := self._mapped.get(self.stored[part].file):  # of a matrix that is not used only one part was read
                        mapped.release(part)

    def tensor(self, name: str) -> Any:
        """One of those that `tensors` gives, by its name."""
        if self.format == "pickle":
            return self._unpickled(self.stored[name].file)[name]
        packed = self.packed.get(name)
        return self._tensor(name) if packed is None else packed.build({role: self._tensor(part) for role, part in packed.parts.items()})

    def release(self) -> None:
        """Gives back the memory of every mapped page; tensors still in use read theirs again. Not for tensors changed in place."""
        for mapped in self._mapped.values():
            mapped.release()

    def _tensor(self, name: str) -> Any:
        """A view of the mapped file that holds this tensor."""
        from pellucid.weights.gguf_file import GgufFile
        from pellucid.weights.safetensors import SafetensorsFile
        file = self.stored[name].file
        if file not in self._mapped and self.gguf is not None:
            self._mapped[file] = GgufFile(self.folder / file, self.gguf.headers[self.gguf.tensors[name][0]])
        elif file not in self._mapped:
            self._mapped[file] = SafetensorsFile(self.folder / file, self._header(file))
        return self._mapped[file].tensor(name)

    def _bytes(self, name: str) -> bytes:
        """A small tensor's bytes, without torch where the file is safetensors."""
        file = self.stored[name].file
        if self.format != "safetensors":
            return self._unpickled(file)[name].numpy().tobytes()
        entry = self._header(file).tensors[name]
        with (self.folder / file).open("rb") as opened:
            opened.seek(entry.start)
            return opened.read(entry.n_bytes)

    def _entries(self, file: str) -> dict[str, Stored]:
        if self.format == "safetensors":
            return {name: Stored(file, e.dtype, e.shape, e.n_bytes) for name, e in self._header(file).tensors.items()}
        from pellucid.weights.safetensors import SPELLED
        return {name: Stored(file, SPELLED[t.dtype], tuple(t.shape), t.nbytes) for name, t in self._unpickled(file).items()}

    def _header(self, file: str) -> Header:
        if file not in self._headers:
            self._headers[file] = read_header(self.folder / file)
        return self._headers[file]

    def _unpickled(self, file: str) -> dict[str, Tensor]:
        if file not in self._pickles:
            from pellucid.weights.legacy import read_pickle
            self._pickles[file] = read_pickle(self.folder / file)
        return self._pickles[file]

    def _agree(self, file: str, names: Iterable[str]) -> None:
        """Raises UnknownTensors or MissingTensors where a shard and the index disagree."""
        if self.index is None:
            return
        there, indexed = set(names), {name for name, at in self.index.items() if at == file}
        if extra := sorted(there - indexed):
            raise UnknownTensors(f"{file} of {self.name!r} holds {len(extra)} tensors that the index does not name there, first: {', '.join(extra[:3])}. "
                                 f"Index and shards are not of one download; fetch both again.")
        if lost := sorted(indexed - there):
            raise MissingTensors(f"the index of {self.name!r} places {len(lost)} tensors in {file} which are not there, first: {', '.join(lost[:3])}. "
                                 f"Index and shards are not of one download; fetch both again.")

    def _ids(self, key: str) -> tuple[int, ...]:
        text_config = self.config.get("text_config")
        nested = text_config if isinstance(text_config, dict) else {}
        for where, facts in ((GENERATION, self.generation), (CONFIG, self.config), (f"text_config of {CONFIG}", nested)):
            value = facts.get(key)
            ids = value if isinstance(value, list) else [value]
            if any(type(i) is not int or i < 0 for i in ids if i is not None):
                raise BadConfig(f"{where} of {self.name!r}: {key} is {value!r}, and a token id or a list of them was expected")
            if present := tuple(i for i in ids if i is not None):
                return present
        return ()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at a folder or a weight file (config.json beside it). Reads no tensor data.

    Raises ModelNotFound for no such path, BadConfig for an empty folder or a config.json that is absent or broken, MissingShard for an index
    that names a file which is not there, BadCheckpoint for a folder without weights, what `open_gguf` raises for a GGUF file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise _not_found(path)
    folder = path if path.is_dir() else path.parent
    name = _name(path)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path, name)
    alone = None if path.is_dir() else _single(path, name)  # before config.json, which what is no checkpoint need not have
    config = _read_config(folder, name)
    notes: list[str] = []
    format, files, index = alone or _in_folder(folder, name, notes)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        told = f"{len(missing)} of the {len(files)} files that hold the weights of {name!r} are not there, first: " if len(files) > 1 else \
            f"the file that holds the weights of {name!r} is not there: "
        raise MissingShard(f"{told}{', '.join(missing[:3])}. Was the download complete? Fetch what is missing into {folder}.")
    generation = read_object(folder / GENERATION, BadConfig, f"{GENERATION} of {name!r}") if (folder / GENERATION).is_file() else {}
    return Checkpoint(name=name, folder=folder, format=format, files=tuple(File(file, (folder / file).stat().st_size) for file in files), index=index,
                      config=config, generation=generation, notes=tuple(notes))


def _gguf(path: Path, name: str) -> Checkpoint:
    model = open_gguf(path)
    ends = [model.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    sampling, notes = _recommended(name, model)
    return Checkpoint(name=name, folder=path.parent, format="gguf", files=tuple(File(file.name, file.stat().st_size) for file in model.files),
                      index=None, config={}, generation={"eos_token_id": list(dict.fromkeys(i for i in ends if i not in (None, -1))), **sampling},
                      notes=notes, gguf=model)


def _recommended(name: str, model: Gguf) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sampling a GGUF file recommends, as generation_config.json would, and what to say of what there is not here."""
    out: dict[str, Any] = {}
    notes = []
    if isinstance(ids := model.metadata.get(SUPPRESSED), Items) and len(ids):
        notes.append(f"{SUPPRESSED} lists {len(ids):,} ids that are not to be written, and nothing holds them back here (bad_words=[[id], ...] does)")
    for key, value in model.metadata.items():
        if not key.startswith(SAMPLING):
            continue
        if (ours := SAMPLING_KEYS.get(key.removeprefix(SAMPLING))) is None:
            notes += [f"{key}={value!r:.40} is recommended, and not followed: there is no such sampling here"] if value else []
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise BadConfig(f"{name}: {key} is {value!r:.60}, and a number was expected. Is the file whole?")
        else:
            out[ours] = float(f"{value:.7g}") if isinstance(value, float) else value  # as it was before float32 kept it
    return {**out, "do_sample": out.get("temperature", 1) > 0} if out else {}, tuple(notes)


def _not_found(path: Path) -> ModelNotFound:
    parent = path.parent
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith(".")) if parent.is_dir() else []
    near = nearest(path.name, names)
    if near:
        hint = f"Nearest in {parent}: {', '.join(near)}."
    elif parent.is_dir():
        hint = f"{parent} is there and holds nothing of a similar name."
    else:
        hint = f"There is no folder {parent} either."
    return ModelNotFound(f"no such file or folder: {path}. {hint} A model of the hub is fetched with: pellucid pull OWNER/NAME", near)


def _name(path: Path) -> str:
    """What to call a checkpoint: owner/name where it lies in huggingface_hub's cache, else its folder, or its file."""
    path = path.absolute()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return path.resolve().name if path.is_dir() else path.name


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    if (folder / CONFIG).is_file():
        return read_object(folder / CONFIG, BadConfig, f"{CONFIG} of {name!r}")
    there = sorted(p.name for p in folder.iterdir())
    if "adapter_config.json" in there:
        raise BadConfig(f"{name!r} is an adapter (adapter_config.json), not a model. Load the model it was made for and attach it there.")
    shown = f"it holds {', '.join(there[:5])}{', ...' * (len(there) > 5)}" if there else "it is empty"
    original = " params.json is the original format of Meta and Mistral; the Hugging Face one is what is read." if "params.json" in there else ""
    raise BadConfig(f"{folder} has no {CONFIG}: {shown}. A checkpoint is a folder with {CONFIG} and weights ({LOOKED_FOR}).{original}")


Found = tuple[Format, list[str], dict[str, str] | None]


def _single(path: Path, name: str) -> Found:
    if path.suffix not in (".safetensors", ".bin"):
        raise BadCheckpoint(f"{path} is not a weight file (.safetensors, .gguf or .bin). Give the folder of the checkpoint: {path.parent}")
    if (match := _SHARD.fullmatch(path.name)) and int(match["count"]) > 1:
        raise BadCheckpoint(f"{name} is one shard of {int(match['count'])}. Give the folder that holds them all: {path.parent}")
    return "safetensors" if path.suffix == ".safetensors" else "pickle", [path.name], None


def _in_folder(folder: Path, name: str, notes: list[str]) -> Found:
    """The weights of a folder; what is there and not used is noted."""
    there = sorted(p.name for p in folder.iterdir())
    original = [file for file in there if _ORIGINAL.fullmatch(file)]
    pickles = [file for file in there if re.fullmatch(r"pytorch_model.*\.bin(\.index\.json)?", file)]
    tensors = [file for file in there if file.endswith(".safetensors") and file not in original and not file.startswith("adapter_")]
    if original:
        notes.append(f"{', '.join(original)}: the original format beside the one that is read, ignored")
    found = (_standard(folder, name, "model.safetensors", "safetensors", there, notes) or _unnamed(name, tensors, notes)
             or _standard(folder, name, "pytorch_model.bin", "pickle", there, notes))
    if found is None:
        beside = f" {', '.join(original)} is the original format, which is not read: fetch the Hugging Face one." if original else ""
        raise BadCheckpoint(f"{folder} has a {CONFIG} and no weights; looked for {LOOKED_FOR}. Was the download complete?{beside}")
    if found[0] == "safetensors" and pickles:
        notes.append("both safetensors and pytorch_model*.bin are there: safetensors is read")
    return found


def _standard(folder: Path, name: str, file: str, format: Format, there: list[str], notes: list[str]) -> Found | None:
    index = f"{file}.index.json"
    if file in there:
        if index in there:
            notes.append(f"both {file} and {index} are there: the single file is read")
        return format, [file], None
    if index not in there:
        return None
    weight_map = read_object(folder / index, BadCheckpoint, f"{index} of {name!r}").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadCheckpoint(f"{index} of {name!r} has no weight_map from tensor names to files. Fetch it again.")
    if outside := [shard for shard in weight_map.values() if Path(shard).name != shard]:
        raise BadCheckpoint(f"{index} of {name!r} names a file outside of its folder: {outside[0]!r}. That is refused; shards lie beside their index.")
    return format, sorted(set(weight_map.values())), weight_map


def _unnamed(name: str, tensors: list[str], notes: list[str]) -> Found | None:
    """Weights without index: one file of any name, or shards that count themselves."""
    shards = [match for file in tensors if (match := _SHARD.fullmatch(file))]
    if shards:
        stem, count = shards[0]["stem"], shards[0]["count"]
        notes.append("shards without an index: every tensor they hold is read")
        return "safetensors", [f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)], None
    if len(tensors) > 1:
        raise BadCheckpoint(f"{name!r} has {len(tensors)} safetensors files and none is called model.safetensors: {', '.join(tensors[:4])}. "
                            f"Give the file that is meant.")
    if tensors:
        notes.append(f"the weights are in {tensors[0]}")
        return "safetensors", tensors, None
    return None

"""What somebody asks a plan of: a row of the catalog, a folder, a GGUF file, a repository's config.json. No torch here."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pellucid.catalog import models
from pellucid.errors import BadConfig, ModelNotFound
from pellucid.families._describe import describe
from pellucid.families._gguf import config, facts_of_file
from pellucid.records import read_object
from pellucid.spec import DecoderSpec
from pellucid.weights.gguf import open_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A decoder and where it was read. stored: bytes of the weights in files that are here."""

    name: str
    read_from: str
    spec: DecoderSpec
    stored: int | None = None


def subject(asked: str) -> Subject:
    """What `asked` names: a path that is there, else a row of the catalog, else owner/name, whose config.json alone is fetched where it is not on this disk.

    Raises ModelNotFound with the nearest names of the catalog, and what describing a config raises.
    """
    path = Path(asked)
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if asked and path.is_dir():  # Path("") would be the current folder
        return _of_folder(asked, path, str(path / "config.json"))
    try:
        row = models.find(asked)
    except ModelNotFound:
        if asked.count("/") != 1 or asked.startswith((".", "/", "~")):
            raise
        return _of_repository(asked)
    spec = describe(models.config_of(row), where=f"the shape of {row.name!r}").spec
    return Subject(name=row.name, read_from=f"the catalog, as of {models.as_of()}", spec=spec)


def _of_gguf(path: Path) -> Subject:
    file = open_gguf(path)
    raw, _ = config(facts_of_file(file))
    return Subject(name=path.name, read_from=f"the header of {path}", spec=describe(raw, where=f"the metadata of {path.name!r}").spec,
                   stored=sum(entry.n_bytes for _, entry in file.tensors.values()))


def _of_folder(name: str, folder: Path, told: str) -> Subject:
    weights = [file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        raise BadConfig(f"{folder} has no config.json" + (f"; plan one of its GGUF files: pellucid plan {ggufs[0]}" if ggufs else
                                                           ", so nothing says how large the model is. Give a folder with one"))
    return Subject(name=name, read_from=told, spec=describe(read_object(folder / "config.json", BadConfig, f"config.json of {name!r}")).spec,
                   stored=sum(weights) or None)


def _of_repository(name: str) -> Subject:
    from pellucid.weights import hub
    try:
        folder = hub.resolve(name)
    except ModelNotFound:  # not on this disk
        folder = hub.pull(name, files=["config.json"]).path
    return _of_folder(name, folder, f"config.json of {name}")

"""Run records: what went in (by content), what was asked, what came out, on what machine. A result without one is not a result.

A record is one JSON object. Everything needed to do the run again is in `settings`; everything that must be the same for
the result to be the same is hashed in `inputs`. It holds the prompt and the output word for word: treat the file as you treat them.
"""
from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pellucid.errors import BadRecord, BadRequest, PellucidError

RECORD = "record.json"
FORMAT = 1  # of the file; a reader refuses one it does not know
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "jinja2")  # whose version can change a result
_BLOCK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file that went in, known by its content."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run. `save` writes it whole or not at all; `read` refuses what is not a record."""

    kind: str  # the command: "run"
    settings: Mapping[str, Any]  # in force, defaults included: enough to do it again
    seed: int | None
    inputs: Mapping[str, Input]  # role -> file
    output: Mapping[str, Any]  # token_ids, text, text_sha256, ...
    measured: Mapping[str, float]  # units in the names
    accepted_unread: Sequence[str] = field(default_factory=list)  # config keys the user vouched for
    licenses: Mapping[str, str | None] = field(default_factory=dict)  # input -> its license; the output inherits what they demand
    notes: Sequence[str] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format: int = FORMAT

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record: a reader sees the old file or the whole new one, whatever happens in between. Raises what `place_for` raises."""
        path = place_for(path)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # not mkstemp's, whose mode is not what the umask says
        try:
            with fresh.open("x", encoding="utf-8") as file:
                json.dump(asdict(self), file, ensure_ascii=False, indent=1, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Record:
        """Raises BadRequest for a file that is not there, BadRecord for one that is not JSON, lacks a field, has one too many, or contradicts itself."""
        raw = _parse(Path(path))
        known = {f.name for f in fields(cls)}
        if raw.get("format") != FORMAT:
            raise BadRecord(f"{path} is not a run record of a format this version reads: format={raw.get('format')!r} (only {FORMAT})")
        if wrong := sorted(known ^ set(raw)):
            raise BadRecord(f"{path} is not a whole run record: {', '.join(f'{w} is ' + ('missing' if w in known else 'unknown') for w in wrong)}")
        for name, kind in _KINDS.items():
            if not isinstance(raw[name], kind):
                raise BadRecord(f"{path}: {name} is {type(raw[name]).__name__}, not what a run record has there ({_name(kind)})")
        raw["inputs"] = {role: _input(role, facts, path) for role, facts in raw["inputs"].items()}
        record = cls(**raw)
        text = record.output.get("text")
        if text is not None and record.output.get("text_sha256") != sha256_of_text(text):
            raise BadRecord(f"{path}: the output's text is not the one its text_sha256 was taken of. Was the file edited?")
        return record

    def changed_inputs(self) -> list[str]:
        """One sentence for each input whose file is gone or holds something else now."""
        told = []
        for role, was in self.inputs.items():
            if not os.path.isfile(was.path):
                told.append(f"{role} is gone: {was.path}")
            elif (now := sha256_of(was.path)) != was.sha256:
                told.append(f"{role} changed: {was.path} had sha256 {was.sha256[:12]}…, has {now[:12]}…")
        return told


_KINDS: dict[str, type | tuple[type, ...]] = {
    "kind": str, "settings": dict, "seed": (int, type(None)), "inputs": dict, "output": dict, "measured": dict, "accepted_unread": list,
    "licenses": dict, "notes": list, "versions": dict, "machine": dict, "created": str}


def record_of(path: Path) -> Path:
    """Where the record of what was written here lies: in the folder, or beside the file."""
    return path / RECORD if path.is_dir() else path.with_suffix(f".{RECORD}")


def place_for(path: str | os.PathLike[str]) -> Path:
    """Where a record of this path will lie, links followed. Raises BadRequest where none can, or where something else is: it is never replaced."""
    place = Path(os.path.realpath(path))
    if os.path.isdir(path):
        why = "it is a folder"
    elif os.path.lexists(place) and not os.path.isfile(path):
        why = "it is no regular file, and stays what it is"
    elif not place.parent.is_dir():
        why = f"there is no folder {place.parent}"
    elif not os.access(place.parent, os.W_OK):
        why = f"{place.parent} cannot be written to"
    elif os.path.isfile(place) and os.path.getsize(place) and not _is_record(place):
        why = "it holds something else than a run record, which is left alone"
    else:
        return place
    raise BadRequest(f"a run record cannot be written to {path}: {why}. Give another file", field="record")


def _is_record(path: Path) -> bool:
    try:
        return bool(Record.read(path))
    except (BadRecord, BadRequest):
        return False


def input_file(path: str | os.PathLike[str]) -> Input:
    """An Input of a file as it is now."""
    return Input(path=os.path.abspath(path), sha256=sha256_of(path), bytes=os.path.getsize(path))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's content, read a block at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_object(path: Path, error: type[PellucidError], where: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, with line and column, for one that is not UTF-8, not JSON or not an object."""
    where = where or path.name
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as e:
        raise error(f"{where} is not UTF-8 text: byte {e.start} is 0x{e.object[e.start]:02x}. Is it the right file, and whole?") from None
    except json.JSONDecodeError as e:
        raise error(f"{where} is not JSON: line {e.lineno} column {e.colno}: {e.msg}. Is the file whole?") from None
    except RecursionError:
        raise error(f"{where} is not JSON that can be read: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise error(f"{where} holds a {type(value).__name__}, and an object {{...}} was expected")
    return value


def sha256_of_text(text: str) -> str:
    """Hex digest of a text's UTF-8; a lone surrogate, which UTF-8 cannot hold, counts as its three bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def versions() -> dict[str, str]:
    """Pellucid's version, Python's, and those of the libraries that can change a result."""
    from pellucid import __version__
    return {"pellucid": __version__, "python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def machine() -> dict[str, Any]:
    """What this runs on, without asking torch."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}


def _parse(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, BadRecord, f"{path}, where a run record was expected,")
    except OSError as error:
        raise BadRequest(f"no run record can be read at {path}: {error.strerror}. `pellucid run --record FILE` writes one", field="record") from None


def _input(role: str, facts: Any, path: str | os.PathLike[str]) -> Input:
    kinds = {"path": str, "sha256": str, "bytes": int}
    if not isinstance(facts, dict) or set(facts) != set(kinds) or not all(isinstance(facts[name], kind) for name, kind in kinds.items()):
        raise BadRecord(f"{path}: input {role!r} is not a path, its sha256 and its bytes: {facts!r:.100}")
    return Input(**facts)


def _name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__

"""Run records: whole or not at all, and nothing else is taken for one."""
from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from pellucid import __version__
from pellucid.errors import BadConfig, BadRecord, BadRequest
from pellucid.records import Input, Record, input_file, read_object, sha256_of, sha256_of_text, versions


@pytest.fixture
def record(tmp_path) -> Record:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"numbers" * 400_000)  # more than one block
    return Record(kind="run", settings={"prompt": "Käse 🧀", "temperature": 0}, seed=7, inputs={"weights": input_file(weights)},
                  output={"text": "ja", "text_sha256": sha256_of_text("ja"), "token_ids": [1, 2]}, measured={"seconds": 0.5},
                  accepted_unread=["foo"], licenses={"model": "mit"})


def edited(record: Record, path, **changes) -> None:
    record.save(path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**raw, **changes}.items() if v is not ...}))


def test_a_record_reads_back_as_it_was_written(record, tmp_path):
    record.save(tmp_path / "r.json")
    assert Record.read(tmp_path / "r.json") == record
    raw = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert raw["settings"]["prompt"] == "Käse 🧀"
    assert raw["inputs"]["weights"]["sha256"] == hashlib.sha256(b"numbers" * 400_000).hexdigest()


def test_it_says_versions_and_machine(record):
    assert record.versions["pellucid"] == __version__
    assert set(record.versions) == {"pellucid", "python", "torch", "numpy", "safetensors", "tokenizers", "jinja2"}
    assert record.machine["cpus"] == os.cpu_count()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.created)


def test_versions_are_those_python_imports():
    import safetensors
    import torch
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__
    assert versions()["safetensors"] == safetensors.__version__


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "f") == sha256_of_text("abc") == known
    assert sha256_of_text("\ud800") == hashlib.sha256(b"\xed\xa0\x80").hexdigest()


def test_a_write_that_fails_leaves_the_old_record_and_no_litter(record, tmp_path, monkeypatch):
    record.save(tmp_path / "r.json")
    before = (tmp_path / "r.json").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        Record(kind="run", settings={"other": 1}, seed=None, inputs={}, output={}, measured={}).save(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "weights.bin"]


def test_a_record_replaces_nothing_but_a_record(record, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "thesis").write_text("all of it")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    told = {"pipe": "it is no regular file, and stays what it is", "loop": "it is no regular file", "nowhere/r.json": "there is no folder",
            "thesis": "it holds something else than a run record, which is left alone", "other.json": "it holds something else", ".": "it is a folder"}
    for name, why in told.items():
        with pytest.raises(BadRequest, match=f"a run record cannot be written to {re.escape(str(tmp_path / name))}: {why}.*Give another file") as caught:
            record.save(tmp_path / name)
        assert caught.value.field == "record"
    assert ((tmp_path / "pipe").is_fifo(), (tmp_path / "thesis").read_text()) == (True, "all of it")
    (tmp_path / "empty").touch()  # what mktemp makes: nothing is lost
    for name in ("empty", "r.json", "r.json"):
        record.save(tmp_path / name)
        assert Record.read(tmp_path / name) == record


def test_a_link_is_followed(record, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "to" / "real.json")
    for _ in ("not there yet", "there"):
        record.save(tmp_path / "link.json")
        assert Record.read(tmp_path / "to" / "real.json") == record
    assert (tmp_path / "link.json").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640)])
def test_a_record_is_as_private_as_the_umask_says(record, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        record.save(tmp_path / "r.json")
    finally:
        os.umask(before)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == mode


def test_changed_and_missing_inputs_are_named(record, tmp_path):
    assert record.changed_inputs() == []
    (tmp_path / "weights.bin").write_bytes(b"others")
    (told,) = record.changed_inputs()
    assert told.startswith(f"weights changed: {tmp_path}/weights.bin had sha256 ")
    assert told.endswith(f"has {hashlib.sha256(b'others').hexdigest()[:12]}…")
    (tmp_path / "weights.bin").unlink()
    assert record.changed_inputs() == [f"weights is gone: {tmp_path}/weights.bin"]


@pytest.mark.parametrize(("content", "message"), [
    (b"not json", "r.json, where a run record was expected, is not JSON: line 1 column 1"),
    (b"\xff\xfe{}", "r.json, where a run record was expected, is not UTF-8 text"),
    (b"[1]", "where a run record was expected, holds a list, and an object"),
    (b"{}", r"is not a run record of a format this version reads: format=None \(only 1\)"),
    (b'{"format": 2}', r"is not a run record of a format this version reads: format=2 \(only 1\)"),
    (b'{"format": 1, "mood": "good", "kind": "run"}', "is not a whole run record: accepted_unread is missing, .* mood is unknown"),
])
def test_what_is_not_a_record_is_refused(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(BadRecord, match=message):
        Record.read(tmp_path / "r.json")


def test_a_record_that_is_not_there_says_what_writes_one(tmp_path):
    with pytest.raises(BadRequest, match=r"no run record can be read at .*nowhere\.json: No such file.*`pellucid run --record FILE` writes one"):
        Record.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(("change", "message"), [
    ({"settings": []}, r"settings is list, not what a run record has there \(dict\)"),
    ({"seed": "7"}, r"seed is str, not what a run record has there \(int or NoneType\)"),
    ({"inputs": {"weights": {"path": "x"}}}, "input 'weights' is not a path, its sha256 and its bytes: {'path': 'x'}"),
    ({"inputs": {"weights": {"path": 1, "sha256": "", "bytes": 2}}}, "input 'weights' is not a path, its sha256 and its bytes"),
    ({"inputs": {"weights": [1]}}, r"input 'weights' is not a path, its sha256 and its bytes: \[1\]"),
    ({"output": {"text": "nein", "text_sha256": sha256_of_text("ja")}}, "not the one its text_sha256 was taken of. Was the file edited"),
    ({"measured": ...}, "is not a whole run record: measured is missing"),
])
def test_a_field_of_the_wrong_kind_is_named(record, tmp_path, change, message):
    edited(record, tmp_path / "r.json", **change)
    with pytest.raises(BadRecord, match=message):
        Record.read(tmp_path / "r.json")


def test_records_import_no_torch():
    code = "import sys, pellucid.records as r; r.versions(); r.machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_input_knows_its_size(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert input_file(tmp_path / "f") == Input(path=str(tmp_path / "f"), sha256=sha256_of_text("abc"), bytes=3)


@pytest.mark.parametrize(("content", "expected"), [
    (b'{\n "a": 1,\n "b" 2\n}', "c.json is not JSON: line 3 column 6: Expecting ':' delimiter. Is the file whole?"),
    (b"", "c.json is not JSON: line 1 column 1"), (b"[1]", "c.json holds a list, and an object {...} was expected"),
    (b'{"a": "\xff"}', "c.json is not UTF-8 text: byte 7 is 0xff"), (b'{"a":' * 60_000, "c.json is not JSON that can be read: it is nested too deeply"),
])
def test_a_json_file_that_is_not_an_object(tmp_path, content, expected):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(BadConfig) as raised:
        read_object(tmp_path / "c.json", BadConfig)
    assert expected in str(raised.value)


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "c.json", BadConfig) == {"a": 1}

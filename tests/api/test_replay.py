"""A record, run again: same, or where and why not."""
from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import pellucid
from pellucid.api.replay import Difference, changed_versions, load_recorded, replay
from pellucid.errors import BadRecord, ModelNotFound
from pellucid.records import Record, sha256_of

from .conftest import ABC
from .scripted import scripted_model


@pytest.fixture
def folder(tmp_path: Path, abc_folder: Path) -> Path:
    return shutil.copytree(abc_folder, tmp_path / "abc")


def recorded(folder: Path, **options) -> Record:
    """Through a file, as everybody else reads it."""
    model = pellucid.load(folder)
    done = model.generate("a", **{"max_tokens": 6, "seed": 5, **options})
    model.record(done).save(folder.parent / "record.json")
    return Record.read(folder.parent / "record.json")


def edited(record: Record, **output) -> Record:
    return dataclasses.replace(record, output={**record.output, **output})


def test_a_record_holds_what_the_result_depends_on(folder):
    record = recorded(folder, temperature=0.5, logit_bias={7: 1.5})
    assert set(record.inputs) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert record.inputs["model.safetensors"].sha256 == sha256_of(folder / "model.safetensors")
    assert record.settings["load"]["path"] == str(folder)
    assert record.settings["in_force"].keys() == {"device", "dtype", "ops", "ops_detail", "activations", "threads"}
    assert (record.settings["in_force"]["device"], record.settings["in_force"]["dtype"]) == ("cpu", "f32")
    assert (record.settings["request"]["prompt"], record.settings["request"]["temperature"], record.seed) == ("a", 0.5, 5)
    assert record.settings["request"]["logit_bias"] == {"7": 1.5}
    assert record.output["text"] == "bcdefg"
    assert record.measured["seconds"] > 0


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 500.0}, {"temperature": 300.0, "top_k": 40, "logit_bias": {7: 1.5}, "stop": ["q"]},
                                     {"temperature": 300.0, "seed": None}])
def test_the_same_comes_out_the_same(folder, options):
    record = recorded(folder, **options)
    assert (record.changed_inputs(), changed_versions(record)) == ([], {})
    found = replay(record)
    assert found.same
    assert found.difference is None


def test_a_chat_replays_with_its_messages(folder):
    model = pellucid.load(folder)
    done = model.chat([{"role": "user", "content": "hi"}], temperature=0, template_args={"think_first": False})
    assert replay(model.record(done)).same


def test_ids_as_a_prompt_replay(folder):
    model = pellucid.load(folder)
    assert replay(model.record(model.generate([7, 8, 9], temperature=100.0, max_tokens=5))).same


def test_the_first_difference_is_named(folder):
    record = recorded(folder, temperature=0)
    ids = record.output["token_ids"]
    other = replay(edited(record, token_ids=[*ids[:3], 99, *ids[4:]]))
    assert (other.same, other.difference) == (False, Difference(at=3, recorded_id=99, replayed_id=ids[3]))
    longer = replay(edited(record, token_ids=[*ids, 99]))
    assert longer.difference == Difference(at=6, recorded_id=99, replayed_id=None)
    shorter = replay(edited(record, token_ids=ids[:-1]))
    assert shorter.difference == Difference(at=5, recorded_id=None, replayed_id=ids[5])


@pytest.mark.parametrize("output", [{"text": "other"}, {"finish_reason": "stop"}])
def test_text_and_reason_must_be_the_same_too(folder, output):
    found = replay(edited(recorded(folder, temperature=0), **output))
    assert (found.same, found.difference) == (False, None)


def test_changed_weights_are_named_and_change_the_result(folder):
    record = recorded(folder, temperature=0)
    scripted_model(folder, [[*ABC[:4], *"zy"]])
    (told,) = record.changed_inputs()
    assert told.startswith("model.safetensors changed: ")
    found = replay(record)
    assert found.difference is not None
    assert found.difference.at == 3


def test_a_supplied_template_is_an_input(folder, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    model = pellucid.load(folder, chat_template=template)
    record = model.record(model.chat([{"role": "user", "content": "a"}], temperature=0))
    assert record.inputs["--chat-template"].sha256 == sha256_of(template)
    assert replay(record).same


def test_other_versions_are_named(folder):
    record = dataclasses.replace(recorded(folder), versions={**recorded(folder).versions, "torch": "0.0.1", "extra": "9"})
    here = recorded(folder).versions
    assert changed_versions(record) == {"torch": ("0.0.1", here["torch"]), "extra": ("9", None)}


def test_a_model_that_is_gone_is_an_error(folder):
    record = recorded(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelNotFound, match="no such path"):
        replay(record)


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "the record's settings do not say how to run it again: load is missing"),
    ({"load": {"path": "x"}}, "load lacks accept_unread, deterministic, chat_template"),
])
def test_a_record_that_does_not_say_how_is_refused(folder, settings, message):
    with pytest.raises(BadRecord, match=message):
        load_recorded(dataclasses.replace(recorded(folder), settings=settings))


def test_a_request_without_prompt_or_messages_is_refused(folder):
    record = recorded(folder)
    request = {k: v for k, v in record.settings["request"].items() if k != "prompt"}
    with pytest.raises(BadRecord, match="the record's request has neither a prompt nor messages"):
        replay(dataclasses.replace(record, settings={**record.settings, "request": request}))


def test_an_output_without_ids_is_refused(folder):
    with pytest.raises(BadRecord, match="the record's output has no token_ids to compare with: None"):
        replay(edited(recorded(folder), token_ids=None))


def test_another_kind_of_record_is_refused(folder):
    with pytest.raises(BadRecord, match=r"a record of kind 'tune' is not run again \(only 'run', and 'tune' by `pellucid replay`\)"):
        load_recorded(dataclasses.replace(recorded(folder), kind="tune"))



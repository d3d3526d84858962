"""Adapters by name: loaded with the model or later, chosen per request, in the report, in records, and run again."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pellucid
from pellucid.api.replay import load_recorded, replay
from pellucid.errors import BadConfig, BadRequest, ModelNotFound, UnknownAdapter, UnknownTensors
from pellucid.records import Record, sha256_of
from tests.api.scripted import SCALE, bytes_tokenizer


def turning(folder: Path, before: str, after: str, **config) -> Path:
    """An adapter for scripted models: of rank one, on the unembedding, after which `before` is followed by `after`."""
    tokenizer = bytes_tokenizer()
    n = tokenizer.get_vocab_size()
    a, b = torch.zeros(1, n), torch.zeros(n, 1)
    a[0, tokenizer.encode(before).ids[0]] = 1.0
    b[tokenizer.encode(after).ids[0], 0] = SCALE / n**0.5  # times alpha / r, which is two
    folder.mkdir(parents=True)
    save_file({"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["lm_head"], **config}))
    return folder


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    return {"to-z": turning(tmp_path / "to-z", "b", "z"), "to_k": turning(tmp_path / "to_k", "a", "k", base_model_name_or_path="acme/abc")}


def test_each_request_names_its_adapter(abc_folder: Path, adapters: dict[str, Path]) -> None:
    model = pellucid.load(abc_folder, adapters=adapters)
    how = {"temperature": 0, "max_tokens": 5}
    said = {name: model.generate("a", adapter=name, **how).text for name in (None, "to-z", "to_k")}
    assert said == {None: "bcdef", "to-z": "bz", "to_k": "kl"}
    assert [done.text for done in model.batch(["a", "c"], adapter="to-z", **how)] == ["bz", "defgh"]
    chat = {name: model.chat([{"role": "user", "content": "?"}], adapter=name, **how).text for name in (None, "to-z")}
    assert chat == {None: "YES", "to-z": "YES"}
    assert "".join(model.stream("a", adapter="to_k", **how)) == "kl"
    ids = model.prompt_ids("a")
    assert model.tokenizer.decode([int(model.logits(ids, adapter="to_k")[-1].argmax())]) == "k"
    [plain], [turned] = (model.score([("a", "k")], adapter=name) for name in (None, "to_k"))
    assert (plain.greedy, turned.greedy) == ((False,), (True,))
    assert model.embed(["ab"], adapter="to-z").shape == (1, model.spec.d_model)


def test_the_report_names_it_and_a_base_that_is_another(abc_folder: Path, adapters: dict[str, Path]) -> None:
    model = pellucid.load(abc_folder, adapters={"to-z": adapters["to-z"]})
    n = model.spec.n_vocab
    assert f"adapter  to-z: peft lora of to-z, rank 1, scale 2 · 1 matrix, {8 * n / 1000:.1f} kB" in model.report.lines()
    model.load_adapter("again", adapters["to_k"].parent / "to_k")
    lines = [line for line in model.report.lines() if "to_k" in line or "acme" in line]
    assert lines[0].endswith("kB · made for acme/abc")
    assert model.report.notes == ()
    other = turning(adapters["to_k"].parent / "other", "a", "q", base_model_name_or_path="acme/xyz")
    model.load_adapter("other", other)
    assert model.report.notes[0].startswith("adapter 'other' says that it was made for acme/xyz, and this is abc: its matrices fit")


def test_a_record_hashes_the_adapter_and_replays_it(tmp_path: Path, abc_folder: Path, adapters: dict[str, Path]) -> None:
    model = pellucid.load(abc_folder, adapters=adapters)
    model.record(model.generate("a", adapter="to-z", temperature=0)).save(tmp_path / "r.json")
    record = Record.read(tmp_path / "r.json")
    assert record.settings["load"]["adapters"] == {name: str(path) for name, path in adapters.items()}
    assert record.settings["request"]["adapter"] == "to-z"
    assert record.inputs["adapter to-z/adapter_model.safetensors"].sha256 == sha256_of(adapters["to-z"] / "adapter_model.safetensors")
    assert set(record.licenses) == {"abc", "to-z", "to_k"}
    found = replay(record)
    assert (found.same, found.completion.text) == (True, "bz")
    assert set(load_recorded(record).decoder.adapters) == {"to-z", "to_k"}
    shutil.rmtree(adapters["to-z"])
    turning(adapters["to-z"], "b", "y")
    assert [told.split(":")[0] for told in record.changed_inputs()] == ["adapter to-z/adapter_model.safetensors changed"]
    assert not replay(record).same


def test_without_adapters_a_record_is_as_it_was(abc_folder: Path) -> None:
    model = pellucid.load(abc_folder)
    record = model.record(model.generate("a", temperature=0, max_tokens=2))
    assert "adapters" not in record.settings["load"]
    assert "adapter" not in record.settings["request"]


def test_what_cannot_be_is_said_and_changes_nothing(tmp_path: Path, abc_folder: Path, adapters: dict[str, Path]) -> None:
    model = pellucid.load(abc_folder)
    with pytest.raises(UnknownAdapter, match=r"adapter 'to-z' is not loaded\. None is loaded; load one with load\(\.\.\., adapters=\{NAME: PATH\}\)"):
        model.generate("a", adapter="to-z")
    with pytest.raises(UnknownAdapter, match="is not loaded"):
        model.logits([3], adapter="to-z")
    with pytest.raises(UnknownAdapter, match="is not loaded"):
        model.check_chat([{"role": "user", "content": "?"}], adapter="to-z")
    with pytest.raises(BadRequest, match="adapter must be the name of a loaded adapter, or None; got int 7"):
        model.generate("a", adapter=7)
    with pytest.raises(ModelNotFound):
        model.load_adapter("x", tmp_path / "nowhere")
    with pytest.raises(BadConfig, match=r"has no adapter_config\.json, so it is no adapter: it holds config\.json"):
        model.load_adapter("x", abc_folder)
    tensors = {"base_model.model.model.layers.4.mlp.up_proj.lora_A.weight": torch.ones(1, 3),
               "base_model.model.model.layers.4.mlp.up_proj.lora_B.weight": torch.ones(3, 1)}
    save_file(tensors, adapters["to_k"] / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}
    (adapters["to_k"] / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownTensors, match=r"1 of 1 tensors that adapter 'to_k' changes have no place in this model"):
        model.load_adapter("x", adapters["to_k"])
    assert model.report.adapters == ()
    assert "adapters" not in model.settings
    model.load_adapter("x", adapters["to-z"])
    assert model.generate("a", adapter="x", temperature=0).text == "bz"

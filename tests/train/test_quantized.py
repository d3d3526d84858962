"""QLoRA over a dense checkpoint whose matrices are packed as they are loaded: the adapter of a base that was written packed, for the base as it is."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pellucid
from pellucid.cli._options import SHIPPED
from pellucid.data.example import examples
from pellucid.errors import BadRequest
from pellucid.model.convert import convert
from pellucid.records import Record
from pellucid.train.export import log_probs
from pellucid.train.outcome import BASE, Outcome, finish
from pellucid.train.recipe import Recipe, read_recipe
from pellucid.train.replay import replay
from pellucid.train.tuning import Tuning, prepare
from pellucid.weights.hub import resolve
from pellucid.weights.packed_rows import PackedWeight

WORDS = ("one", "two", "six", "ten", "red", "sun")


def recipe(folder: Path, **model: str) -> Recipe:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Say {word}.", "completion": f" {word} it is"}) + "\n" for word in WORDS))
    out, quantize = model.pop("format", "adapter"), model.get("quantize", "no")
    return read_recipe({"model": {"path": SHIPPED, "dtype": "float32", **model}, "data": {"sources": [{"path": str(folder / "rows.jsonl")}]},
                        "tune": {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["*.attn.q", "*.mlp.down"]}, "batch": 6, "steps": 6, "threads": 1,
                        "eval": {"every": 0}, "save": {"every": 0}, "optim": {"lr": 5e-3, "schedule": "constant", "warmup": 0},
                        "out": {"folder": str(folder / f"{out}-{quantize}"), "format": out}})


def tuned(asked: Recipe) -> tuple[Tuning, Outcome]:
    tuning = prepare(asked)
    tuning.train()
    return tuning, finish(tuning)


def test_the_adapter_is_that_of_a_base_written_packed_and_belongs_to_the_dense_one(tmp_path: Path) -> None:
    convert(resolve(SHIPPED), tmp_path / "nf4", quantize="nf4")
    tuning, done = tuned(recipe(tmp_path, quantize="nf4"))
    assert sum(isinstance(weight, PackedWeight) for weight in tuning.model.decoder.weights().values()) > 10
    _, other = tuned(recipe(tmp_path, path=str(tmp_path / "nf4")))
    ours, theirs = (load_file(each.out / "adapter_model.safetensors") for each in (done, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    record = Record.read(done.record)
    assert record.settings["recipe"]["model"]["quantize"] == "nf4"
    dense = pellucid.load(SHIPPED)
    assert record.output[BASE] == dense.sha256
    assert json.loads((done.out / "adapter_config.json").read_text())["base_model_name_or_path"] == json.loads(
        (tmp_path / "adapter-no/adapter/adapter_config.json").read_text())["base_model_name_or_path"].replace(str(tmp_path / "nf4"), SHIPPED)
    dense.load_adapter("mine", done.out)  # a base of another hash would be refused
    assert dense.generate("Say one.", max_tokens=1, adapter="mine").text
    again = pellucid.load(SHIPPED, dtype="float32", quantize="nf4", ops="training", activations="exact", adapters={"mine": done.out})
    rows = [row for item in tuning.run.items(0) for row in examples(item)]
    trained, loaded, plain = (log_probs(model.decoder, rows, name) for model, name in ((tuning.model, tuning.trained.adapter), (again, "mine"), (again, None)))
    for one, same, other in zip(trained, loaded, plain, strict=True):
        torch.testing.assert_close(same, one, rtol=0, atol=1e-6)
        assert (other - one).abs().max() > 0.01
    assert replay(record).same


@pytest.mark.parametrize("format", ["q4_k", "int8"])
def test_what_is_merged_holds_the_packed_numbers_that_were_trained_beside(tmp_path: Path, format: str) -> None:
    tuning, done = tuned(recipe(tmp_path, quantize=format, format="merged"))
    assert done.survived is not None
    assert done.survived.share > 0.999
    assert done.survived.base_kl > 1e-3
    parts, packed = tuning.trained.parts(tuning.model.decoder), tuning.model.decoder.weights()
    merged = pellucid.load(done.out).decoder.weights()
    n = 0
    for name, weight in packed.items():
        if isinstance(weight, PackedWeight):
            plain = tuning.model.decoder.ops.unpack(weight, torch.float32)
            expected = parts[path].merged(plain) if (path := name.removesuffix(".weight")) in parts else plain
            assert torch.equal(merged[name], expected.to(merged[name].dtype))
            n += 1
    assert n > len(parts) > 0


def test_whole_weights_are_not_packed_and_trained(tmp_path: Path) -> None:
    asked = recipe(tmp_path, quantize="nf4")
    with pytest.raises(BadRequest, match=r"model.quantize=nf4 packs weights, .* tune.kind=full trains every weight. Train an adapter"):
        prepare(read_recipe({**asked.plain(), "tune": {"kind": "full"}}))


def test_a_run_does_not_go_on_with_another_packing(tmp_path: Path) -> None:
    asked = recipe(tmp_path, quantize="nf4")
    tuning = prepare(asked)
    tuning.run.save(False)
    with pytest.raises(BadRequest, match=r"model.quantize"):
        prepare(read_recipe({**asked.plain(), "model": {**asked.plain()["model"], "quantize": "int8"}}), resume=True)

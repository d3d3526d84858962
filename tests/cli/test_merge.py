"""`pellucid merge`: the result computes what base and adapter do, or is not kept."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pellucid
from pellucid.catalog import gate, uses, verdict
from pellucid.cli._options import SHIPPED
from pellucid.records import Record
from pellucid.weights.card import read_card
from pellucid.weights.gguf import read_gguf
from pellucid.weights.gguf_card import card_of

from .conftest import Said

Say = Callable[..., Said]


def adapter(folder: Path, size: float, metadata: dict[str, str] | None = None) -> Path:
    """Of every query and gate of the shipped model."""
    folder.mkdir()
    noise = torch.Generator().manual_seed(3)
    sizes = {"self_attn.q_proj": (256, 256), "mlp.gate_proj": (768, 256)}
    tensors = {}
    for layer in range(6):
        for name, (F, D) in sizes.items():
            where = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{where}.lora_A.weight": torch.randn(4, D, generator=noise) * D**-0.5,
                        f"{where}.lora_B.weight": size * torch.randn(F, 4, generator=noise)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": "shipped"}))
    return folder


def test_an_adapter_that_was_trained_on_another_model_is_refused_unless_that_is_meant(say: Say, tmp_path: Path) -> None:
    other = str(adapter(tmp_path / "a", 0.05, {"pellucid.base_sha256": "0123" * 16}))
    own = str(adapter(tmp_path / "own", 0.05, {"pellucid.base_sha256": pellucid.load(SHIPPED).sha256}))
    asked = ("-p", "Once", "--max-tokens", "2")
    for command in (("run", "shipped", "--adapter", other, *asked), ("merge", "shipped", other, str(tmp_path / "out"))):
        refused = say(*command)
        assert refused.code == 2
        assert "adapter 'a' was trained on shipped with sha256 0123012301230123..., and " in refused.err
        assert "--any-base" in refused.err
    assert not (tmp_path / "out").exists()
    assert say("run", "shipped", "--adapter", other, *asked, "--any-base").code == 0
    assert say("run", "shipped", "--adapter", own, *asked).code == 0


@pytest.mark.parametrize("out", ["merged", "merged.gguf"])
def test_a_merge_computes_what_base_and_adapter_do(say: Say, tmp_path: Path, out: str) -> None:
    own = adapter(tmp_path / "a", 0.05)
    told = json.loads(say("merge", "shipped", str(own), str(tmp_path / out), "--dtype", "f32", "--json").out)
    assert told["share"] > 0.999
    assert told["base_kl"] > 1e-3
    both = pellucid.load(SHIPPED, dtype="float32", activations="exact", adapters={"own": own})
    one = pellucid.load(tmp_path / out, activations="exact")
    ids = both.tokenizer.encode("It was a dark and stormy night")
    torch.testing.assert_close(one.logits(ids), both.logits(ids, adapter="own"), rtol=1e-3, atol=2e-3)
    record = Record.read(tmp_path / out / "record.json" if out == "merged" else tmp_path / "merged.record.json")
    assert record.kind == "merge"
    assert "adapter/adapter_model.safetensors" in record.inputs


def test_a_merge_that_rounding_would_swallow_is_not_kept(say: Say, tmp_path: Path) -> None:
    own = adapter(tmp_path / "a", 2e-4)
    done = say("merge", "shipped", str(own), str(tmp_path / "m.gguf"), "--quantize", "Q4_0")
    assert done.code == 1
    assert "has lost the tuning" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(("change", "words"), [
    ({"out": "a"}, "is there, and nothing was written"),
    ({"text": "short.txt"}, "32 at least are needed"),
    ({"adapter": "nowhere"}, "nowhere"),
])
def test_what_cannot_be_merged_is_said_and_nothing_is_lost(say: Say, tmp_path: Path, change: dict[str, str], words: str) -> None:
    own = adapter(tmp_path / "a", 0.05)
    (tmp_path / "short.txt").write_text("too short")
    more = ["--text", str(tmp_path / change["text"])] if "text" in change else []
    done = say("merge", "shipped", str(tmp_path / change["adapter"]) if "adapter" in change else str(own), str(tmp_path / change.get("out", "m")), *more)
    assert done.code in (1, 2)
    assert words in done.err
    assert len(list(own.iterdir())) == 2


@pytest.mark.parametrize("out", ["merged", "merged.gguf"])
def test_what_an_adapter_learned_from_stops_a_merge_and_stands_in_all_that_is_written(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                                    out: str) -> None:
    own = adapter(tmp_path / "a", 0.05)
    (own / "README.md").write_text("---\nlicense: apache-2.0\ndatasets: [tatsu-lab/alpaca]\n---\n")
    monkeypatch.chdir(tmp_path)
    Path("pellucid.toml").write_text("[use]\ncommercial = true\n")
    Path("text").write_text("It was a dark and stormy night, and the rain fell in torrents upon the roofs of the town. " * 3)
    asked = ("merge", "shipped", "a", out, "--dtype", "f32", "--text", "text")
    said = say(*asked)
    assert said.code == 1
    assert "is not allowed with shipped: " in said.err
    assert "[CC-BY-NC-4.0 2(a)(1), 1(i)] · from tatsu-lab/alpaca · by way of shipped <- a <- tatsu-lab/alpaca" in said.err
    assert not Path(out).exists()
    assert say(*asked, "--permission", "letter of May").code == 0
    record = Record.read("merged/record.json" if out == "merged" else "merged.record.json")
    assert "permission: letter of May" in record.notes
    assert record.output["license_of_result"] == "Apache-2.0 AND CC-BY-NC-4.0 AND openai-generated"
    card = read_card(Path(out)) if out == "merged" else card_of(read_gguf(Path(out)).metadata, out)
    assert (card.license, card.license_name) == ("other", "Apache-2.0 AND CC-BY-NC-4.0 AND openai-generated")
    assert card.base_models == ("shipped", "a")
    if out == "merged":
        readme = Path(out, "README.md").read_text()
        assert "tags:\n- text-generation" in readme  # what else the base's card says
        assert "trained on tatsu-lab/alpaca  CC-BY-NC-4.0 (the catalog)" in readme
        assert "\nLicense of all of it: Apache-2.0 AND CC-BY-NC-4.0 AND openai-generated.\n" in readme
        Path(out, "record.json").unlink()
        next(Path(out).glob("*.safetensors")).unlink()  # and with it the metadata: the card alone still says no more than may be done
    elif out == "merged.gguf":
        Path("merged.record.json").unlink()
    assert verdict.judge(gate.tree(str(tmp_path / out)), uses.Use(uses=frozenset({"commercial"}))).answer == "not allowed"

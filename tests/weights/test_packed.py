"""Packed matrices in families that fuse, turn, share or multiply them; and what stands around them: headers, memory, pickles."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pellucid.errors import BadConfig, MissingShard, OutOfMemoryBudget, UnsupportedModel
from pellucid.families._describe import describe
from pellucid.model import load
from pellucid.model.convert import convert
from pellucid.model.load import load_decoder
from pellucid.ops.cast import unpacked
from pellucid.ops.choose import BACKENDS
from pellucid.ops.unpack import unpack
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.names import Place
from pellucid.weights.packed import METHODS, settings_of
from pellucid.weights.packed_rows import PackedWeight
from pellucid.weights.quantization import Settings
from tests.families.build import build
from tests.families.cases import CASES
from tests.weights import test_awq as awq
from tests.weights import test_bitsandbytes as bitsandbytes
from tests.weights import test_compressed_tensors as compressed
from tests.weights import test_fp8 as fp8
from tests.weights import test_gptq as gptq
from tests.weights.build import llama, write, write_config
from tests.weights.quantized import IDS, SIZES, Files, Packer, files, logits, weight

# q, k and v in one matrix, row by row or head by head, turned or not; gate and up in one; biases; experts; latents whose one matrix is two of ours
FAMILIES = ["qwen2-plain", "mixtral-window", "phi3-mini_4k", "gpt2-released", "gpt_neox-pythia", "bloom-released", "falcon-40b", "internlm2-released",
            "codegen-released", "gpt_bigcode-starcoder", "deepseek_v3-released"]
WHOLE = compressed.config("int-quantized", num_bits=8, strategy="channel", group_size=None)
BLOCKS = fp8.CONFIG


@pytest.mark.parametrize("method", ["int8", "fp8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_own_layout_runs_as_its_numbers(tmp_path: Path, name: str, method: str) -> None:
    """Rows with a scale each may be cut and put in order anywhere; of blocks of 48 rows the scales follow their rows."""
    packer, quantization = (compressed.packer("int-quantized", 8, "channel"), WHOLE) if method == "int8" else (fp8.packer(), BLOCKS)
    built = build(next(case for case in CASES if str(case) == name))
    names = describe(built.raw).names
    packed: Files = {}
    plain: Files = {}
    for i, (theirs, tensor) in enumerate(built.files.items()):
        place = names.place(theirs)
        if not isinstance(place, Place) or tensor.ndim != 2 or not theirs.endswith(".weight") or not any(x in place.names[0] for x in (".attn.", ".mlp.")):
            packed[theirs] = plain[theirs] = tensor.clone()
            continue
        turned = place.rule.transpose
        parts, numbers = packer(theirs.removesuffix(".weight"), *(tensor.T if turned else tensor).shape, i)
        packed |= parts
        plain[theirs] = (numbers.T if turned else numbers).contiguous()
    for folder, tensors, more in (("packed", packed, {"quantization_config": quantization}), ("plain", plain, {})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(built.raw | more))
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    exact_TV = logits(tmp_path / "plain", wide=True)
    # Weights of 8 bits drawn evenly are large, and layers amplify what sums in another order round: plain float32 is off by up to 2e-4, packed by 1.4e-4.
    plain_off, packed_off = ((logits(tmp_path / folder) - exact_TV).abs().max() for folder in ("plain", "packed"))
    assert packed_off < max(4 * plain_off, 2e-5 * exact_TV.abs().max())
    decoder, report = load_decoder(tmp_path / "packed", dtype="float32", activations="exact")
    expected, _ = load_decoder(tmp_path / "plain", dtype="float32")
    held = {path: module.weight for path, module in decoder.named_modules() if isinstance(getattr(module, "weight", None), PackedWeight)}
    assert all(torch.equal(unpack(weight), expected.get_submodule(path).weight) for path, weight in held.items())
    assert held
    assert not [path for path, module in decoder.named_modules() if path.endswith((".q", ".k", ".v", ".o", ".gate", ".up", ".down")) and path not in held]
    assert "matrices stay packed" in report.notes[0] or "matrices stay packed" in report.notes[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("packer", "quantization", "declined"), [
    (gptq.packer(), gptq.CONFIG, ""),
    (gptq.packer(ordered=True), gptq.CONFIG | {"desc_act": True}, "in another order of columns"),
    (awq.packer(), awq.CONFIG, "with zeros or scales beside their blocks"),
    (bitsandbytes.packer(), bitsandbytes.CONFIG, "in groups")])
def test_what_has_kernels_is_multiplied_by_them_and_what_has_none_is_said(tmp_path: Path, packer: Packer, quantization: dict[str, Any], declined: str,
                                                                          backend: str) -> None:
    folder = write(tmp_path, files(packer)[0], **SIZES, quantization_config=quantization)
    decoder, report = load_decoder(folder, ops=backend, activations="int8")
    slow = "matrices without kernels (14 in groups) are unpacked for every product, which is slow"
    if backend == "native":
        slow = "matrices not of whole numbers (14 in groups) are multiplied in float32, each as it is stored: slower than the others would be"
    assert (slow in report.notes) == (declined == "in groups")
    if backend == "native":
        assert report.ops.endswith(f"layer by layer: no plan knows weights {declined}" if declined else "one native plan a pass")
    reference, _ = load_decoder(folder, ops="reference", activations="int8")
    exact, _ = load_decoder(folder, ops="reference", activations="exact")
    with torch.no_grad():
        ours_TV, theirs_TV, exact_TV = (each.unembed(each(IDS)) for each in (decoder, reference, exact))
    assert (ours_TV - theirs_TV).abs().max() < 2e-3 * theirs_TV.abs().max()  # a number on the border between two steps may fall on either side
    if declined != "in groups":
        assert (theirs_TV - exact_TV).abs().max() > 1e-4 * exact_TV.abs().max(), "activations were not rounded"


def test_every_method_is_found_by_headers_without_torch() -> None:
    assert sorted(METHODS) == ["awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "mxfp4"]


def test_parts_of_a_matrix_may_lie_in_any_shards(tmp_path: Path) -> None:
    """Scales in a file of their own, and those of layers that are left out in one that nobody opens for anything else."""
    packed, plain = files(fp8.packer())
    whole = packed | {name.replace("layers.1.", "layers.2."): tensor for name, tensor in packed.items() if "layers.1." in name}
    write_config(tmp_path, **SIZES, quantization_config=fp8.CONFIG, num_nextn_predict_layers=1)
    shards: dict[str, Files] = {"a": {}, "b": {}, "c": {}}
    for name, tensor in whole.items():
        shards["a" if "scale_inv" not in name else "c" if "layers.2." in name else "b"][name] = tensor.clone()
    for letter, part in shards.items():
        save_file(part, tmp_path / f"{letter}.safetensors")
    weight_map = {name: f"{letter}.safetensors" for letter, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    decoder, report = load_decoder(tmp_path, dtype="float32", activations="exact")
    assert sum(report.left_out.values()) == 9  # seven matrices and two norms of the drafting layer
    assert torch.equal(unpack(weight(decoder, "blocks.1.mlp.up")), plain["model.layers.1.mlp.up_proj.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(MissingShard, match=r"1 of the 3 files that hold the weights of .* are not there, first: b\.safetensors"):
        load_decoder(tmp_path)


def test_settings_may_stand_in_the_text_part_of_a_wrapper(tmp_path: Path) -> None:
    said = {"quantization_config": gptq.CONFIG}
    assert settings_of({"text_config": said}, tmp_path) == settings_of(said, tmp_path) == (gptq.CONFIG, "quantization_config of config.json")
    assert settings_of({"text_config": None, "quantization_config": "gptq"}, tmp_path) is None
    raw = {"model_type": "mistral3", "text_config": build(next(case for case in CASES if str(case).startswith("mistral-"))).raw | said}
    assert describe(raw).spec.family == "mistral"


def test_packed_pickles_are_refused(tmp_path: Path) -> None:
    packed, _ = files(gptq.packer())
    write_config(tmp_path, **SIZES, quantization_config=gptq.CONFIG)
    torch.save(packed, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="holds weights packed by gptq in pickles, and they are read from safetensors only"):
        load_decoder(tmp_path)


def test_what_must_fit_into_memory_is_what_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain rest is used where it is mapped, so only the packed bytes count, and a cache."""
    packed, plain = files(bitsandbytes.packer(), base={name: tensor.bfloat16() for name, tensor in llama(**SIZES).items()})
    folder = write(tmp_path, packed, **SIZES, quantization_config=bitsandbytes.CONFIG, dtype="bfloat16")
    n_bytes = sum(tensor.nbytes for name, tensor in packed.items() if name not in plain or tensor.dtype == torch.uint8)
    cache = 64 * 2 * 2 * 2 * 16 * 2  # tokens, layers, keys and values, heads, channels, bytes
    monkeypatch.setattr(load, "available_bytes", lambda device: n_bytes + cache)
    load_decoder(folder)
    monkeypatch.setattr(load, "available_bytes", lambda device: n_bytes + cache - 1)
    with pytest.raises(OutOfMemoryBudget) as refusal:
        load_decoder(folder)
    assert refusal.value.needed_bytes == n_bytes + cache


def test_a_checkpoint_gives_each_packed_matrix_by_its_plain_name(tmp_path: Path) -> None:
    packed, plain = files(bitsandbytes.packer(nested=64))
    checkpoint = open_checkpoint(write(tmp_path, packed, **SIZES, quantization_config=bitsandbytes.CONFIG))
    given = dict(checkpoint.tensors(release=True))
    assert given.keys() == plain.keys() == checkpoint.unpacked.keys()
    for name, tensor in given.items():
        assert torch.equal(tensor if isinstance(tensor, Tensor) else unpack(tensor), plain[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(unpack(checkpoint.tensor(name)), plain[name])
    assert (checkpoint.unpacked[name].dtype, checkpoint.unpacked[name].shape) == ("NF4", (160, 64))


@pytest.mark.parametrize("out", ["folder", "m.gguf"])
@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_packed_repository_is_converted_to_its_numbers(tmp_path: Path, method: str, out: str) -> None:
    """Columns in any order, biases of zeros, two scales for one: what is written is plain and exact."""
    if method == "gptq":
        packer, quantization = gptq.packer(ordered=True, symmetric=False, bias=True), gptq.CONFIG | {"desc_act": True, "sym": False}
    else:
        packer, quantization = bitsandbytes.packer(nested=64), bitsandbytes.CONFIG
    packed, plain = files(packer)
    folder = write(tmp_path / "packed", packed, **SIZES)
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}))
    convert(folder, tmp_path / out)
    decoder, report = load_decoder(tmp_path / out, activations="exact")
    expected, _ = load_decoder(write(tmp_path / "plain", plain, **SIZES))
    assert not [name for name, p in expected.named_parameters() if not torch.equal(p, unpacked(decoder.get_submodule(name.rpartition(".")[0]).weight))]
    assert not [note for note in report.notes if "packed" in note or "quantization" in note]
    if out == "folder":
        assert "quantization_config" not in json.loads((tmp_path / out / "config.json").read_text())
        assert not (tmp_path / out / "quantize_config.json").exists()


def test_settings_take_what_is_asked_for_and_refuse_the_rest() -> None:
    settings = Settings({"bits": 4, "b": None, "c": True, "d": "Word", "e": {"x": 1}}, "config.json")
    assert (settings.count("width", "bits"), settings("b", default=3), settings.flag("c", False), settings.choice("d", among=("word",))) == (4, 3, True, "word")
    settings.expect(f=None)
    part = settings.part(settings("e"), "e")
    with pytest.raises(BadConfig, match=r"e of config\.json has 1 key that nobody reads: x=1"):
        settings.finish()
    part.inert("says nothing", "x")
    settings.finish()
    with pytest.raises(BadConfig, match=r"config\.json: e is 3, and an object was expected"):
        settings.part(3, "e")

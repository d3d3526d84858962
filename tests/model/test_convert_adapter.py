"""Adapters between peft's files and llama.cpp's: the same numbers back, and what the gguf package and transformers make of them."""
from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from pellucid.errors import BadRequest, UnsupportedModel
from pellucid.model.adapters import attach
from pellucid.model.convert import convert
from pellucid.model.load import load_decoder
from pellucid.records import Record, sha256_of
from pellucid.weights.adapter import open_adapter
from tests.families.build import TOLERANCE, Built, build, error
from tests.families.test_gguf import CASES, converted, named, permuted
from tests.model.adapting import ALPHA, RANK, Pairs, adapted_logits, merged_logits, random_pairs, write_peft
from tests.model.test_adapters import matrices
from tests.model.test_decoder import case

PLAIN = CASES["llama-plain"]


def save_base(folder: Path, built: Built) -> Path:
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in built.files.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(built.raw))
    return folder


def llama_cpps(path: Path, built: Built, pairs: Pairs, *, alpha: float = ALPHA, architecture: str = "llama", kind: Kind = Kind.F32) -> Path:
    """The adapter of a llama as convert_lora_to_gguf.py writes it: rows of B of queries and keys permuted as the weight's."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    heads = {"q_proj": built.raw["num_attention_heads"], "k_proj": built.raw["num_key_value_heads"]}
    for name, (a, b) in pairs.items():
        n = next((n for part, n in heads.items() if part in name), None)
        b = b.numpy() if n is None else permuted(b.numpy(), n)
        for half, numbers in (("lora_a", a.numpy()), ("lora_b", b)):
            fits = numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
            writer.add_tensor(f"{named(name)}.{half}", gguf.quants.quantize(numbers, kind) if fits else numbers, raw_dtype=kind if fits else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("base", ["safetensors", "gguf"])
def test_llama_cpps_adapter_is_the_model_with_it_merged_on_a_base_of_either_format(tmp_path: Path, base: str) -> None:
    built = build(PLAIN)
    pairs = random_pairs(built.files, matrices(built)[0])
    llama_cpps(tmp_path / "a.gguf", built, pairs)
    if base == "gguf":
        converted(tmp_path / "m.gguf", built, Kind.F32)
    else:
        save_base(tmp_path / "m", built)
    decoder, _ = load_decoder(tmp_path / ("m.gguf" if base == "gguf" else "m"), device="cpu", dtype="float32", activations="exact")
    attached = attach(decoder, open_adapter(tmp_path / "a.gguf"), "x")
    assert (attached.format, attached.ranks, attached.scales) == ("gguf", (RANK,), (ALPHA / RANK,))
    expected_TV = merged_logits(built, pairs)
    assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"]), expected_TV) < TOLERANCE
    attach(decoder, open_adapter(write_peft(tmp_path / "p", pairs)), "peft")
    assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["peft"]), expected_TV) < TOLERANCE


def test_packed_halves_are_what_the_package_unpacks(tmp_path: Path) -> None:
    built = build(PLAIN)
    [name] = [name for name in matrices(built)[0] if name.endswith("layers.0.mlp.down_proj.weight")]
    pairs = random_pairs(built.files, [name], rank=32)
    llama_cpps(tmp_path / "a.gguf", built, pairs, kind=Kind.Q8_0)
    used = {name: tuple(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(h.numpy(), Kind.Q8_0), Kind.Q8_0).reshape(h.shape)) for h in pairs[name])}
    convert(tmp_path / "a.gguf", tmp_path / "out", base=str(save_base(tmp_path / "m", built)))
    found = load_file(tmp_path / "out/adapter_model.safetensors")
    for x, half in zip("AB", used[name], strict=True):
        assert torch.equal(found[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"], half)
    decoder, _ = load_decoder(tmp_path / "m", device="cpu", dtype="float32")
    attach(decoder, open_adapter(tmp_path / "a.gguf"), "x")
    expected_TV = merged_logits(built, used, scale=ALPHA / 32)
    assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"]), expected_TV) < TOLERANCE


# Permuted rows; fused in both; stored (in, out) by Hugging Face; experts one by one there, as its authors' own code has them, and together here.
@pytest.mark.parametrize("name", ["llama-llama3_rope", "phi3-mini_4k", "gpt2-released", "deepseek-renormalized"])
def test_there_and_back_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    built = case(name)
    names, across = matrices(built)
    pairs = random_pairs(built.files, names, stored_across=across)
    first = write_peft(tmp_path / "first", pairs, {"base_model_name_or_path": "acme/base"})
    base = str(save_base(tmp_path / "base", built))
    done = convert(first, tmp_path / "a.gguf", base=base)
    assert (done.to, done.kept["rounded"], done.notes) == ("gguf", 0, ())
    back = convert(tmp_path / "a.gguf", tmp_path / "back", base=base)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    config = json.loads((tmp_path / "back/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (RANK, ALPHA, {}, {})
    assert (config["base_model_name_or_path"], config["fan_in_fan_out"]) == ("acme/base", bool(across))
    assert all("." not in word for word in config["target_modules"])
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md", "record.json"}
    assert {str(file.path): file.sha256 for file in back.files} == {
        str(path): sha256_of(path) for path in (tmp_path / "back").iterdir() if path.name != "record.json"}
    record = Record.read(done.record)
    assert record.inputs["adapter_model.safetensors"].sha256 == sha256_of(first / "adapter_model.safetensors")


def test_a_copy_of_the_base_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    built = build(PLAIN)
    name = next(name for name in matrices(built)[0] if name.endswith("q_proj.weight"))
    folder = write_peft(tmp_path / "a", random_pairs(built.files, [name]))
    copy = {f"base_model.model.{name.removesuffix('weight')}base_layer.weight": built.files[name]}
    save_file(load_file(folder / "adapter_model.safetensors") | copy, folder / "adapter_model.safetensors")
    done = convert(folder, tmp_path / "a.gguf", base=str(save_base(tmp_path / "m", built)))
    assert done.notes == (f"a copy of the base's {name} in a is left out: what is written changes the base's own",)
    assert len(gguf.GGUFReader(tmp_path / "a.gguf").tensors) == 2


@pytest.mark.parametrize("name", ["phi3-mini_4k", "mixtral-window", "qwen3_moe-renormalized", "qwen2_moe-released"])
def test_what_was_one_matrix_in_pefts_file_comes_apart_as_it_was(name: str, tmp_path: Path) -> None:
    """Experts' gate and up have one A of both ranks there; llama.cpp's file of it is the one that it came from, bit for bit."""
    built = case(name)
    base = str(save_base(tmp_path / "base", built))
    write_peft(tmp_path / "first", random_pairs(built.files, matrices(built)[0]), {"base_model_name_or_path": "acme/base"})
    for before, after in (("first", "a.gguf"), ("a.gguf", "back"), ("back", "b.gguf")):
        convert(tmp_path / before, tmp_path / after, base=base)
    read = [{t.name: (t.shape.tolist(), t.data.tobytes()) for t in gguf.GGUFReader(tmp_path / f"{x}.gguf").tensors} for x in "ab"]
    assert read[0] == read[1]


def test_what_is_written_is_what_llama_cpps_converter_writes(tmp_path: Path) -> None:
    built = build(PLAIN)
    pairs = random_pairs(built.files, matrices(built)[0])
    llama_cpps(tmp_path / "theirs.gguf", built, pairs)
    convert(write_peft(tmp_path / "a", pairs, {"base_model_name_or_path": "acme/base"}), tmp_path / "ours.gguf", base=str(save_base(tmp_path / "m", built)))
    theirs, ours = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("theirs", "ours"))
    read = [{t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors} for reader in (theirs, ours)]
    assert read[0] == read[1]
    for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"):
        assert ours.fields[key].contents() == theirs.fields[key].contents()
    assert ours.fields["general.base_model.0.repo_url"].contents() == "https://huggingface.co/acme/base"


def test_scales_that_one_alpha_cannot_say_go_into_b(tmp_path: Path) -> None:
    built = build(PLAIN)
    names = [name for name in matrices(built)[0] if "mlp.up" in name or "mlp.down" in name or "o_proj" in name]
    pairs = random_pairs(built.files, names)
    patterns = {"alpha_pattern": {"down_proj": ALPHA * 4, r"layers\.1\.self_attn\.o_proj": ALPHA * 0.3}}
    first = write_peft(tmp_path / "a", pairs, patterns)
    base = save_base(tmp_path / "m", built)
    done = convert(first, tmp_path / "a.gguf", base=str(base))
    assert done.notes == ("2 matrices have a scale that adapter.lora.alpha=6 does not say: B was multiplied by what is left, exactly",
                          "1 matrix has a scale that adapter.lora.alpha=6 does not say: B was multiplied by what is left, rounded")
    decoder, _ = load_decoder(base, device="cpu", dtype="float32")
    files = {name: open_adapter(path) for name, path in (("peft", first), ("gguf", tmp_path / "a.gguf"))}
    assert attach(decoder, files["peft"], "peft").scales == pytest.approx((0.6, 2.0, 8.0))
    assert attach(decoder, files["gguf"], "gguf").scales == (2.0,)
    told = [adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], [name]) for name in files]
    assert error(told[1], told[0]) < TOLERANCE


def test_ranks_and_root_scales_keep_what_they_say(tmp_path: Path) -> None:
    """rsLoRA: alpha / sqrt(r) is another alpha over r, where all have one rank; GGUF's own ranks become patterns of peft's."""
    built = build(PLAIN)
    names = [name for name in matrices(built)[0] if "mlp.up" in name]
    first = write_peft(tmp_path / "a", random_pairs(built.files, names), {"use_rslora": True})
    base = str(save_base(tmp_path / "m", built))
    assert convert(first, tmp_path / "a.gguf", base=base).notes == ()
    assert open_adapter(tmp_path / "a.gguf").alpha == pytest.approx(ALPHA * math.sqrt(RANK))
    pairs = random_pairs(built.files, names[:1], rank=2) | random_pairs(built.files, names[1:], rank=5)
    llama_cpps(tmp_path / "b.gguf", built, pairs, alpha=0.0)  # llama.cpp: a scale of 1 whatever the rank
    assert open_adapter(tmp_path / "b.gguf").notes == ("b.gguf: adapter.lora.alpha is 0.0, which llama.cpp takes for a scale of 1",)
    convert(tmp_path / "b.gguf", tmp_path / "b", base=base)
    config = json.loads((tmp_path / "b/adapter_config.json").read_text())
    ranks = {name.removesuffix(".weight"): pair[0].shape[0] for name, pair in pairs.items()}
    assert {module: config["rank_pattern"].get(module, config["r"]) for module in ranks} == ranks
    assert {module: config["alpha_pattern"].get(module, config["lora_alpha"]) for module in ranks} == ranks
    assert {pair.scale for pair in open_adapter(tmp_path / "b").pairs.values()} == {1.0}
    assert config["target_modules"] == ["up_proj"]


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    built = build(PLAIN)
    base = str(save_base(tmp_path / "m", built))
    first = write_peft(tmp_path / "a", random_pairs(built.files, matrices(built)[0][:4]))
    with pytest.raises(BadRequest, match=r"adapter 'a' does not say which model it is for, and that decides what its tensors are called\. Add --base MODEL"):
        convert(first, tmp_path / "a.gguf")
    named_ = write_peft(tmp_path / "n", random_pairs(built.files, matrices(built)[0][:4]), {"base_model_name_or_path": str(tmp_path / "gone")})
    with pytest.raises(BadRequest, match=r"adapter 'n' says that it is for '.*gone', and that is not here .* with --base MODEL"):
        convert(named_, tmp_path / "a.gguf")
    with pytest.raises(BadRequest, match=r"--quantize is for models, and .* is an adapter, whose numbers stay as they are"):
        convert(first, tmp_path / "a.gguf", base=base, quantize="Q8_0")
    with pytest.raises(BadRequest, match=r"--base .* is what an adapter is for, and .* is a model"):
        convert(base, tmp_path / "m.gguf", base=base)
    with pytest.raises(BadRequest, match=r"adapter 'a' is in peft's folder already\. Copy it"):
        convert(first, tmp_path / "again", base=base)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    llama_cpps(tmp_path / "g.gguf", built, random_pairs(built.files, matrices(built)[0][:4]))
    for force, told in ((False, "is there, and nothing was written"), (True, "is there and is no adapter")):
        with pytest.raises(BadRequest, match=told):
            convert(tmp_path / "g.gguf", tmp_path / "mine", base=base, overwrite=force)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    llama_cpps(tmp_path / "other.gguf", built, random_pairs(built.files, matrices(built)[0][:4]), architecture="qwen2")
    with pytest.raises(UnsupportedModel, match=r"adapter 'other.gguf' is of architecture 'qwen2', and the model's is 'llama'"):
        convert(tmp_path / "other.gguf", tmp_path / "o", base=base)
    assert not (tmp_path / "a.gguf").exists()


def test_matrices_that_one_tensor_holds_are_changed_by_one_a_and_the_others_by_zeros(tmp_path: Path) -> None:
    """A phi3's q, k and v are one tensor in both; a GGUF adapter may name one of them."""
    built = case("phi3-mini_4k")
    [name] = [name for name in matrices(built)[0] if name.endswith("layers.0.self_attn.qkv_proj.weight")]
    base = str(save_base(tmp_path / "m", built))
    convert(write_peft(tmp_path / "a", random_pairs(built.files, [name])), tmp_path / "a.gguf", base=base)
    rows = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert sorted(t.name for t in rows) == ["blk.0.attn_qkv.weight.lora_a", "blk.0.attn_qkv.weight.lora_b"]
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "phi3")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    n = built.raw["num_attention_heads"] * built.spec.layers[0].mixer.d_head
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((2, built.raw["hidden_size"]), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((n, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "q.gguf", tmp_path / "q", base=base)
    [pair] = open_adapter(tmp_path / "q").pairs.values()
    assert torch.equal(pair.b, torch.cat([torch.ones(n, 2), torch.zeros(len(pair.b) - n, 2)]))
    assert torch.equal(pair.a, torch.ones(2, built.raw["hidden_size"]))

"""Models in GGUF files, as llama.cpp's converter writes them: the same logits as the safetensors files they were made from."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pellucid
from pellucid.engine.request import Request, Sampling
from pellucid.errors import BadConfig, BadHeader, BadTokenizer, MisshapenTensor, MissingTensors, PellucidError, UnknownTensors, UnsupportedModel
from pellucid.model.load import load_decoder
from pellucid.ops.panels import Panels
from pellucid.weights.assemble import assemble, disassemble
from pellucid.weights.names import NameTable
from pellucid.weights.packed_rows import PackedRows
from pellucid.weights.room import aligned
from tests.families.build import TOLERANCE, Built, build, logits, ours, shapes
from tests.families.case import Case

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5e4, "rms_norm_eps": 1e-5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
KEPT = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1)

CASES = {str(case): case for case in [
    Case("llama", "plain", "a head wider than its share", SIZES | {"head_dim": 32}),
    Case("llama", "biases", "biases, their rows permuted too; a tied table", SIZES | {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, without=("head_dim",)),
    Case("llama", "llama3", "the scaling that is written as a tensor", SIZES | {"rope_parameters": LLAMA3 | {"rope_theta": 5e4}}, without=("head_dim",)),
    Case("llama", "yarn", "yarn", SIZES | {"rope_parameters": YARN | {"rope_theta": 5e4}}, without=("head_dim",)),
    Case("llama", "linear", "linear", SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}}, without=("head_dim",)),
    Case("qwen2", "plain", "rows as they are", SIZES, without=("head_dim",)),
    Case("qwen3", "tied", "norms of queries and keys", SIZES | {"head_dim": 32, "tie_word_embeddings": True}),
]}
THEIRS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
          "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
          "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
          "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk"}


def named(name: str) -> str:
    for theirs, there in THEIRS.items():
        name = name.replace(theirs, there)
    return name


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The rows of a head: one of its first half, one of its second, and so on. convert_hf_to_gguf.py, LlamaModel.permute"""
    return weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def factors(rope: dict[str, Any], n: int) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by. https://github.com/meta-llama/llama-models, apply_scaling"""
    wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(n) / n)
    turns = rope["original_max_position_embeddings"] / wave
    smooth = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def converted(path: Path, built: Built, kind: Kind, change: Callable[[gguf.GGUFWriter], None] = lambda writer: None, *,
              without: tuple[str, ...] = (), **split: Any) -> dict[str, Tensor]:
    """Writes the case as llama.cpp's converter would, its matrices in this format; the numbers they then have, by the checkpoint's names."""
    c, arch = built.raw, built.case.model_type
    rope, heads, kv = c["rope_parameters"], c["num_attention_heads"], c["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, arch, **split)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_file_type(int(kind))
    numbers = {"context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"], "block_count": c["num_hidden_layers"],
               "feed_forward_length": c["intermediate_size"], "head_count": heads, "head_count_kv": kv, "layer_norm_rms_eps": c["rms_norm_eps"],
               "rope_freq_base": rope["rope_theta"], "vocab_size": c["vocab_size"]}
    if c.get("head_dim"):
        numbers |= {"key_length": c["head_dim"], "value_length": c["head_dim"]}
    if arch == "llama":
        numbers |= {"rope_dimension_count": c.get("head_dim") or c["hidden_size"] // heads}
    for name, number in numbers.items():
        if name not in without:
            getattr(writer, f"add_{name}")(number)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "tokenizer" not in without:
        writer.add_tokenizer_model("none")
        writer.add_eos_token_id(7)
    change(writer)
    out = {}
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", factors(rope, (c.get("head_dim") or c["hidden_size"] // heads) // 2))
    for name, tensor in built.files.items():
        data = tensor.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            data = permuted(data, heads if "q_proj" in name else kv)
        raw = gguf.quants.quantize(data, kind) if data.ndim == 2 else data
        used = gguf.quants.dequantize(raw, kind).reshape(data.shape) if data.ndim == 2 else data
        if named(name) not in without:
            writer.add_tensor(named(name), raw, raw_dtype=kind if data.ndim == 2 else None)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            n = heads if "q_proj" in name else kv
            used = used.reshape(n, -1, 2, *used.shape[1:]).swapaxes(1, 2).reshape(used.shape)
        out[name] = torch.from_numpy(np.array(used))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("kind", KEPT, ids=[kind.name for kind in KEPT])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_dequantized_safetensors(tmp_path: Path, name: str, kind: Kind) -> None:
    built = build(CASES[name])
    files = converted(tmp_path / "m.gguf", built, kind)
    plain, _ = assemble(NameTable(built.module.WEIGHTS), files.items(), shapes(built.spec), built.spec)
    expected = logits(ours(built.spec, plain), built.tokens_T)
    decoder, report = load_decoder(tmp_path / "m.gguf", device="cpu", dtype="float32", activations="exact")
    found = logits(decoder, built.tokens_T)
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert report.format == "gguf"
    assert report.n_parameters == sum(t.numel() for t in plain.values())
    assert isinstance(decoder.blocks[0].attn.q.weight, PackedRows) == (kind != Kind.F32)
    if kind == Kind.F32:  # and so transformers'
        assert (found - built.logits_TV).abs().max() < TOLERANCE * expected.abs().max()


def test_weights_stay_packed_where_the_file_is_mapped(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    converted(tmp_path / "m.gguf", built, Kind.Q4_0)
    decoder, report = load_decoder(tmp_path / "m.gguf", device="cpu", activations="exact")
    kept = {name: getattr(module, "weight", None) for name, module in decoder.named_modules()}
    packed = {name: weight for name, weight in kept.items() if isinstance(weight, PackedRows)}
    assert len(packed) == 7 * 2 + 2  # seven matrices a layer, the table and the unembedding
    assert {weight.format for weight in packed.values()} == {"Q4_0"}
    assert report.stored.keys() == {"q4_0", "f32"}
    assert (report.dtype, report.license) == ("f32", "Apache-2.0")
    assert any("gguf q4_0 + f32, computed in f32" in line for line in report.lines())


@pytest.mark.native
@pytest.mark.parametrize("name", ["llama-plain", "qwen3-tied"])
def test_int8_activations_are_the_references_and_near_the_exact_ones(tmp_path: Path, name: str) -> None:
    """By the kernels as by the reference, to the rounding of sums; a tied table is read from the panels."""
    built = build(CASES[name])
    converted(tmp_path / "m.gguf", built, Kind.Q4_0)
    found = {}
    for ops, activations in (("native", "int8"), ("reference", "int8"), ("reference", "exact")):
        decoder, report = load_decoder(tmp_path / "m.gguf", device="cpu", ops=ops, activations=activations)
        assert report.activations == activations
        assert ops in report.ops
        assert isinstance(decoder.blocks[0].attn.q.weight, Panels) == (ops == "native")
        assert isinstance(decoder.embed.weight, Panels) == (ops == "native" and name == "qwen3-tied")
        found[ops, activations] = logits(decoder, built.tokens_T)
    exact, size = found["reference", "exact"], found["reference", "exact"].norm()
    assert (found["native", "int8"] - exact).norm() < 0.05 * size  # two blocks a row, random weights: the coarsest case
    # A sum rounded otherwise may move a later activation over the border between two whole numbers.
    assert (found["native", "int8"] - found["reference", "int8"]).norm() < 0.3 * (found["reference", "int8"] - exact).norm()
    assert not torch.equal(found["reference", "int8"], exact)


@pytest.mark.native
def test_a_matrix_of_plain_numbers_beside_others_is_noted(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    head = built.files["lm_head.weight"].half().numpy()
    converted(tmp_path / "m.gguf", built, Kind.Q8_0, lambda writer: writer.add_tensor("output.weight", head), without=("output.weight",))
    decoder, report = load_decoder(tmp_path / "m.gguf", device="cpu")
    assert isinstance(decoder.unembed.weight, PackedRows)
    assert "matrices not of whole numbers (1 in F16) are multiplied in float32, each as it is stored: slower than the others would be" in report.notes
    _, exact = load_decoder(tmp_path / "m.gguf", device="cpu", activations="exact")
    assert not [note for note in exact.notes if "whole numbers" in note]


@pytest.mark.native
def test_panels_lie_in_one_region_one_after_another(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    converted(tmp_path / "m.gguf", built, Kind.Q8_0)
    decoder, _ = load_decoder(tmp_path / "m.gguf", device="cpu")
    panels = [weight for module in decoder.modules() if isinstance(weight := getattr(module, "weight", None), Panels)]
    assert len(panels) == 7 * 2 + 1  # the table is looked up only, and stays where the file is mapped
    panels.sort(key=lambda weight: weight.bytes.data_ptr())
    ends = [weight.bytes.data_ptr() + aligned(weight.nbytes) for weight in panels]
    assert ends[:-1] == [weight.bytes.data_ptr() for weight in panels[1:]]


def test_a_file_of_formats_without_kernels_says_so_and_is_exact_there(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    converted(tmp_path / "m.gguf", built, Kind.BF16)
    _, report = load_decoder(tmp_path / "m.gguf", device="cpu", dtype="float32")
    assert report.activations == "exact"
    assert not [note for note in report.notes if "whole numbers" in note]  # nothing has one here, so nothing is slower than the rest


def test_an_f16_file_runs_in_f16_and_a_split_one_whole(tmp_path: Path) -> None:
    built = build(CASES["qwen2-plain"])
    converted(tmp_path / "m.gguf", built, Kind.F16, split_max_tensors=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 3
    model = pellucid.load(parts[0])
    assert model.report.dtype == "f16"
    assert model.checkpoint.eos_ids == (7,)
    expected = logits(ours(built.spec, built.tensors), built.tokens_T)
    assert (model.logits(built.tokens_T.tolist()) - expected).abs().max() < 0.02 * expected.abs().max()  # float16 throughout


def test_the_engine_runs_over_packed_weights(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    converted(tmp_path / "m.gguf", built, Kind.Q8_0)
    model = pellucid.load(tmp_path / "m.gguf")
    ids = built.tokens_T.tolist()
    greedy = list(ids)
    for _ in range(6):
        greedy.append(int(model.logits(greedy)[-1].argmax()))
    assert list(model.engine.submit(Request(prompt_ids=ids, max_tokens=6, sampling=Sampling(temperature=0)))) == greedy[len(ids):]
    with pytest.raises(BadTokenizer, match=r"'m\.gguf' has no tokenizer: tokenizer\.ggml\.model of its metadata names none\. .* token ids only: model\.logits"):
        model.generate("text")


def test_what_is_read_is_written_back_with_its_rows_in_the_same_order() -> None:
    built = build(CASES["llama-biases"])
    table = NameTable(built.module.GGUF.tensors)
    there = disassemble(table, built.tensors, built.spec)
    for ours_, theirs in (("q", "attn_q"), ("k", "attn_k")):
        n = built.raw["num_attention_heads" if ours_ == "q" else "num_key_value_heads"]
        for kind in ("weight", "bias"):
            expected = permuted(built.files[f"model.layers.1.self_attn.{ours_}_proj.{kind}"].numpy(), n)
            assert torch.equal(there[f"blk.1.{theirs}.{kind}"], torch.from_numpy(expected))
    again, _ = assemble(table, there.items(), shapes(built.spec), built.spec)
    assert all(torch.equal(again[name], tensor) for name, tensor in built.tensors.items())


def fails(path: Path, error: type[PellucidError], change: Callable[[gguf.GGUFWriter], None] = lambda writer: None, **how: Any) -> str:
    converted(path, build(CASES["llama-plain"]), Kind.F32, change, **how)
    with pytest.raises(error) as raised:
        load_decoder(path)
    return str(raised.value)


WRONG: list[tuple[Callable[[gguf.GGUFWriter], None], type[PellucidError], str]] = [
    (lambda w: w.add_uint32("llama.expert_count", 8), BadConfig, "m.gguf has no llama.expert_used_count, which architecture 'llama' needs"),
    (lambda w: w.add_uint32("llama.expert_used_count", 8), BadConfig, "m.gguf says llama.expert_used_count=8, and the rest of its metadata makes it None."),
    (lambda w: w.add_uint32("llama.foo", 8), BadConfig, "1 key that family 'llama' does not read: llama.foo=8. Running anyway could"),
    (lambda w: w.add_type("adapter"), UnsupportedModel, "m.gguf is of general.type 'adapter', and only a 'model' is loaded by itself"),
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), BadConfig, "longrope"),
]


@pytest.mark.parametrize(("change", "error", "expected"), WRONG, ids=[expected[:30] for *_, expected in WRONG])
def test_metadata_that_is_not_read_stops_the_load(tmp_path: Path, change: Any, error: type[PellucidError], expected: str) -> None:
    assert expected in fails(tmp_path / "m.gguf", error, change)


def test_a_key_nobody_reads_may_be_vouched_for(tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", build(CASES["llama-plain"]), Kind.F32, lambda w: w.add_uint32("llama.foo", 8))
    _, report = load_decoder(tmp_path / "m.gguf", accept_unread=["llama.foo"])
    assert report.accepted == ("llama.foo",)


def test_keys_that_are_missing_or_contradict(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert fails(path, BadConfig, without=("block_count", "context_length")).startswith(
        "m.gguf has no llama.context_length and no llama.block_count, which architecture 'llama' needs. Is the file whole?")
    assert "m.gguf says llama.rope.dimension_count=16, and the rest of its metadata makes it 32. Which is right?" in fails(
        path, BadConfig, lambda w: w.add_rope_dimension_count(16), without=("rope_dimension_count",))
    assert "llama.feed_forward_length differs from layer to layer ([1, 2])" in fails(
        path, UnsupportedModel, lambda w: w.add_feed_forward_length([1, 2]), without=("feed_forward_length",))
    assert "ffn_down.weight has shape (64, 160), and its metadata makes it (64, 128)" in fails(
        path, MisshapenTensor, lambda w: w.add_feed_forward_length(128), without=("feed_forward_length",))
    assert "llama.attention.head_count is 'four'" in fails(
        path, BadConfig, lambda w: w.add_string("llama.attention.head_count", "four"), without=("head_count",))
    assert "llama.attention.key_length is 0.5, and a count was expected" in fails(
        path, BadConfig, lambda w: w.add_float32("llama.attention.key_length", 0.5), without=("key_length",))
    assert "m.gguf says llama.block_count=3, and holds the tensors of 2 blocks. Is a part missing?" in fails(
        path, BadConfig, lambda w: w.add_block_count(3), without=("block_count",))
    assert "3 short and 3 long factors are not those of 16 pairs" in fails(path, BadConfig, lambda w: w.add_tensor("rope_freqs.weight", np.ones(3, np.float32)))
    assert "rope_freqs.weight holds [0.0, 0.0, 0.0], and positive numbers were expected, one a pair of channels" in fails(
        path, BadConfig, lambda w: w.add_tensor("rope_freqs.weight", np.zeros(3, np.float32)))
    assert "rope_freqs.weight is F16, and F32 was expected" in fails(path, BadHeader, lambda w: w.add_tensor("rope_freqs.weight", np.ones(16, np.float16)))
    assert "token_embd.weight in m.gguf is I8, which weights are not read in (read: F32, F16, BF16, Q4_0" in fails(
        path, UnsupportedModel, lambda w: w.add_tensor("token_embd.weight", np.ones((96, 64), np.int8)), without=("token_embd.weight",))
    assert "blk.1.attn_v.weight" in fails(path, MissingTensors, without=("blk.1.attn_v.weight",))
    assert "extra.weight" in fails(path, UnknownTensors, lambda w: w.add_tensor("extra.weight", np.ones(3, np.float32)))


def test_blocks_of_another_version_are_not_read_as_those_of_today(tmp_path: Path) -> None:
    path, built = tmp_path / "m.gguf", build(CASES["llama-plain"])
    converted(path, built, Kind.Q4_0, lambda w: w.add_quantization_version(3))
    with pytest.raises(UnsupportedModel, match=r"m\.gguf packs \S+ as general\.quantization_version 3 does, and version 2 is read: its blocks would mean"):
        load_decoder(path)
    converted(path, built, Kind.F16, lambda w: w.add_quantization_version(3))  # nothing is packed
    load_decoder(path)


def test_the_size_of_the_vocabulary_may_be_left_to_the_table_and_numbers_to_lists(tmp_path: Path) -> None:
    built = build(CASES["llama-plain"])
    converted(tmp_path / "m.gguf", built, Kind.F32, lambda w: w.add_feed_forward_length([160, 160]), without=("vocab_size", "feed_forward_length"))
    decoder, _ = load_decoder(tmp_path / "m.gguf")
    assert decoder.spec == built.spec


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_a_corrupted_model_is_an_error_or_runs(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    built, whole = build(CASES["llama-llama3"]), tmp_path / "whole.gguf"
    if not whole.exists():
        converted(whole, built, Kind.Q8_0)
    content = bytearray(whole.read_bytes())
    content[at] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: len(content) - cut] if cut < 20 else content)
    try:
        decoder, _ = load_decoder(path)
    except PellucidError:
        return
    assert logits(decoder, built.tokens_T[:3]).shape == (3, decoder.spec.n_vocab)


def test_an_architecture_nobody_knows(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen33")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match=r"m\.gguf is of architecture 'qwen33', whose .* \(reads: apertus, .*, starcoder2\)\. Did you mean qwen3"):
        load_decoder(tmp_path / "m.gguf")

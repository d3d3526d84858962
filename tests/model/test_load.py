"""From a folder to a decoder that runs: what is decided, what it says, what it costs, what is refused."""
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.errors import (
    BadConfig,
    BadHeader,
    BadRequest,
    BadTokenizer,
    MisshapenTensor,
    MissingTensors,
    PellucidError,
    UnknownTensors,
    UnsupportedModel,
)
from pellucid.model.load import check_vocabulary, load_decoder
from pellucid.model.report import LoadReport, binary, count, size
from pellucid.weights.checkpoint import open_checkpoint
from tests.weights.build import CONFIG, llama, write, write_config, write_shards


def message(path: Path, error: type[PellucidError], **kwargs: Any) -> str:
    with pytest.raises(error) as raised:
        load_decoder(path, **kwargs)
    assert type(raised.value) is error
    return str(raised.value)


def logits(path: Path, **kwargs: Any) -> torch.Tensor:
    decoder, _ = load_decoder(path, device="cpu", **kwargs)
    with torch.no_grad():
        return decoder.unembed(decoder(torch.arange(9)))


# ---- what comes out


def shift(folder: Path, to: int) -> Path:
    """Makes the tensors of every safetensors file begin `to` bytes past a multiple of 64: a header may end in spaces."""
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + n].rstrip(b" ")
        header += b" " * ((to - 8 - len(header)) % 64)
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + n :])
    return folder


def test_weights_are_views_of_the_file_frozen_and_in_evaluation(tmp_path: Path) -> None:
    shift(write(tmp_path, llama(**EVEN), **EVEN), 0)
    checkpoint = open_checkpoint(tmp_path)
    decoder, _ = load_decoder(checkpoint, device="cpu")
    assert decoder.embed.weight.equal(llama(**EVEN)["model.embed_tokens.weight"])
    views = {tensor.data_ptr() for _, tensor in checkpoint.tensors()}
    assert {p.data_ptr() for p in decoder.parameters()} == views


EVEN = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}


def test_weights_stay_where_they_are_mapped_wherever_they_begin(tmp_path: Path) -> None:
    shift(write(tmp_path), 8)
    checkpoint = open_checkpoint(tmp_path)
    views = {tensor.data_ptr() for _, tensor in checkpoint.tensors()}
    assert any(pointer % 64 for pointer in views)
    decoder, _ = load_decoder(checkpoint, device="cpu")
    assert {p.data_ptr() for p in decoder.parameters()} == views


def test_weights_are_frozen_and_in_evaluation(tmp_path: Path) -> None:
    write(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    decoder, _ = load_decoder(checkpoint, device="cpu")
    assert decoder.embed.weight.equal(llama()["model.embed_tokens.weight"])
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())


def test_every_layout_gives_the_same_logits(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write_shards(tmp_path / "shards")
    write_shards(tmp_path / "pickles", format="pickle")
    write_config(tmp_path / "old")
    torch.save(llama(), tmp_path / "old/pytorch_model.bin", _use_new_zipfile_serialization=False)
    expected = logits(tmp_path / "one")
    assert expected.std() > 0.1
    for layout in ("shards", "pickles", "old", "one/model.safetensors"):
        assert logits(tmp_path / layout).equal(expected), layout


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    tensors = llama()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    decoder, report = load_decoder(write(tmp_path, tensors, tie_word_embeddings=True))
    assert decoder.unembed.weight is decoder.embed.weight
    assert report.left_out == {"a copy of the tied embedding": 1}
    assert report.n_parameters == sum(t.numel() for t in llama().values()) - 53 * 24


def test_a_folder_without_tokenizer_files_loads(tmp_path: Path) -> None:
    assert {path.name for path in write(tmp_path).iterdir()} == {"config.json", "model.safetensors"}
    assert logits(tmp_path).shape == (9, 53)


def test_both_dialects_of_config_mean_the_same(tmp_path: Path) -> None:
    write(tmp_path / "5", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})
    old = {k: v for k, v in CONFIG.items() if k != "dtype"} | {"torch_dtype": "float32", "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    write(tmp_path / "4")
    (tmp_path / "4/config.json").write_text(json.dumps(old))
    assert logits(tmp_path / "4").equal(logits(tmp_path / "5"))
    write(tmp_path / "plain")
    assert not logits(tmp_path / "plain").equal(logits(tmp_path / "5"))


@pytest.mark.shared
def test_the_stories_load_and_continue_as_their_author_published(shared: Path) -> None:
    folder = shared / "stories260k"
    golden = json.loads((folder / "golden_greedy.json").read_text())["token_ids"]
    decoder, report = load_decoder(folder, device="cpu")
    with torch.no_grad():
        best = decoder.unembed(decoder(torch.tensor(golden[:-1]))).argmax(-1)
    first = 1 if golden[0] == 1 else 0
    assert best[first - 1 :].tolist()[:20] == golden[first : first + 20]
    assert (report.family, report.n_parameters, report.license, report.dtype) == ("llama", 260_032, "MIT", "f32")


# ---- dtype and device


def test_auto_is_the_dtype_of_the_files(tmp_path: Path) -> None:
    for stored, name in ((torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")):
        decoder, report = load_decoder(write(tmp_path / name, llama(stored), dtype=str(stored).removeprefix("torch.")))
        assert {p.dtype for p in decoder.parameters()} == {stored}
        assert (report.dtype, report.notes) == (name, ())


def test_the_files_are_believed_over_the_config(tmp_path: Path) -> None:
    decoder, report = load_decoder(write(tmp_path, llama(torch.bfloat16), dtype="float16"))
    assert decoder.embed.weight.dtype == torch.bfloat16
    assert report.notes == ("config.json says f16, the files hold bf16: the files are believed",)
    _, report = load_decoder(write(tmp_path / "odd", llama(torch.bfloat16), dtype="foo"), device="cpu")
    assert report.notes == ("config.json says foo, the files hold bf16: the files are believed",)
    write(tmp_path / "torn", llama(torch.bfloat16), dtype="bfloat16", torch_dtype="float16")
    assert message(tmp_path / "torn", BadConfig) == "config.json of 'torn' has dtype='bfloat16' and torch_dtype='float16'. Remove the wrong one."


@pytest.mark.parametrize(("stated", "expected"), [("float32", "f32"), ("bfloat16", "bf16"), (None, "bf16"), ("float16", "bf16")])
def test_mixed_files_run_in_the_stated_dtype_or_the_most_common_and_say_so(tmp_path: Path, stated: str | None, expected: str) -> None:
    tensors = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in llama().items()}
    decoder, report = load_decoder(write(tmp_path, tensors, dtype=stated))
    assert report.dtype == expected
    assert {str(p.dtype) for p in decoder.parameters()} == {{"f32": "torch.float32", "bf16": "torch.bfloat16"}[expected]}
    assert f"the files mix bf16 and f32: everything runs in {expected}" in report.notes
    assert f" safetensors bf16 + f32, loaded as {expected}, " in report.lines()[1]


@pytest.mark.parametrize("asked", ["bfloat16", "bf16", torch.bfloat16])
def test_a_dtype_that_was_asked_for(tmp_path: Path, asked: Any) -> None:
    decoder, report = load_decoder(write(tmp_path), dtype=asked)
    assert decoder.blocks[1].mlp.down.weight.equal(llama()["model.layers.1.mlp.down_proj.weight"].bfloat16())  # type: ignore[union-attr]
    assert (report.dtype, report.stored.keys()) == ("bf16", {"f32"})
    assert "safetensors f32, loaded as bf16, " in report.lines()[1]


def test_a_dtype_that_is_none(tmp_path: Path) -> None:
    assert message(write(tmp_path), BadRequest, dtype="int4") == (
        "dtype='int4' is not one the decoder runs in (auto, float32, bfloat16, float16, float64)")


@pytest.mark.parametrize("device", ["tpu9", "meta", "cuda:77", "xpu", "cpu:3"])
def test_a_device_that_is_not_here(tmp_path: Path, device: str) -> None:
    text = message(write(tmp_path), BadRequest, device=device)
    assert text.startswith(f"device={device!r} is not here (auto, cpu")
    assert text.endswith(f"torch {torch.__version__})")


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does(tmp_path: Path) -> None:
    write(tmp_path)
    decoder, report = load_decoder(tmp_path)
    assert report.device.startswith("cuda")
    assert {p.device.type for p in decoder.parameters()} == {"cuda"}
    with torch.no_grad():
        theirs = decoder.unembed(decoder(torch.arange(9, device="cuda"))).cpu()
    assert (theirs - logits(tmp_path)).abs().max() < 2e-3 * theirs.abs().max()  # TF32 is off by default; sums are in another order


def test_a_backend_that_is_not_there(tmp_path: Path) -> None:
    assert message(write(tmp_path), BadRequest, ops="magic").startswith("ops='magic' is not a backend (auto, ")


# ---- the report


def test_the_report_in_one_breath(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny-llama", llama(torch.bfloat16) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)},
                   dtype="bfloat16", surprise=3, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    _, report = load_decoder(folder, device="cpu", accept_unread=["surprise"], ops="reference")
    report = dataclasses.replace(report, seconds=0.0131)
    lines = report.lines()
    n_kb, n_parameters = (folder / "model.safetensors").stat().st_size / 1000, sum(t.numel() for t in llama().values())
    assert lines == [
        "tiny-llama  family llama · 2 layers · d_model 24 · 4 heads / 2 kv · "
        f"{n_parameters / 1000:.1f} K parameters · Apache-2.0",
        f"weights     safetensors bf16, {n_kb:.1f} kB, read in 13 ms",
        "ops         cpu: reference: torch, every operation",
        "cache       160 bytes per token -> 64 tokens = 10 KiB",
        "left out    1 tensor, buffer: rope frequencies, recomputed from config.json",
        "accepted    unread keys of config.json, on your word: surprise",
        "note        config.json of 'tiny-llama' names code of its own (auto_map: modeling_x.X); it is never run"]


def test_the_report_for_machines_is_plain_json(tmp_path: Path) -> None:
    _, report = load_decoder(write(tmp_path / "m"), device="cpu")
    facts = json.loads(json.dumps(dataclasses.asdict(report)))
    assert facts["n_parameters"] == sum(t.numel() for t in llama().values())
    assert facts["n_heads"] == [4, 4]
    assert facts["cache_bytes_per_token"] == 2 * 2 * 2 * 10 * 4
    assert facts["stored"] == {"f32": sum(t.nbytes for t in llama().values())}


def test_the_example_of_the_design_is_written_as_there() -> None:
    report = LoadReport(name="qwen3-0.6b", family="qwen3", n_layers=28, d_model=1024, n_heads=(16, 16), n_kv_heads=(8, 8), n_parameters=596_049_920,
                        n_ctx=40_960, license="Apache-2.0", format="safetensors", dtype="bf16", stored={"bf16": 1}, device="cpu", n_bytes=1_192_135_096,
                        seconds=0.81, ops="attend native · the rest reference", activations="exact", cache_bytes_per_token=112 * 1024,
                        left_out={}, accepted=(), notes=())
    assert report.lines() == [
        "qwen3-0.6b  family qwen3 · 28 layers · d_model 1024 · 16 heads / 8 kv · 596 M parameters · Apache-2.0",
        "weights     safetensors bf16, 1.2 GB, read in 0.8 s",
        "ops         cpu: attend native · the rest reference",
        "cache       112 KiB per token -> 4,096 tokens = 448 MiB"]


@pytest.mark.parametrize(("shown", "expected"), [
    (count(999), "999"), (count(260_032), "260 K"), (count(7_241_732_096), "7.24 B"), (count(12_340_000), "12.3 M"), (count(999_950), "1.00 M"),
    (size(999), "999 bytes"), (size(1_044_992), "1.0 MB"), (size(14_483_000_000), "14.5 GB"), (size(240_000_000), "240 MB"),
    (size(0), "0 bytes"), (size(2e12), "2.0 TB"),
    (binary(1023), "1023 bytes"), (binary(1280), "1.2 KiB"), (binary(448 * 2**20), "448 MiB"), (binary(3 * 2**29), "1.5 GiB")])
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


# ---- what is refused


def test_an_unknown_family_names_the_nearest_and_never_runs_code(tmp_path: Path) -> None:
    write(tmp_path / "m", model_type="lama")
    assert "model_type 'lama' is not a family Pellucid runs. Nearest: " in message(tmp_path / "m", UnsupportedModel)
    write(tmp_path / "m", model_type="lama", auto_map={"AutoConfig": "configuration_lama.C", "AutoModelForCausalLM": "modeling_lama.M"})
    (tmp_path / "m/modeling_lama.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    text = message(tmp_path / "m", UnsupportedModel)
    assert "llama" in text
    assert text.endswith("The repository brings code of its own for it (auto_map: modeling_lama.M), and Pellucid never runs remote code.")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [None, 3])
def test_a_config_without_a_family(tmp_path: Path, value: Any) -> None:
    write(tmp_path / "m", model_type=value)
    assert message(tmp_path / "m", BadConfig) == (f"config.json of 'm' has no model_type (found {value!r}), so nothing says which family this is. "
                                                  f"Add the one the model was made as.")


def test_an_unread_key_stops_the_load_by_name(tmp_path: Path) -> None:
    text = message(write(tmp_path / "m", surprise=3), BadConfig)
    assert text.startswith("config.json of 'm' has 1 key that family 'llama' does not read: surprise=3.")
    assert text.endswith("If you know that they change nothing: --accept-unread surprise")
    assert load_decoder(tmp_path / "m", accept_unread=["surprise"])[1].accepted == ("surprise",)


@pytest.mark.parametrize("facts", [{"num_hidden_layers": "two"}, {"hidden_size": [24]}, {"num_attention_heads": 0, "head_dim": None},
                                   {"rope_scaling": "linear"}])
def test_a_value_of_the_wrong_kind(tmp_path: Path, facts: dict[str, Any]) -> None:
    text = message(write(tmp_path / "m", llama(), **facts), BadConfig)
    assert text.startswith("config.json of 'm' has a value of a kind that family 'llama' cannot read (")
    assert text.endswith("Is the file as its authors wrote it?")


def test_a_shape_that_disagrees_with_the_config(tmp_path: Path) -> None:
    text = message(write(tmp_path, llama(), intermediate_size=41), MisshapenTensor)
    assert text.endswith("has shape (24, 40), and config.json makes it (24, 41) (blocks.0.mlp.down.weight). Do config.json and the weights belong together?")


def test_tensors_that_are_missing_or_too_many(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    text = message(write(tmp_path / "a", tensors), MissingTensors)
    assert "lacks 1 of 21 tensors that family 'llama' needs, first: model.layers.1.mlp.up_proj.weight." in text
    tensors = llama() | {"model.layers.0.self_attn.q_norm.weight": torch.zeros(10)}
    assert "no place in family 'llama' with these settings, first: model.layers.0.self_attn.q_norm.weight." in message(
        write(tmp_path / "b", tensors), UnknownTensors)


def test_a_header_that_lies(tmp_path: Path) -> None:
    write(tmp_path)
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[:8] = (10**7).to_bytes(8, "little")
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert message(tmp_path, BadHeader).startswith("model.safetensors says that its header is 10,000,000 bytes long, and the file has ")


def test_packed_weights_are_refused_and_bookkeeping_is_not(tmp_path: Path) -> None:
    quantization = {"quant_method": "aqlm"}
    _, report = load_decoder(write(tmp_path / "plain", quantization_config=quantization))
    assert report.notes == ("config.json has a quantization_config, and the files hold plain numbers: they are used as they are",)
    tensors = llama() | {"model.layers.0.mlp.up_proj.weight": llama()["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)}
    assert message(write(tmp_path / "m", tensors, quantization_config=quantization), UnsupportedModel) == (
        "'m' holds packed weights (aqlm): model.layers.0.mlp.up_proj.weight is F8_E4M3, and this version runs F32, BF16, F16, F64, and what gptq, awq, "
        "compressed-tensors, fp8, fbgemm_fp8, bitsandbytes, mxfp4 pack. Fetch the repository it was quantized from.")


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    decoder, _ = load_decoder(write(tmp_path))
    check_vocabulary(decoder.spec, 53)
    check_vocabulary(decoder.spec, 50)
    with pytest.raises(BadTokenizer) as raised:
        check_vocabulary(decoder.spec, 1054)
    assert str(raised.value) == ("the tokenizer knows 1,054 tokens, and the model's embedding has 53 rows. "
                                 "Are the tokenizer files those of this model, or were tokens added without resizing the embedding?")


@pytest.mark.parametrize("module", ["cost", "families._describe", "weights.checkpoint", "weights.card", "weights.header", "model.report"])
def test_what_show_and_plan_need_imports_no_torch(module: str) -> None:
    code = f"import sys, pellucid.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- memory

MEASURE = """
import gc, resource, sys, torch
from pellucid.model.load import load_decoder
torch.set_num_threads(1)
load_decoder(sys.argv[2]); gc.collect()  # what the first load of anything costs
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = now()
decoder, report = load_decoder(sys.argv[1], dtype=sys.argv[3], device="cpu")
loaded = now()
if sys.argv[4] == "run":
    with torch.no_grad():
        decoder.unembed(decoder(torch.arange(4)))
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak - before, loaded - before, sum(p.nbytes for p in decoder.parameters()))
"""


def measure(folder: Path, small: Path, dtype: str, then: str) -> tuple[int, int, int]:
    """(bytes at the peak, bytes once loaded, bytes of the weights), all of them above the interpreter and torch."""
    out = subprocess.run([sys.executable, "-c", MEASURE, folder, small, dtype, then], capture_output=True, text=True, check=True,
                         env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"})
    peak, loaded, weights = map(int, out.stdout.split())
    return peak, loaded, weights


BIG = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 8,
       "head_dim": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 220 MB in bf16; zeros, for what is measured is memory."""
    shapes = {name: tensor.shape for name, tensor in meta_llama(**BIG).items()}
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("big")
    (folder / "config.json").write_text(json.dumps(CONFIG | BIG | {"dtype": "bfloat16"}))
    half = sorted(tensors)[::2]
    for i, names in enumerate((half, sorted(set(tensors) - set(half))), 1):
        save_file({name: tensors[name] for name in names}, folder / f"model-{i:05d}-of-00002.safetensors")
    return folder


def meta_llama(**config: Any) -> dict[str, torch.Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        return llama(**config)


@pytest.mark.linux
def test_loading_reads_nothing_and_running_holds_the_weights_once(big: Path, tmp_path: Path) -> None:
    peak, loaded, weights = measure(shift(big, 0), write(tmp_path), "auto", "run")
    assert weights > 200e6
    assert loaded < 0.05 * weights, "loading maps and reads headers only"
    assert peak < 1.15 * weights, f"{peak / weights:.2f} times the weights"


@pytest.mark.linux
def test_what_lies_between_two_lines_is_not_copied(big: Path, tmp_path: Path) -> None:
    peak, loaded, weights = measure(shift(big, 56), write(tmp_path), "auto", "run")
    assert loaded < 0.05 * weights
    assert peak < 1.15 * weights, f"{peak / weights:.2f} times the weights"


@pytest.mark.linux
def test_another_dtype_is_made_tensor_by_tensor(big: Path, tmp_path: Path) -> None:
    peak, _, weights = measure(big, write(tmp_path), "float16", "load")
    assert peak < 1.15 * weights, f"{peak / weights:.2f} times the weights"


@pytest.mark.linux
def test_a_legacy_file_is_mapped_too(big: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text((big / "config.json").read_text())
    torch.save({name: tensor for shard in big.glob("*.safetensors") for name, tensor in load_file(shard).items()}, tmp_path / "old/pytorch_model.bin")
    peak, loaded, weights = measure(tmp_path / "old", write(tmp_path / "small"), "auto", "run")
    assert loaded < 0.05 * weights
    assert peak < 1.15 * weights, f"{peak / weights:.2f} times the weights"


@pytest.mark.linux
def test_a_layout_that_must_be_copied_is_copied_once(tmp_path: Path) -> None:
    """GPT-NeoX interleaves q, k and v head by head, so that a third of the weights cannot be views."""
    D, F, L, V = 1024, 4096, 8, 4096
    config = {"model_type": "gpt_neox", "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": 16, "vocab_size": V,
              "max_position_embeddings": 64, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "use_parallel_residual": True, "dtype": "bfloat16",
              "tie_word_embeddings": False, "hidden_act": "gelu"}
    tensors = {"gpt_neox.embed_in.weight": (V, D), "embed_out.weight": (V, D), "gpt_neox.final_layer_norm.weight": (D,), "gpt_neox.final_layer_norm.bias": (D,)}
    for i in range(L):
        for name, (n_out, n_in) in {"attention.query_key_value": (3 * D, D), "attention.dense": (D, D), "mlp.dense_h_to_4h": (F, D),
                                    "mlp.dense_4h_to_h": (D, F)}.items():
            tensors |= {f"gpt_neox.layers.{i}.{name}.weight": (n_out, n_in), f"gpt_neox.layers.{i}.{name}.bias": (n_out,)}
        tensors |= {f"gpt_neox.layers.{i}.{norm}.{p}": (D,) for norm in ("input_layernorm", "post_attention_layernorm") for p in ("weight", "bias")}
    folder = tmp_path / "neox"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in tensors.items()}, folder / "model.safetensors")
    peak, _, weights = measure(folder, write(tmp_path / "small"), "auto", "run")
    assert weights > 200e6
    assert peak < 1.15 * weights, f"{peak / weights:.2f} times the weights"


def test_the_builder_agrees_with_what_it_measures(big: Path) -> None:
    names = [name for shard in big.glob("*.safetensors") for name in load_file(shard)]
    assert sorted(names) == sorted(meta_llama(**BIG))

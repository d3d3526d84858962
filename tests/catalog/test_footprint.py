"""Memory from a spec alone, against what is written and what is measured."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pellucid import cost
from pellucid.catalog import models
from pellucid.catalog.footprint import LADDER, TRAINING_BYTES, Footprint
from pellucid.cli import main
from pellucid.errors import BadRequest
from pellucid.families import llama
from pellucid.families._describe import describe
from pellucid.weights.assemble import disassemble
from pellucid.weights.gguf import open_gguf
from pellucid.weights.names import NameTable
from tests.families.build import shapes

KNOWN = [row for row in models.table().values() if row.shape == row.name]


def footprint(name: str) -> Footprint:
    return Footprint(describe(models.config_of(models.find(name))).spec)


@pytest.mark.parametrize("name", [row.name for row in KNOWN])
def test_the_matrices_are_all_of_the_model_but_its_norms_and_biases(name: str) -> None:
    mark = footprint(name)
    assert 0 <= mark.small <= 0.004 * cost.parameters(mark.spec) + 20_000
    read = sum(math.prod(tensor.shape) * tensor.read(1) for tensor in mark.tensors.values()) + mark.small
    assert read == pytest.approx(cost.active_parameters(mark.spec), rel=0.01)  # idle experts' biases are small


@pytest.mark.native
@pytest.mark.parametrize("mix", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_packed_weights_take_what_the_written_file_holds(mix: str, tmp_path: Path) -> None:
    config = dict(model_type="llama", vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=9, num_attention_heads=8, hidden_act="silu",
                  num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False)
    spec, folder, file = describe(config).spec, tmp_path / "model", tmp_path / "model.gguf"
    folder.mkdir()
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes(spec).items()}
    save_file(disassemble(NameTable(llama.WEIGHTS), tensors, spec), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["quantize", str(folder), str(file), "--to", mix]) == 0
    assert Footprint(spec).weight_bytes(mix) == sum(entry.n_bytes for _, entry in open_gguf(file).tensors.values())


def test_a_well_known_models_weights_and_cache() -> None:
    mark = footprint("llama-2-7b")
    assert mark.weight_bytes("bf16") == 2 * 6_738_415_616
    assert mark.weight_bytes("f32") == 4 * 6_738_415_616
    assert mark.cache_bytes(4096) == 2 * 2**30
    assert mark.cache_bytes(4096, 1) == 2**30


def test_windows_and_latents_keep_what_they_show() -> None:
    mistral, windowed = footprint("mistral-7b-instruct-v0.2"), footprint("mistral-7b-v0.1")
    assert mistral.cache_bytes(20_000) == 20_000 * 128 * 1024
    assert windowed.cache_bytes(20_000) == 4096 * 128 * 1024
    assert footprint("deepseek-v3-base").cache_bytes(1000) == 1000 * 2 * 61 * (512 + 64)


def test_a_step_reads_the_experts_its_tokens_choose() -> None:
    mark = footprint("mixtral-8x7b-v0.1")
    one, two, many = (mark.read_bytes("bf16", batch) for batch in (1, 2, 1000))
    assert one == pytest.approx(2 * cost.active_parameters(mark.spec), rel=1e-4)
    experts = 2 * 32 * 8 * 3 * 4096 * 14_336
    assert two - one == pytest.approx(experts * ((1 - 0.75**2) - 0.25), rel=1e-6)
    assert many == pytest.approx(2 * (cost.parameters(mark.spec) - 32_000 * 4096), rel=1e-4)


def test_the_largest_context_is_the_last_that_fits() -> None:
    mark, room = footprint("llama-3.1-8b"), 8 * 10**9
    n = mark.largest_context(room, "q4_k_m")
    assert mark.peak_bytes("q4_k_m", n) <= room < mark.peak_bytes("q4_k_m", n + 1)
    assert mark.largest_context(room, "bf16") == 0
    assert mark.largest_context(10**12, "bf16") == mark.spec.n_ctx


def test_tokens_bring_the_pages_around_their_embeddings_of_a_packed_file_and_at_most_all_of_its_table() -> None:
    mark = footprint("llama-3.1-8b")
    assert [mark.looked_up_bytes("q4_k_m", n) for n in (0, 1, 100)] == [0, 1 << 16, 100 << 16]
    assert mark.looked_up_bytes("q4_k_m", 10**6) == 128_256 * 4096 * 144 // 256  # Q4_K packs 256 numbers in 144 bytes
    assert mark.looked_up_bytes("bf16", 10**6) == 0  # counted with the weights, of which every page is read
    assert mark.peak_bytes("q4_k_m", 101) - mark.peak_bytes("q4_k_m", 100) == mark.cache_bytes(1) + (1 << 16)


def test_the_best_format_is_the_widest_that_fits() -> None:
    mark = footprint("llama-3.1-8b")
    sizes = [mark.peak_bytes(format, 4096) for format in LADDER]
    assert sizes == sorted(sizes, reverse=True)
    for format, size in zip(LADDER, sizes, strict=True):
        assert mark.best_format(size, 4096) == format
    assert mark.best_format(sizes[-1] - 1, 4096) is None


def test_training_holds_twenty_bytes_a_number_and_an_adapter_little() -> None:
    mark = footprint("llama-2-7b")
    full, lora, qlora = (mark.training_bytes(method, n_tokens=1024) for method in ("full", "lora", "qlora"))
    assert full["weights"] + full["gradients"] + full["optimizer"] == (2 + 6 + 12) * 6_738_415_616  # bfloat16, with float32 of masters and of gradients
    # rank x (rows + columns) of the seven matrices of each of 32 layers
    adapter = 16 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    assert mark.adapter_numbers(16) == adapter
    assert (lora["gradients"], lora["optimizer"]) == (4 * adapter, 8 * adapter)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert qlora["weights"] == int(matrices * 4.5 / 8) + 2 * (6_738_415_616 - matrices) + 4 * adapter
    assert full["runtime"] == TRAINING_BYTES
    assert full["logits"] == 1 << 26  # so many tokens' at a time as 64 MB hold, and never all of 1,024
    assert mark.training_bytes("full", n_tokens=1024, optimizer="sgd")["optimizer"] == 4 * 6_738_415_616
    again = mark.training_bytes("full", n_tokens=1024, recomputed=True)
    assert 5 * again["activations"] < full["activations"]
    assert {part for part in full if full[part] != again[part]} == {"activations"}


def test_a_small_model_is_trained_whole_in_float32() -> None:
    mark = footprint("pythia-70m")
    n = cost.parameters(mark.spec)
    full = mark.training_bytes("full", n_tokens=512)
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * n, 4 * n, 8 * n)


def test_a_format_nobody_writes_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match="Did you mean Q4_K_S, Q4_K_M"):
        footprint("gpt2").weight_bytes("q4_k_n")


def test_planning_imports_no_torch() -> None:
    code = ("import sys\nfrom pellucid.catalog.footprint import Footprint\nfrom pellucid.catalog.subject import subject\n"
            "from pellucid.catalog import hardware, planning\nplanning.speed(Footprint(subject('deepseek-v3').spec), hardware.find('h100'), format='q4_k_m', "
            "prompt=9, context=9)\nsys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

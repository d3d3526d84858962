"""Metadata written from a spec and read again: the same spec, or a refusal that names the fact which GGUF cannot say."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pellucid import families
from pellucid.errors import UnknownTensors, UnsupportedModel
from pellucid.families._gguf import architectures, of_family
from pellucid.families._gguf_write import architecture_of, factors, metadata
from pellucid.spec import DecoderSpec
from pellucid.weights.assemble import assemble, disassemble
from pellucid.weights.names import NameTable
from tests.families.build import build, shapes
from tests.families.case import Case
from tests.families.cases import CASES

WRAPPERS = {"gemma3", "gemma4", "gemma4_unified", "llama4", "mistral3"}  # the text model inside is written
HAVE = [case for case in CASES if of_family(families.family(case.model_type))]
# What no key or tensor of the architecture says, and the cases that have it; every other case must come back as it was.
CANNOT: dict[str, str] = {case: fact for fact, cases in {
    ".act=": "llama-biases llama-act_gelu_pytorch_tanh llama-act_quick_gelu llama-act_relu2 llama-act_relu6 llama-act_leaky_relu "
            "llama-act_hardswish llama-act_laplace llama-act_sqrtsoftplus llama-act_tanh llama-act_sigmoid llama-act_mish llama-act_linear "
            "gpt2-by_depth gpt_neox-redpajama gpt_neox-yarn falcon-untied phi3-phi4 stablelm-1_6b starcoder2-no_bias cohere-command_r_plus "
            "nemotron-biases granite-biases glm4-32b hunyuan_v1_dense-biases apertus-biases glm-no_bias granitemoe-biases minimax_m2-yarn "
            "exaone4-layer_types ernie4_5-biases seed_oss-biases deepseek_v3-one_group falcon-in_sequence",
    "layers.0.mixer.rope.scaling.whole_pairs=False": "llama-yarn_mscale",
    "layers.0.mixer.rope.scaling=Dynamic": "llama-dynamic llama-dynamic_past hunyuan_v1_dense-dynamic deepseek-dense internlm2-dynamic "
            "minicpm-dynamic qwen-released qwen-released_past",
    "layers.0.mixer.window=11": "mistral-window mixtral-window qwen2-layer_types starcoder2-released",
    "layers.2.mixer.window=11": "qwen2-late_windows dots1-groups",
    "layers.0.mixer.qkv_bias=True": "qwen3-biases olmo-clip olmo2-biases olmoe-clip gemma-biases olmo3-long gemma4_text-e4b gemma4_unified_text-shared "
            "deepseek-renormalized minicpm-untied",
    "layers.0.mixer.scale=0.2041241452319315": "gemma2-caps gemma2-no_caps gemma3_text-two_ropes gemma3_text-both_ways gemma3_text-cap",
    "layers.2.mixer.rope=None": "smollm3-interval",
    "layers.1.mixer.rope=None": "smollm3-windows",
    "layers.0.mixer.scale=1.0": "gpt2-unscaled gpt_bigcode-every_head",
    "layers.0.mixer.rope=None": "cohere2-mixed llama4_text-mixed baichuan-baichuan_13b falcon-rw_1b falcon-grouped_alibi",
    "layers.0.mlp.renormalize=False": "dbrx-as_they_are",
    "rope.freq_base_swa=90.0": "olmo3-two_bases",
    "layers.0.mixer.rope.scaling=Linear(factor=2.0)": "gemma4_text-plain",
    "layers.0.mixer.causal=False": "gemma4_text-both_ways",
    "layers.0.mixer.latent_bias=True": "deepseek_v2-biases",
    "layers.0.mixer.chunk=9": "llama4_text-scout llama4_text-maverick",
    "layers.0.mlp.each.limit=1.3": "gpt_oss-released",
    "layers.0.mixer.window=None": "gpt_oss-switched",
    "layers.0.mixer.temperature=LogTemperature(original=13)": "qwen-logn",
    "norm_in=False": "bloom-power_of_two",
    "layers.0.mixer.scale=0.21": "mpt-30b",
    "logit_scale=0.4": "mpt-grouped",
    "logit_scale=0.12909944487358058": "mpt-biased",
    "no checkpoint name": "qwen3_moe-some_dense phi-qk_layernorm nemotron_nas-linear qwen2_moe-windows qwen2_moe-layer_types",
    "expert_used_count differs from layer to layer ([2, 3])": "hunyuan_v1_moe-lists",
    "cannot say what this model is": "ministral3-window deepseek_v3-halves mpt-rms",
    "vocab_size=101 is neither Baichuan 1's": "baichuan-baichuan2_7b baichuan-baichuan2_13b",
}.items() for case in cases.split()}


def written(case: Case) -> tuple[DecoderSpec, dict[str, object]]:
    """The spec of a case and its metadata, read back on the way."""
    built = build(case)
    table = NameTable(architecture_of(built.spec).table)
    there = disassemble(table, built.tensors, built.spec)
    again, _ = assemble(table, there.items(), shapes(built.spec), built.spec)
    assert all(torch.equal(again[name], tensor) or (built.spec.norm.offset and torch.allclose(again[name], tensor)) for name, tensor in built.tensors.items())
    shaped = {name: tuple(tensor.shape) for name, tensor in there.items()}
    shaped |= {name: (len(values),) for name, values in factors(built.spec).items()}
    numbers = {name: float(tensor) for name, tensor in built.tensors.items() if tensor.numel() == 1}
    return built.spec, metadata(built.spec, shaped, numbers)


@pytest.mark.parametrize("case", [case for case in HAVE if str(case) not in CANNOT], ids=str)
def test_a_spec_comes_back(case: Case) -> None:
    spec, said = written(case)  # raises where what is read back differs
    name = said["general.architecture"]
    assert said[f"{name}.block_count"] == len(spec.layers)
    assert said[f"{name}.embedding_length"] == spec.d_model


@pytest.mark.parametrize("case", [case for case in HAVE if str(case) in CANNOT], ids=str)
def test_what_the_architecture_cannot_say_is_named(case: Case) -> None:
    with pytest.raises((UnsupportedModel, UnknownTensors), match=re.escape(CANNOT[str(case)])):
        written(case)


def test_a_family_without_architecture_is_refused_by_name() -> None:
    built = build(next(case for case in CASES if case.family == "opt"))
    with pytest.raises(UnsupportedModel, match=r"family 'opt' has no architecture in GGUF files that llama\.cpp would read .* Save it as safetensors"):
        metadata(built.spec, {})


def test_the_page_lists_every_architecture_and_every_family_without_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text(encoding="utf8")
    rows = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1].split(", ") for row in page.splitlines() if row.startswith("| ")}
    assert set(rows) - {"architecture", "---"} == set(architectures())
    assert all(set(rows[name]) >= {family for family, _ in known} for name, known in architectures().items())
    own = {name for name in families.NAMES if not of_family(families.family(name))} - WRAPPERS
    [line] = [line for line in page.splitlines() if line.startswith("- Families here that llama.cpp has no architecture for: ")]
    assert set(line.partition(": ")[2].partition(".")[0].split(", ")) == own

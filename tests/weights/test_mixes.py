"""Plans of mixes, held against the types that llama.cpp's own quantizer gave.

mixes.json: llama_model_quantize of llama-cpp-python 0.3.36 over random weights of these shapes, each kind of tensor by its layer, `Q6_K*4 Q5_K`
for four layers of one and one of the other.
"""
from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import pytest

from pellucid.errors import BadRequest
from pellucid.ops.quantize.pack import PACK
from pellucid.weights.mixes import FORMATS, MIXES, Facts, packable, plan_mix

RECORDED = json.loads((Path(__file__).parent / "mixes.json").read_text())


def model(arch: str, n_layers: int, D: int, F: int, H: int, K: int, experts: int, tied: bool) -> tuple[dict[str, tuple[int, ...]], Facts]:
    """Names and shapes of a model's tensors, as the recorded ones had them."""
    C, V = D // H, 64
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, D), "output_norm.weight": (D,)} | ({} if tied else {"output.weight": (V, D)})
    for i in reversed(range(n_layers)):  # a plan does not depend on the order
        attention = {"attn_qkv": ((H + 2 * K) * C, D)} if arch == "falcon" else {"attn_q": (D, D), "attn_k": (K * C, D), "attn_v": (K * C, D)}
        mlp = {"ffn_up": (F, D), "ffn_down": (D, F)} | ({} if arch == "falcon" else {"ffn_gate": (F, D)})
        if experts:
            mlp = {f"{name}_exps": (experts, *shape) for name, shape in mlp.items()} | {"ffn_gate_inp": (experts, D)}
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in {"attn_norm": (D,), "attn_output": (D, D), "ffn_norm": (D,), **attention, **mlp}.items()}
    return tensors, Facts(architecture=arch, n_layers=n_layers, n_heads=H, n_kv_heads=K, n_experts=experts)


def layers(runs: str) -> list[str]:
    return [format for run in runs.split() for format, _, n in [run.partition("*")] for _ in range(int(n or 1))]


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix in RECORDED["deep"]["mixes"]])
@pytest.mark.parametrize("name", RECORDED)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(name: str, mix: str) -> None:
    tensors, facts = model(**RECORDED[name]["model"])
    expected = {}
    for kind, runs in RECORDED[name]["mixes"][mix].items():
        each = layers(runs)
        expected |= {f"blk.{i}.{kind}.weight": format for i, format in enumerate(each)} if kind not in ("output", "token_embd") else {f"{kind}.weight": each[0]}
    plan = plan_mix(mix, tensors, facts)
    assert {tensor: format for tensor, format in plan.types.items() if format != "F32"} == expected
    assert plan.file_type == gguf.LlamaFileType[f"MOSTLY_{mix}"]


def test_dense_mixes_are_of_one_type_and_norms_stay_in_float32() -> None:
    tensors, facts = model("llama", 2, 256, 512, 8, 2, 4, False)
    for mix in ("F32", "F16", "BF16"):
        plan = plan_mix(mix.lower(), tensors, facts)
        assert {plan.types[name] for name in tensors if packable(name, tensors[name])} == {mix}
        assert {plan.types[name] for name in tensors if not packable(name, tensors[name])} == {"F32"}
        assert plan.types["blk.0.ffn_gate_inp.weight"] == plan.types["blk.1.attn_norm.weight"] == "F32"


def test_an_imatrix_changes_two_rules() -> None:
    tensors, facts = model("llama", 16, 256, 512, 8, 2, 0, False)
    down = "blk.1.ffn_down.weight"
    assert [plan_mix(mix, tensors, facts, important=important).types[down] for mix in ("IQ4_XS", "Q4_0", "Q5_0") for important in (False, True)] == [
        "Q5_K", "IQ4_XS", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def test_sizes_are_those_of_the_blocks() -> None:
    tensors, facts = model("llama", 1, 256, 512, 8, 2, 0, True)
    plan = plan_mix("Q8_0", tensors, facts)
    packed, plain = sum(a * b for a, b in (s for s in tensors.values() if len(s) == 2)), 256 * 3
    assert plan.total_bytes == packed // 32 * 34 + plain * 4
    assert plan.bits_per_weight == pytest.approx(8 * plan.total_bytes / (packed + plain))
    assert plan.shown == "Q8_0 8, F32 3"


def test_short_rows_fall_back_and_the_plan_says_so() -> None:
    """The widths of stories260k: 64 for most, 172 for what leaves the feed-forward, which no block divides."""
    tensors, facts = model("llama", 5, 64, 172, 8, 4, 0, True)
    plan = plan_mix("Q4_K_M", tensors, facts)
    assert plan.types["blk.2.attn_q.weight"] == "Q5_0"
    assert plan.types["blk.0.ffn_down.weight"] == "F16"
    assert plan.fell_back["blk.2.attn_q.weight"] == "Q4_K"
    assert plan.types["token_embd.weight"] == "Q8_0"


def test_an_override_decides_before_the_mix() -> None:
    tensors, facts = model("llama", 4, 256, 512, 8, 2, 0, False)
    plan = plan_mix("q4_k_m", tensors, facts, overrides=[(r"blk\.[01]\.attn_v", "q8_0"), ("attn_v", "F16")])
    assert [plan.types[f"blk.{i}.attn_v.weight"] for i in range(4)] == ["Q8_0", "Q8_0", "F16", "F16"]
    rest = {name: format for name, format in plan_mix("Q4_K", tensors, facts).types.items() if "attn_v" not in name}
    assert rest == {name: format for name, format in plan.types.items() if "attn_v" not in name}


@pytest.mark.parametrize(("mix", "overrides", "message"), [
    ("Q4_K_L", [], r"'Q4_K_L' is no mix of formats that is written here \(written: F32, .*\)\. Did you mean (Q\d_K_[SML](, )?){3}\?"),
    ("Q8_0", [("[", "Q8_0")], r"--tensor-type \[=Q8_0: '\[' is no regular expression \(unterminated character set.*Write, for one"),
    ("Q8_0", [("attn_v", "IQ1_S")], r"--tensor-type attn_v=IQ1_S: no tensor is written in 'IQ1_S' \(written: F32, "),
    ("Q8_0", [("mixer", "Q8_0")], r"--tensor-type mixer=Q8_0 fits no tensor of this model\. The matrices are called: token_embd"),
    ("Q8_0", [("_norm", "Q8_0")], r"--tensor-type _norm=Q8_0 fits only what is never packed: output_norm.weight, "),
    ("Q8_0", [("ffn_down", "Q4_K")], r"ffn_down=Q4_K: blk.0.ffn_down.weight has rows of 172 numbers, and Q4_K packs 256 together"),
])
def test_what_cannot_be_done_is_said(mix: str, overrides: list[tuple[str, str]], message: str) -> None:
    tensors, facts = model("llama", 1, 64, 172, 8, 4, 0, True)
    with pytest.raises(BadRequest, match=message):
        plan_mix(mix, tensors, facts, overrides=overrides)


def test_every_format_of_a_plan_is_one_that_is_written() -> None:
    assert set(FORMATS) == set(PACK)
    assert {format for each in RECORDED.values() for kinds in each["mixes"].values() for runs in kinds.values() for format in layers(runs)} <= set(PACK)


def test_the_page_says_the_sizes_that_the_plans_have() -> None:
    """Those of a Llama of 1.1 billion parameters, in docs/quantize.md."""
    tensors, facts = model("llama", 22, 2048, 5632, 32, 4, 0, False)
    tensors |= {"token_embd.weight": (32000, 2048), "output.weight": (32000, 2048)}
    page = (Path(__file__).parents[2] / "docs/quantize.md").read_text(encoding="utf8")
    rows = dict(re.findall(r"^\| ([A-Z][A-Z0-9_]+) \| ([\d.]+ \| [\d,]+) \|", page, re.M))
    assert rows.keys() == MIXES.keys() - {"F32", "F16", "MXFP4_MOE", "Q2_K_S"}
    for mix, said in rows.items():
        plan = plan_mix(mix, tensors, facts)
        assert said == f"{plan.bits_per_weight:.2f} | {plan.total_bytes / 1e6:,.0f}"

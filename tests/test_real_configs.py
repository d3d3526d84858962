"""Real checkpoints: their config.json as published is read whole and makes a model of the published size. No torch here.

`configs/<family>.json` holds them: repository, revision where the source states it, where and when the file was read, the license and the
published count of parameters with their sources, and the config itself. A count is exact (of files that were listed) or rounded as it was
published; `counting` says what it counts differently.
"""
from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pellucid import cost, families
from pellucid.errors import PellucidError, UnsupportedModel
from pellucid.families._describe import describe
from pellucid.spec import DecoderSpec

FOLDER = Path(__file__).parent / "configs"
CHECKPOINTS: dict[str, dict[str, Any]] = {
    entry["repo"]: entry for path in sorted(FOLDER.glob("*.json")) for entry in json.loads(path.read_text(encoding="utf8"))}
ENOUGH = 80  # checkpoints, of the issue
FURTHER = "without embeddings, with the layer that predicts further"  # GLM-4.5's report
COUNTING = {None, "without embeddings", FURTHER, "the tied matrix twice", "with the vision tower"}
# Families without an entry here, each with the reason. What was searched: public code by the text of config.json and by file name, pages of
# config.json files and of model cards, threads of issues.
NONE_FOUND = {
    "gemma4_unified_text": "it is the text_config inside gemma4_unified's, which is here",
    "granitemoeshared": "of ibm-research/moe-7b-1b-active-shared-experts, which transformers names, no config.json was found; the class's own is no 7B",
    "pangu_pro_moe": "of ascend-tribe/pangu-pro-moe-model neither the config.json nor the license was found; its class's values are PANGU_PRO_MOE",
}
# configuration_pangu_moe.py of ascend-tribe/pangu-pro-moe-model, read 2026-11-22: the class has its one checkpoint's values as defaults.
PANGU_PRO_MOE: dict[str, Any] = dict(
    model_type="PanguProMoE", vocab_size=153_376, hidden_size=5120, num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8, hidden_act="silu",
    max_position_embeddings=131_072, initializer_range=0.02, rms_norm_eps=1e-5, use_cache=True, tie_word_embeddings=False, rope_theta=16e6,
    moe_intermediate_size=1344, shared_expert_intermediate_size=5376, num_experts_per_tok=8, num_experts=64, output_router_logits=False,
    router_aux_loss_coef=0.001)
NAMELESS = {"unknown", "custom", "other", "none", "license", "model license", "proprietary"}  # what listings say in place of a license's name
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


def counted(spec: DecoderSpec, counting: str | None) -> int:
    """Parameters as the source counts them; a vision tower is not ours to count."""
    table = spec.n_vocab * spec.d_model
    if counting == FURTHER:  # one layer more like the last, and the matrix that joins a state and an embedding before it
        last = cost.parameters(spec) - cost.parameters(replace(spec, layers=spec.layers[:-1]))
        return cost.parameters(spec) - 2 * table + last + 2 * spec.d_model ** 2
    return cost.parameters(spec) + {"without embeddings": -table * (1 if spec.tied else 2), "the tied matrix twice": table}.get(counting or "", 0)


def fits(published: int | str, ours: int, counting: str | None = None) -> bool:
    """Exact counts within 0.1 %; rounded ones when ours rounds, or is cut, to the digits that were published."""
    if isinstance(published, int):
        return abs(ours / published - 1) <= 1e-3
    number, unit = float(published[:-1]), UNITS[published[-1]]
    digits = len(published[:-1].partition(".")[2])
    if counting == "with the vision tower":
        return 0.98 < ours / unit / number < 1
    if re.fullmatch(r"\d\d0[MB]", published):
        digits = -1  # 230B of 228.7: three digits that end in a zero are two
    cut = math.floor(ours / unit * 10.0 ** digits) / 10.0 ** digits
    return number in (round(ours / unit, digits), cut)


@pytest.mark.parametrize("repo", CHECKPOINTS)
def test_a_published_config_is_read_whole_and_makes_a_model_of_the_published_size(repo: str) -> None:
    entry = CHECKPOINTS[repo]
    described = describe(entry["config"], where=f"config.json of {repo}")
    assert described.accepted == ()
    assert fits(entry["parameters"], counted(described.spec, entry.get("counting")), entry.get("counting")), f"{cost.parameters(described.spec):,}"
    assert 0 < cost.active_parameters(described.spec) <= cost.parameters(described.spec)
    assert cost.cache_bytes_per_token(described.spec, 2) > 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_entry_says_where_each_of_its_facts_was_read(path: Path) -> None:
    for entry in json.loads(path.read_text(encoding="utf8")):
        assert families.family(entry["config"]["model_type"]).__name__.rpartition(".")[2] == path.stem
        assert set(entry) - {"counting"} == {"repo", "revision", "read_from", "read_on", "license", "license_from", "parameters", "parameters_from", "config"}
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry["repo"])
        assert entry["revision"] is None or re.fullmatch(r"[0-9a-f]{7,40}", entry["revision"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["read_on"])
        assert all(entry[key].strip() for key in ("read_from", "license", "license_from", "parameters_from"))
        assert isinstance(entry["parameters"], int) or re.fullmatch(r"[\d.]+[MBT]", entry["parameters"])
        assert entry.get("counting") in COUNTING


def test_every_entry_names_its_license_and_where_that_was_read() -> None:
    nameless = {repo: entry["license"] for repo, entry in CHECKPOINTS.items() if entry["license"].lower() in NAMELESS}
    assert not nameless, "a license is named by its text or its card: look there"
    assert not {repo for repo, entry in CHECKPOINTS.items() if "not found" in entry["license_from"]}


def test_every_family_reads_a_published_config_but_those_that_say_why_not() -> None:
    assert set(families.NAMES) - {path.stem for path in FOLDER.glob("*.json")} == set(NONE_FOUND)
    assert all(NONE_FOUND.values())


def test_the_values_of_pangus_class_make_a_model_of_the_published_size() -> None:
    described = describe(PANGU_PRO_MOE)
    assert described.accepted == ()
    assert fits("71.99B", cost.parameters(described.spec)), "https://arxiv.org/abs/2505.21411"


def test_there_are_enough_of_them_and_none_twice() -> None:
    repos = Counter(entry["repo"] for path in FOLDER.glob("*.json") for entry in json.loads(path.read_text(encoding="utf8")))
    assert len(repos) >= ENOUGH
    assert set(repos.values()) == {1}


@pytest.mark.parametrize(("published", "ours", "counting", "expected"), [
    (6_738_419_712, 6_738_415_616, None, True), (6_738_419_712, 6_746_000_000, None, False),
    ("7B", 6_738_415_616, None, True), ("405B", 405_853_388_800, None, True), ("7B", 8_030_261_248, None, False), ("1.23B", 1_235_814_400, None, True),
    ("2.7B", 2_779_683_840, None, True), ("350M", 356_712_448, None, True), ("350M", 366_000_000, None, False), ("350M", 344_000_000, None, False),
    ("1.24B", 1_244_000_000, None, True), ("1.24B", 1_250_000_000, None, False), ("230B", 228_689_764_864, None, True), ("70B", 75_100_000_000, None, False),
    ("109B", 107_769_861_120, "with the vision tower", True), ("109B", 109_500_000_000, "with the vision tower", False)])
def test_a_count_fits_within_the_rounding_of_what_was_published(published: int | str, ours: int, counting: str | None, expected: bool) -> None:
    assert fits(published, ours, counting) is expected


def test_a_key_that_is_added_to_a_published_config_is_noticed() -> None:
    for entry in CHECKPOINTS.values():
        with pytest.raises(PellucidError, match="use_magic=7"):
            describe(entry["config"] | {"use_magic": 7})


def test_describing_them_all_imports_no_torch() -> None:
    code = ("import json, sys\nfrom pathlib import Path\nfrom pellucid import cost\nfrom pellucid.families._describe import describe\n"
            f"for path in Path({str(FOLDER)!r}).glob('*.json'):\n"
            "    for entry in json.loads(path.read_text(encoding='utf8')): cost.parameters(describe(entry['config']).spec)\n"
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("repo", "setting", "message"), [
    ("internlm/internlm-20b", {"bias": True}, "bias=True (only False)"),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", {"qkv_bias": True}, "qkv_bias=True (only False)"),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", {"use_qk_norm": False}, "use_qk_norm=False (only True)"),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", {"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size=512 (only 0)"),
    ("stabilityai/stablelm-2-12b", {"use_norm_bias": True}, "use_norm_bias=True (only False)"),
    ("rednote-hilab/dots.llm1.base", {"scoring_func": "softmax"}, "scoring_func='softmax' (only 'sigmoid')"),
    ("Qwen/Qwen-72B", {"rope_theta": 10_000}, "rope_theta=10000 (only 1000000)"),
    ("THUDM/codegeex2-6b", {"rotary_percent": 1.0}, "rotary_percent=1.0 (only 0.5)"),
    ("NewEden-Forge/Science-Expert-R1", {"mlp_bias": True}, "mlp_bias=True (only False)"),
    ("NewEden-Forge/Science-Expert-R1", {"post_norm": True}, "post_norm=True (only False)"),
    ("NewEden-Forge/Science-Expert-R1", {"qk_norm": False}, "qk_norm=False (only True)"),
    ("ssmits/Falcon2-5.5B-Swedish", {"ff_factor": 3}, "ff_factor=3 (only 4.0)"),
    ("tencent/Hunyuan-MT-7B", {"attention_head_dim": 64}, "attention_head_dim=64 (only 128)"),
    ("tencent/Hunyuan-MT-7B", {"mlp_bias": True}, "mlp_bias=True (only False)"),
    ("tencent/Hunyuan-MT-7B", {"norm_type": "layer"}, "norm_type='layer' (only 'rms')"),
    ("tencent/Hunyuan-MT-7B", {"use_cla": True}, "use_cla=True (only False)"),
    ("tencent/Hunyuan-MT-7B", {"use_qk_norm": False}, "use_qk_norm=False (only True)"),
    ("tencent/Hunyuan-MT-7B", {"use_rotary_pos_emb": False}, "use_rotary_pos_emb=False (only True)"),
    ("tencent/Hunyuan-A13B-Instruct", {"use_cla": True}, "use_cla=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"use_mla": True}, "use_mla=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"norm_topk_prob": False}, "norm_topk_prob=False (only True)"),
    ("tencent/Hunyuan-A13B-Instruct", {"routed_scaling_factor": 2.5}, "routed_scaling_factor=2.5 (only 1.0)"),
    ("tencent/Hunyuan-A13B-Instruct", {"group_limited_greedy": True}, "group_limited_greedy=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"moe_drop_tokens": True}, "moe_drop_tokens=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"moe_random_routing_dropped_token": True}, "moe_random_routing_dropped_token=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"position_embedding_xdrope": True}, "position_embedding_xdrope=True (only False)"),
    ("tencent/Hunyuan-A13B-Instruct", {"num_shared_expert": [1] * 31 + [2]}, "num_shared_expert=[1, 1"),
    ("mygitphase/guhan-30b", {"moe_shared_expert_intermediate_size": 2048}, "moe_shared_expert_intermediate_size=2048 (only 1024)"),
    ("mygitphase/guhan-30b", {"router_dtype": "bf16"}, "router_dtype='bf16' (only 'fp32')"),
    ("mygitphase/guhan-30b", {"use_rmsnorm": False}, "use_rmsnorm=False (only True)"),
    ("mygitphase/guhan-105b", {"default_theta": 500_000.0}, "default_theta=500000.0 (only 10000)")])
def test_another_value_of_what_a_published_config_says_is_refused_by_name(repo: str, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        describe(CHECKPOINTS[repo]["config"] | setting)
    assert message in str(refusal.value)


def test_an_absent_switch_means_what_the_published_class_says() -> None:
    """configuration_grok1.py ties the matrices and configuration_decilm.py's base is 10000: files that are silent about them were published."""
    grok, deci = CHECKPOINTS["amd/grok-1-FP8-KV"]["config"], CHECKPOINTS["llmware/dragon-deci-7b-v0"]["config"]
    assert "tie_word_embeddings" not in grok
    assert "rope_theta" not in deci
    assert describe(grok).spec == describe(CHECKPOINTS["hpcai-tech/grok-1"]["config"]).spec
    assert describe(deci).spec == describe(deci | {"rope_theta": 10_000.0}).spec != describe(deci | {"rope_theta": 500_000.0}).spec


def test_another_architecture_under_the_same_model_type_is_refused_by_its_own_keys() -> None:
    """openPangu-R-72B calls itself PanguProMoE as well. Its config.json on the hub, read 2026-11-22, has these keys beside."""
    later = {"router_enable_expert_bias": True, "sandwich_norm": True, "param_sink_number": 128, "qk_nope_dim": 128, "qk_rope_dim": 64}
    with pytest.raises(PellucidError, match="param_sink_number=128, qk_nope_dim=128, qk_rope_dim=64"):
        describe(PANGU_PRO_MOE | later)

"""DeepSeek-V2 and V2-Lite: keys and values out of a latent, many small experts beside shared ones. https://arxiv.org/abs/2405.04434"""
from pellucid.errors import UnsupportedModel
from pellucid.families import _gguf, _gguf_derive, _parts, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ENDS, EXPERTS, LATENT, MLP, NORMS, SHARED
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in qwen3_moe.WEIGHTS.items() if not any(f"self_attn.{x}_" in k for x in "qkv")} | {
    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight",  # where q_lora_rank is null; else the next four
    **{f"model.layers.{{i}}.self_attn.q_a_proj.{p}": f"blocks.{{i}}.attn.q_down.{p}" for p in ("weight", "bias")},
    "model.layers.{i}.self_attn.q_a_layernorm.weight": "blocks.{i}.attn.q_norm.weight",
    "model.layers.{i}.self_attn.q_b_proj.weight": "blocks.{i}.attn.q_up.weight",
    **{f"model.layers.{{i}}.self_attn.kv_a_proj_with_mqa.{p}": f"blocks.{{i}}.attn.kv_down.{p}" for p in ("weight", "bias")},
    "model.layers.{i}.self_attn.kv_a_layernorm.weight": "blocks.{i}.attn.kv_norm.weight",
    "model.layers.{i}.self_attn.kv_b_proj.weight": to("blocks.{i}.attn.k_up.weight", "blocks.{i}.attn.v_up.weight", stacked="by_kv_head"),
    **{f"model.layers.{{i}}.mlp.shared_experts.{x}_proj.{p}": f"blocks.{{i}}.mlp.shared.{x}.{p}" for x in ("gate", "up", "down") for p in ("weight", "bias")},
}
GGUF = _gguf.Architecture(
    name="deepseek2", tensors=ENDS | NORMS | LATENT | MLP | EXPERTS | SHARED, when=lambda facts: facts.said.get("expert_gating_func") != 2,
    reads=_gguf.reads(_gguf.CORRECTED, less=("attention.head_count_kv", "attention.key_length")), given={"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    derive=lambda facts, raw: _gguf_derive.latent(facts, raw) | {"topk_method": "group_limited_greedy" if raw.get("n_group", 1) > 1 else "greedy"},
    of=_gguf_derive.LATENT, also=_gguf_derive.ALSO_LATENT, log_multiplier=0.1)


def spec(c: Config) -> DecoderSpec:
    c.expect("the authors' code would divide the shares by their sum, transformers never does, and no release says so", norm_topk_prob=False)
    c.expect(scoring_func="softmax", moe_layer_freq=1)
    c.inert(aux_loss_alpha="acts in training only", seq_aux="acts in training only", ep_size="says how experts are spread over devices")
    groups = {"n_groups": c("n_group", default=1), "n_active_groups": c("topk_group", default=1)}
    method = c("topk_method", default="greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: topk_method={method!r} (only 'greedy' and 'group_limited_greedy')")
    if method == "greedy":
        groups = {"n_groups": 1, "n_active_groups": 1}
    mlps = _parts.corrected_experts(c, scoring="softmax", correction=False, renormalize=False, group_score="best", **groups,
                                    bias=c("mlp_bias", default=False))
    mixer = _parts.latent_attention(c)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps])

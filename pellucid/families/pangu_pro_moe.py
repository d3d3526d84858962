"""Pangu Pro MoE (model_type PanguProMoE): as many experts from every group, shares with a learned gain. https://arxiv.org/abs/2505.21411

transformers does not have it: configuration_pangu_moe.py of the repository and pangu_moe.py of its authors' vllm-ascend are the sources.
"""
from pellucid.errors import BadConfig
from pellucid.families import _parts, pangu_embedded
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = pangu_embedded.WEIGHTS | {
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router.weight",
    "model.layers.{i}.mlp.router_scale": to("blocks.{i}.mlp.router.gain", lone=True),
    **{f"model.layers.{{i}}.mlp.experts.{{e}}.{x}_proj.weight": f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight" for x in ("gate", "up", "down")},
    **{f"model.layers.{{i}}.mlp.shared_expert.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")},
}


def spec(c: Config) -> DecoderSpec:
    n_experts, n_active = c("num_experts"), c("num_experts_per_tok", default=8)
    if n_experts % n_active:
        raise BadConfig(f"{c.where}: num_experts={n_experts} do not make num_experts_per_tok={n_active} groups of equal size. Which one is wrong?")
    mixer = _parts.attention(c, theta=16e6, heads_default=False, qkv_bias=True, out_bias=True)
    mixture = _parts.experts(c, _parts.feed_forward(c, d_ff=c("moe_intermediate_size")), renormalize=False, n_experts=n_experts, n_active=n_active,
                             n_groups=n_active, n_active_groups=n_active, spread=True, share_gain=True,
                             shared=_parts.feed_forward(c, d_ff=c("shared_expert_intermediate_size")))
    dense_at = c("mlp_only_layers", default=[])
    dense = _parts.feed_forward(c) if dense_at else mixture
    c.inert(intermediate_size="no layer is dense")
    mlps = [dense if i in dense_at else mixture for i in range(c("num_hidden_layers"))]
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps], eps=1e-5, family="pangu_pro_moe")

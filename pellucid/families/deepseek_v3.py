"""DeepSeek-V3 and R1: V2's attention; experts chosen by sigmoid scores with a correction, in groups. https://arxiv.org/abs/2412.19437"""
from dataclasses import replace

from pellucid.families import _gguf_derive, _parts, deepseek_v2
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import CORRECTION
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = deepseek_v2.WEIGHTS | {"model.layers.{i}.mlp.gate.e_score_correction_bias": "blocks.{i}.mlp.router.correction"}
GGUF = replace(deepseek_v2.GGUF, tensors={**deepseek_v2.GGUF.tensors, **CORRECTION}, when=lambda facts: facts.said.get("expert_gating_func") == 2,
               given={"n_group": 1, "topk_group": 1, **deepseek_v2.GGUF.given}, derive=_gguf_derive.latent)


def spec(c: Config) -> DecoderSpec:
    c.expect(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1)
    c.inert(aux_loss_alpha="acts in training only", seq_aux="acts in training only", ep_size="says how experts are spread over devices",
            num_mtp_layers="layers that draft tokens ahead, left out")
    mlps = _parts.corrected_experts(c, n_dense=3, n_groups=c("n_group", default=8), n_active_groups=c("topk_group", default=4),
                                    renormalize=c("norm_topk_prob", default=True), share_scale=float(c("routed_scaling_factor", default=2.5)))
    mixer = _parts.latent_attention(c, pairing="adjacent" if c("rope_interleave", default=True) else "half")
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps])

"""dots.llm1: Qwen3's attention; experts by corrected sigmoid scores, some shared, after a few dense layers. https://arxiv.org/abs/2506.05767"""
from pellucid.families import _gguf, _parts, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import CORRECTION, EXPERTS, QK_NORMS, SHARED, TENSORS
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = qwen3_moe.WEIGHTS | {
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "blocks.{i}.mlp.router.correction",
    **{f"model.layers.{{i}}.mlp.shared_experts.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")},
}
GGUF = _gguf.Architecture(name="dots1", tensors=TENSORS | QK_NORMS | EXPERTS | SHARED | CORRECTION, reads=_gguf.reads(_gguf.CORRECTED),
                          given={"sliding_window": None, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
                          present={"attention_bias": "blk.0.attn_q.bias"}, also=("expert_gating_func",))


def spec(c: Config) -> DecoderSpec:
    # The released files write the name of the method where the function's belongs; both mean sigmoid scores and a correction.
    named = c("scoring_func", default=None) == "noaux_tc"
    c.expect(scoring_func="noaux_tc" if named else "sigmoid", topk_method="noaux_tc", moe_layer_freq=1)
    c.inert(use_sliding_window="sliding_window and max_window_layers say it")
    norm = Norm(eps=c("rms_norm_eps", default=1e-6))
    mixers = [_parts.attention(c, heads_default=False, qk_norm=norm, window=window) for window in _parts.late_windows(c, used=True, first=62)]
    mlps = _parts.corrected_experts(c)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mixer, mlp in zip(mixers, mlps, strict=True)], norm=norm)

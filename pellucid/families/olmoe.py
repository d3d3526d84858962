"""OLMoE 1B-7B: 64 experts, 8 active, norms over whole queries and keys. https://arxiv.org/abs/2409.02060"""
from pellucid.families import _gguf, _parts, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, QK_NORMS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = qwen3_moe.WEIGHTS
GGUF = _gguf.Architecture(name="olmoe", tensors=without(TENSORS, *MLP) | QK_NORMS | EXPERTS, given={"norm_topk_prob": False},
                          reads=_gguf.reads({"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}))


def spec(c: Config) -> DecoderSpec:
    norm = Norm(eps=c("rms_norm_eps", default=1e-5))
    mixer = _parts.attention(c, clip=c("clip_qkv", default=None), qk_norm=norm, qk_norm_over="width")
    mlp = _parts.experts(c, _parts.feed_forward(c), renormalize=c("norm_topk_prob", default=False), n_experts=64, n_active=8)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), norm=norm)

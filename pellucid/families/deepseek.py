"""DeepSeekMoE 16B: Llama's attention, many small experts beside shared ones after the first layers. https://arxiv.org/abs/2401.06066

transformers does not have it: modeling_deepseek.py of deepseek-ai/deepseek-moe-16b-base is the source.
"""
import dataclasses

from pellucid.families import _gguf, _parts, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, PAIRED, SHARED, TENSORS
from pellucid.spec import DecoderSpec, Experts, Layer
from pellucid.weights.names import Rule, one_by_one

WEIGHTS: dict[str, Rule] = {k: v for k, v in one_by_one(qwen3_moe.WEIGHTS).items() if "_norm.weight" not in k} | {
    f"model.layers.{{i}}.mlp.shared_experts.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")}
GGUF = _gguf.Architecture(
    name="deepseek", tensors=TENSORS | PAIRED | EXPERTS | SHARED, given={"norm_topk_prob": False}, also=("expert_weights_scale",),
    reads=_gguf.reads({key: theirs for key, theirs in _gguf.CORRECTED.items() if "group" not in key and "weights" not in key},
                      less=("attention.key_length",)))


def spec(c: Config) -> DecoderSpec:
    c.expect(scoring_func="softmax")
    c.inert(aux_loss_alpha="acts in training only", seq_aux="acts in training only")
    dense, each = _parts.feed_forward(c), _parts.feed_forward(c, d_ff=c("moe_intermediate_size", default=1407))
    n_experts, n_shared = c("n_routed_experts", default=None), c("n_shared_experts", default=None)
    n_active = c("num_experts_per_tok", default=None if n_experts is None else ...)
    first, every, renormalize = c("first_k_dense_replace", default=0), c("moe_layer_freq", default=1), c("norm_topk_prob", default=False)
    mlp = dense if n_experts is None else Experts(
        n_experts=n_experts, n_active=n_active, renormalize=renormalize and n_active > 1, each=each,  # the share of one alone is never divided by itself
        shared=dataclasses.replace(each, d_ff=each.d_ff * n_shared) if n_shared else None)
    mixer = _parts.attention(c, heads_default=False, d_head=c("hidden_size") // c("num_attention_heads"))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp if i >= first and i % every == 0 else dense) for i in range(c("num_hidden_layers"))])

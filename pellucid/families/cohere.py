"""Command R and Aya: one LayerNorm without bias feeds both halves of a block, adjacent-pair rotary.

https://huggingface.co/CohereLabs/c4ai-command-r-v01
"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import QK_NORMS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {
    k: v for k, v in llama.WEIGHTS.items() if "post_attention" not in k and (".mlp." not in k or k.endswith(".weight"))
} | {
    # where use_qk_norm says so: Command R+
    f"model.layers.{{i}}.self_attn.{x}_norm.weight": f"blocks.{{i}}.attn.{x}_norm.weight" for x in "qk"
}
GGUF = _gguf.Architecture(name="command-r", tensors=without(TENSORS, "ffn_norm") | QK_NORMS,
                          reads=_gguf.reads({"logit_scale": "logit_scale"}, eps="layer_norm_eps"),
                          derive=lambda facts, raw: {"logit_scale": raw.get("logit_scale", 1.0)}, of={"logit_scale": lambda s: s.logit_scale},
                          present={"use_qk_norm": "blk.0.attn_q_norm.weight", "attention_bias": "blk.0.attn_q.bias"})


def spec(c: Config) -> DecoderSpec:
    norm = Norm(kind="layer", eps=c("layer_norm_eps", default=1e-5))
    qk_norm = norm if c("use_qk_norm", default=False) else None
    mixer = _parts.attention(c, theta=500_000.0, pairing="adjacent", qk_norm=qk_norm, qk_norm_over="each_head")
    # Command R was made for 128k tokens and says so here only; its max_position_embeddings stayed at 8192.
    n_ctx = c("model_max_length", "max_position_embeddings")
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), n_ctx=n_ctx, tied=True, norm=norm,
                          parallel=True, shared_norm=True, logit_scale=c("logit_scale", default=0.0625))

"""Mixtral: Mistral's block with 8 experts, 2 active. https://arxiv.org/abs/2401.04088"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, PAIRED, TENSORS, without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k} | {
    "model.layers.{i}.block_sparse_moe.gate.weight": to("blocks.{i}.mlp.router.weight", parameter="model.layers.{i}.mlp.gate.weight"),
    **{f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{theirs}.weight": to(f"blocks.{{i}}.mlp.experts.{{e}}.{ours}.weight",
                                                                                parameter=f"model.layers.{{i}}.mlp.experts.{together}")
       for theirs, ours, together in (("w1", "gate", "gate_up_proj"), ("w3", "up", "gate_up_proj"), ("w2", "down", "down_proj"))},
}
GGUF = _gguf.Architecture(name="llama", tensors=without(TENSORS | PAIRED, "ffn_gate", "ffn_up", "ffn_down") | EXPERTS,
                          reads=_gguf.reads({"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}),
                          when=lambda facts: bool(facts.said.get("expert_count")))


def spec(c: Config) -> DecoderSpec:
    c.expect(attention_bias=False)
    mixer = _parts.attention(c, theta=1e6, heads_default=False, window=c("sliding_window", default=None))
    mlp = _parts.experts(c, _parts.feed_forward(c), renormalize=True, n_experts=8, n_active=2)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), eps=1e-5)

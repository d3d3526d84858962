"""Granite 3 MoE: Granite's multipliers over a mixture of small experts. https://huggingface.co/ibm-granite/granite-3.0-1b-a400m-base"""
from pellucid.families import _gguf, _parts, granite, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, PAIRED, TENSORS, without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k} | {
    "model.layers.{i}.block_sparse_moe.router.layer.weight": to("blocks.{i}.mlp.router.weight",
                                                                parameter="model.layers.{i}.block_sparse_moe.router.weight"),
    "model.layers.{i}.block_sparse_moe.input_linear.weight": to(*(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight" for x in ("gate", "up")), all_experts=True,
                                                                parameter="model.layers.{i}.block_sparse_moe.experts.gate_up_proj"),
    "model.layers.{i}.block_sparse_moe.output_linear.weight": to("blocks.{i}.mlp.experts.{e}.down.weight", all_experts=True,
                                                                 parameter="model.layers.{i}.block_sparse_moe.experts.down_proj"),
}
GGUF = _gguf.Architecture(
    name="granitemoe", tensors=without(TENSORS | PAIRED, *MLP) | EXPERTS, of=granite.GGUF.of, derive=granite.GGUF.derive,
    reads=_gguf.reads(_gguf.MULTIPLIERS | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}),
    present={"attention_bias": "blk.0.attn_q.bias"}, when=lambda facts: not facts.said.get("expert_shared_feed_forward_length"))


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, scale=float(c("attention_multiplier", default=1.0)))
    mlp = _parts.experts(c, _parts.feed_forward(c), renormalize=True, n_experts=8, n_active=2)  # a softmax over the chosen
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), **_parts.multipliers(c))

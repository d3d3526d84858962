"""What a decoder takes in memory, from its spec alone: weights by format, cache, what a step and a training step hold beside them. No torch here.

Matrices go by their GGUF names, so that a mix of formats is planned tensor by tensor by the rules that write it (weights/mixes.py).
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from pellucid import cost
from pellucid.families import family
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, Matrix
from pellucid.weights.mixes import Facts, Plan, mix_name, packable, plan_mix

DENSE = {"f32": 4, "bf16": 2, "f16": 2}  # bytes a number
LADDER = ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k")  # from the widest to the narrowest
STEP_TOKENS = 512  # engine/engine.py: what a step computes at most
# The process itself: Python, torch and this package, with nothing loaded. Measured on Linux with torch 2.13: benchmarks/plan_cpu_202611.md.
RUNTIME_BYTES = 260_000_000
# Packed rows are put in the order that products read them in, with scales beside them: what they take of the file's bytes, measured there too.
REPACKED = 1.12
TABLE = "token_embd.weight"
NEARBY_BYTES = 1 << 16  # of a mapped file that come with a page that is read: Linux's fault_around_bytes, https://github.com/torvalds/linux/blob/v6.12/mm/memory.c
# Bytes of optimizer a trained number: AdamW's two moments in 32 bits, or in 8 with a scale for each 256. https://arxiv.org/abs/2110.02861
MOMENTS = {"adamw": 8, "adamw8bit": 2 + 8 / 256, "sgd": 0}
FLOAT32_BELOW = 200_000_000  # parameters: up to so many a whole model is trained in float32 where the recipe does not say
CHUNK_BYTES = 1 << 26  # of logits in float32 at a time: 512 tokens of a vocabulary of 32,000
TRAINING_BYTES = RUNTIME_BYTES  # the process itself, once an optimizer has made a step
NF4_BITS = 4 + 32 / 64  # of a matrix under QLoRA: a float32 scale for each 64 numbers, as they are held also where a file packs its scales too


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One matrix. shape: columns last. share: what of it one token reads; a table of embeddings is looked up, of experts the active ones are read."""

    shape: tuple[int, ...]
    share: float = 1.0
    experts: tuple[int, int] | None = None  # there are, are active

    def read(self, batch: int) -> float:
        """What of it a step of so many tokens reads: experts that tokens choose evenly and apart."""
        return self.share if self.experts is None else 1 - (1 - self.experts[1] / self.experts[0]) ** batch


@dataclass(frozen=True)
class Footprint:
    """A spec's memory."""

    spec: DecoderSpec

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every matrix by its GGUF name."""
        return matrices(self.spec)

    @cached_property
    def small(self) -> int:
        """Numbers of norms, biases and gains, which stay in float32 where matrices are packed."""
        return cost.parameters(self.spec) - sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def plan(self, format: str) -> Plan | None:
        """How a mix packs each matrix; None where all are kept in one dense format."""
        if format.lower() in DENSE:
            return None
        if (mix := mix_name(format)) not in self._plans:
            self._plans[mix] = _planned(self, mix)
        return self._plans[mix]

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        return {}  # of each mix, made once: a plan of places asks for every format of each

    def weight_bytes(self, format: str) -> int:
        """Bytes of the weights in one dense format, or packed in a mix. Raises BadRequest for a name that is neither."""
        plan = self.plan(format)
        return cost.parameters(self.spec) * DENSE[format.lower()] if plan is None else plan.total_bytes + 4 * self.small

    def held_bytes(self, format: str) -> int:
        """Bytes of the weights in memory: packed ones take some more than in the file."""
        return self.weight_bytes(format) if format.lower() in DENSE else int(REPACKED * self.weight_bytes(format))

    def looked_up_bytes(self, format: str, n_tokens: int) -> int:
        """Bytes of a packed file that tokens bring into memory by the rows of the table of embeddings, which are read there: at most all of it."""
        plan = self.plan(format)
        return 0 if plan is None else min(int(plan.n_bytes(TABLE)), n_tokens * NEARBY_BYTES)

    def read_bytes(self, format: str, batch: int = 1) -> float:
        """Bytes of weights that one step of so many rows reads."""
        plan = self.plan(format)
        if plan is None:
            return DENSE[format.lower()] * (sum(math.prod(t.shape) * t.read(batch) for t in self.tensors.values()) + self.small)
        return sum(plan.n_bytes(name) * t.read(batch) for name, t in self.tensors.items()) + 4 * self.small

    def cache_bytes(self, n_tokens: int, bytes_per_number: float = 2) -> int:
        """Bytes kept of one row of so many tokens; layers with a window keep what it shows, and no more."""
        kept = sum(mixer.n_cached * (n_tokens if isinstance(mixer, LatentAttention) else cost.seen(mixer, n_tokens)) for mixer in self.spec.mixers)
        return int(kept * bytes_per_number)

    def step_bytes(self, n_tokens: int = STEP_TOKENS, bytes_per_number: int = 4) -> int:
        """Bytes a step holds at its widest: the stream and one layer's inner states, or the stream and a row's logits."""
        inner = max((_inner(self.spec, layer) for layer in self.spec.layers), default=0)
        return bytes_per_number * (max(n_tokens * (2 * self.spec.d_model + inner), n_tokens * self.spec.d_model + self.spec.n_vocab))

    def largest_context(self, room: int, format: str, batch: int = 1, bytes_per_number: float = 2) -> int:
        """Tokens of a row, up to the model's own context, whose cache fits beside the weights; 0 where not one does."""
        left = room - RUNTIME_BYTES - self.held_bytes(format) - self.step_bytes()
        low, high = 0, self.spec.n_ctx
        while low < high:
            middle = (low + high + 1) // 2
            needed = batch * self.cache_bytes(middle, bytes_per_number) + self.looked_up_bytes(format, batch * middle)
            low, high = (middle, high) if needed <= left else (low, middle - 1)
        return low

    def peak_bytes(self, format: str, context: int, batch: int = 1, bytes_per_number: float = 2) -> int:
        """What a process holds at its peak: itself, the weights, a cache that is full, the embeddings of as many tokens, a step."""
        kept = batch * self.cache_bytes(context, bytes_per_number) + self.looked_up_bytes(format, batch * context)
        return RUNTIME_BYTES + self.held_bytes(format) + kept + self.step_bytes()

    def best_format(self, room: int, context: int, batch: int = 1) -> str | None:
        """The widest format with which this context fits; None where none does."""
        return next((format for format in LADDER if self.peak_bytes(format, context, batch) <= room), None)

    def adapter_numbers(self, rank: int) -> int:
        """Numbers of LoRA's two factors at every matrix of the blocks: rank x (rows + columns), per expert where there are several."""
        return sum(math.prod(t.shape[:-2]) * rank * (t.shape[-2] + t.shape[-1]) for name, t in self.tensors.items()
                   if name.startswith("blk.") and packable(name, t.shape))

    def training_bytes(self, method: str, *, n_tokens: int, optimizer: str = "adamw", rank: int = 16, recomputed: bool = False) -> dict[str, int]:
        """What a training step of n_tokens in one row holds, by part, as `pellucid tune` computes it. method: full, lora or qlora.

        Small models are trained in float32 and others in bfloat16 with masters; adapters are float32. What backward needs of every layer is kept,
        or, recomputed, its input and one layer's inside at a time (https://arxiv.org/abs/1604.06174). Of logits there are a few tokens' at a time,
        their gradient written over them.
        """
        everything, full = cost.parameters(self.spec), method == "full"
        trained = everything if full else self.adapter_numbers(rank)
        packed = sum(math.prod(t.shape) for name, t in self.tensors.items() if name.startswith("blk.") and packable(name, t.shape))
        width = 4 if full and everything <= FLOAT32_BELOW else 2
        masters = full and width == 2
        weights = width * everything if method != "qlora" else int(packed * NF4_BITS / 8) + 2 * (everything - packed)
        n = len(self.spec.layers)
        layers = sum(_kept(self.spec, layer, width, 0 if full else rank) for layer in self.spec.layers)
        if recomputed and n:
            layers = 2 * layers // n + n * width * self.spec.d_model  # of one layer its gradients too
        return {"weights": weights + (0 if full else 4 * trained), "gradients": (6 if masters else 4) * trained,
                "optimizer": int((MOMENTS[optimizer] + 4 * masters) * trained), "activations": n_tokens * (layers + 2 * width * self.spec.d_model),
                "logits": min(CHUNK_BYTES, 4 * n_tokens * self.spec.n_vocab), "runtime": TRAINING_BYTES}


def _planned(footprint: Footprint, mix: str) -> Plan:
    spec = footprint.spec
    heads = next((mixer for mixer in spec.mixers if isinstance(mixer, Attention)), None)
    experts = max((mlp.n_experts for layer in spec.layers for mlp in (layer.mlp, layer.beside) if isinstance(mlp, Experts)), default=0)
    facts = Facts(architecture=getattr(getattr(family(spec.family), "GGUF", None), "name", spec.family), n_layers=len(spec.layers),
                  n_heads=heads.n_heads if heads else 1, n_kv_heads=heads.n_kv_heads if heads else 1, n_experts=experts)
    return plan_mix(mix, {name: tensor.shape for name, tensor in footprint.tensors.items()}, facts)


def matrices(spec: DecoderSpec) -> dict[str, Tensor]:
    """Every matrix of a decoder by its GGUF name; norms, biases and gains are not among them."""
    D, V, E = spec.d_model, spec.n_vocab, spec.d_embed or spec.d_model
    named = getattr(getattr(family(spec.family), "GGUF", None), "tensors", ())
    fused = any("attn_qkv.weight" in name for name in named) and not any("attn_q.weight" in name for name in named)
    out = {TABLE: Tensor(shape=(V, E), share=float(spec.tied))}
    if not spec.tied:
        out["output.weight"] = Tensor(shape=(V, E))
    if spec.learned_positions:
        out["position_embd.weight"] = Tensor(shape=(spec.learned_positions, D), share=0.0)
    if spec.d_embed is not None:
        out |= {"embed_in.weight": Tensor(shape=(D, E)), "embed_out.weight": Tensor(shape=(E, D))}
    if (inputs := spec.layer_inputs) is not None:
        out["per_layer_token_embd.weight"] = Tensor(shape=(inputs.n_vocab, len(spec.layers) * inputs.d_input), share=0.0)
        out["per_layer_model_proj.weight"] = Tensor(shape=(len(spec.layers) * inputs.d_input, D))
    for i, layer in enumerate(spec.layers):
        out |= {f"blk.{i}.{name}.weight": tensor for name, tensor in _of_layer(D, layer, fused).items()}
        if inputs is not None:
            out |= {f"blk.{i}.inp_gate.weight": Tensor(shape=(inputs.d_input, D)), f"blk.{i}.proj.weight": Tensor(shape=(D, inputs.d_input))}
    return out


def _of_layer(D: int, layer: Layer, fused: bool) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    mixer = layer.mixer
    if isinstance(mixer, Matrix):
        out["attn_output"] = Tensor(shape=(D, D))
    elif isinstance(mixer, LatentAttention):
        H, L, R, Q = mixer.n_heads, mixer.d_latent, mixer.rope.d_rotary, mixer.d_query_latent
        queries = H * (mixer.d_plain + R)
        out |= {"attn_q_a": Tensor(shape=(Q, D)), "attn_q_b": Tensor(shape=(queries, Q))} if Q else {"attn_q": Tensor(shape=(queries, D))}
        out |= {"attn_kv_a_mqa": Tensor(shape=(L + R, D)), "attn_kv_b": Tensor(shape=(H * (mixer.d_plain + mixer.d_value), L)),
                "attn_output": Tensor(shape=(D, H * mixer.d_value))}
    elif mixer is not None:
        q, kv, made = mixer.n_heads * mixer.d_head, mixer.n_kv_heads * mixer.d_head, 0 if mixer.shares is not None else 2 - mixer.values_from_keys
        if fused and made == 2:
            out["attn_qkv"] = Tensor(shape=(q + 2 * kv, D))
        else:
            out["attn_q"] = Tensor(shape=(q, D))
            out |= {name: Tensor(shape=(kv, D)) for name in ("attn_k", "attn_v")[:made]}
        out["attn_output"] = Tensor(shape=(D, q))
    for mlp, more in ((layer.mlp, ""), (layer.beside, "_beside")):
        if isinstance(mlp, Experts):
            many = (mlp.n_experts, mlp.n_active)
            out[f"ffn_gate_inp{more}"] = Tensor(shape=(mlp.n_experts, D))
            out |= {f"{name}_exps{more}": Tensor(shape=(mlp.n_experts, *t.shape), experts=many) for name, t in _of_mlp(D, mlp.each).items()}
            out |= {f"{name}_shexp{more}": t for name, t in (_of_mlp(D, mlp.shared) if mlp.shared else {}).items()}
        elif mlp is not None:
            out |= {f"{name}{more}": t for name, t in _of_mlp(D, mlp).items()}
    return out


def _of_mlp(D: int, mlp: FeedForward | Matrix) -> dict[str, Tensor]:
    if isinstance(mlp, Matrix):
        return {"ffn_down": Tensor(shape=(D, D))}
    return {**({"ffn_gate": Tensor(shape=(mlp.d_ff, D))} if mlp.gated else {}), "ffn_up": Tensor(shape=(mlp.d_ff, D)), "ffn_down": Tensor(shape=(D, mlp.d_ff))}


def _inner(spec: DecoderSpec, layer: Layer) -> int:
    """Numbers a token has inside one layer at once: of attention its queries, keys, values and result, or of the feed-forward its widths."""
    return max(_widths(layer)) + spec.d_model


def _kept(spec: DecoderSpec, layer: Layer, width: int, rank: int) -> int:
    """Bytes a token leaves in one layer for backward, in numbers of this width: the stream and its normed self before both halves, and what is inside of them.

    Adapters of this rank read float32, so that narrower numbers leave copies. Held against what torch keeps: tests/catalog/test_footprint.py.
    """
    widths = _widths(layer)
    copies = 0 if not rank else (6 * spec.d_model + 4 * widths[-1] // 3) * (width < 4) + 6 * 7 * rank
    return width * (4 * spec.d_model + sum(widths)) + copies


def _widths(layer: Layer) -> list[int]:
    """Numbers a token has inside of attention, and of each feed-forward."""
    mixer, widths = layer.mixer, [0]
    if isinstance(mixer, LatentAttention):
        widths.append(mixer.n_heads * (2 * mixer.d_plain + 2 * mixer.rope.d_rotary + 2 * mixer.d_value))
    elif isinstance(mixer, Attention):
        widths.append(2 * (mixer.n_heads + mixer.n_kv_heads) * mixer.d_head)
    for mlp in (layer.mlp, layer.beside):
        each = mlp.each if isinstance(mlp, Experts) else mlp
        if isinstance(each, FeedForward):
            widths.append((mlp.n_active if isinstance(mlp, Experts) else 1) * (3 if each.gated else 2) * each.d_ff)
    return widths


"""The decoder: one file that runs every family in families/ and names none of them.

Shape letters, the same everywhere in this package:
  B batch · T query positions · S key positions · V vocabulary · D model · F feed-forward · C channels per head
  H query heads · K kv heads · G = H/K · R rotating channels · X experts · A experts active

Rows are ragged and lie one after another without padding: T counts all tokens of all rows. That one shape serves
a single prompt, a continuous batch, packed training and chunked losses.

    tokens or embeddings ─ embed ─ embed_in ─ + positions ─ embed_norm ─ block 0 … block L-1 ─ final_norm ─ embed_out ─> hidden ─ unembed ─> logits

Of these a model has what its spec says; most have neither embed_in, embed_norm nor embed_out.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pellucid.errors import BadRequest, UnknownAdapter, did_you_mean, nearest
from pellucid.model import rope as rotary
from pellucid.model.cache import Held, Memory, keep
from pellucid.model.experts import Beside, MixtureOfExperts
from pellucid.model.inputs import InputTable, TakeInput
from pellucid.model.latent import CompressedAttention
from pellucid.model.low_rank import Choice
from pellucid.model.mlp import Mlp, OneMatrix
from pellucid.model.parts import Embed, Normalize, Project, Rows, Weighted
from pellucid.model.positions import sinusoids
from pellucid.model.tables import Tables
from pellucid.ops.interface import Ops, Weight
from pellucid.ops.packed import BLOCK, left_over
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, Matrix, Mixer, Rope
from pellucid.weights.packed_rows import PackedWeight

KEPT = 512  # sets of a rope's frequencies, R/2 numbers each: under dynamic scaling every length has its own, and they would grow without end


def kept_in(name: str, dtype: torch.dtype) -> torch.dtype:
    """What the tensor of this name is kept in when the model runs in `dtype`: what corrects a choice of experts stays float32."""
    return torch.float32 if name.endswith(".router.correction") else dtype


class Unembed(Project):
    """Hidden states to logits (T, V) for the token that follows each position, in the model's dtype.

    Where activations are rounded to 8 bits, what that leaves over is rounded and multiplied too: this one product makes two
    fifths of all that rounding loses, and near ties are decided here (docs/LOG.md).
    `deterministic`: every token alone and in memory of its own, so that neither its neighbours nor its place moves a bit.
    """

    def __init__(self, ops: Ops, spec: DecoderSpec, *, deterministic: bool) -> None:
        super().__init__(ops, spec.d_embed or spec.d_model, spec.n_vocab, spec.unembed_bias)
        self.scale, self.softcap, self.unit, self.deterministic = spec.logit_scale, spec.logit_softcap, spec.unembed_unit, deterministic

    def forward(self, x_TD: Tensor, choice: Choice | None = None) -> Tensor:
        if self.deterministic and x_TD.shape[0] > 1:
            own = [None] * len(x_TD) if choice is None else [choice.take(t_1) for t_1 in torch.arange(len(x_TD), device=x_TD.device).split(1)]
            return torch.cat([self.forward(x_1D.clone(), choice_1) for x_1D, choice_1 in zip(x_TD.split(1), own, strict=True)])
        logits_TV = self._of_unit_rows(x_TD) if self.unit else self._corrected(x_TD, super().forward(x_TD, choice))
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        return logits_TV if self.softcap is None else self.softcap * torch.tanh(logits_TV / self.softcap)

    def _corrected(self, x_TD: Tensor, logits_TV: Tensor) -> Tensor:
        rest_TD = left_over(x_TD, self.weight, self.ops.activations)
        return logits_TV if rest_TD is None else (logits_TV + self.ops.matmul(rest_TD, self.weight)).to(logits_TV.dtype)

    def _of_unit_rows(self, x_TD: Tensor) -> Tensor:
        """The same as if the weight's rows were scaled to length one, which they are not: the weight stays what is trained and saved."""
        parts = self.weight.parts(BLOCK) if isinstance(self.weight, PackedWeight) else [self.weight]
        lengths = [torch.linalg.vector_norm(self.ops.unpack(part, torch.float32), dim=-1) for part in parts]
        length_V = torch.cat(lengths).clamp_min(1e-12)
        logits_TV = (self._corrected(x_TD, self.ops.matmul(x_TD, self.weight)).float() / length_V).to(x_TD.dtype)
        return logits_TV if self.bias is None else logits_TV + self.bias


class SoftmaxAttention(nn.Module):
    """Queries, keys and values projected, normalized, rotated; then attention inside each row. Keys and values may be those of an earlier layer.

    lends: later layers read the keys and values of this one.
    """

    def __init__(self, ops: Ops, d_model: int, mixer: Attention, index: int, *, lends: bool) -> None:
        super().__init__()
        self.ops, self.mixer, self.index, self.lends = ops, mixer, index, lends
        H, K, C = mixer.n_heads, mixer.n_kv_heads, mixer.d_head
        makes = mixer.shares is None
        self.q = Project(ops, d_model, H * C, mixer.qkv_bias)
        self.k = Project(ops, d_model, K * C, mixer.qkv_bias) if makes else None
        self.v = Project(ops, d_model, K * C, mixer.qkv_bias) if makes and not mixer.values_from_keys else None
        self.o = Project(ops, H * C, d_model, mixer.out_bias)
        self._slopes: Tensor | None = None
        self.q_norm = self.k_norm = None
        if mixer.qk_norm is not None:
            shape = {"head": lambda n: (C,), "each_head": lambda n: (n, C), "width": lambda n: (n * C,)}[mixer.qk_norm_over]
            self.q_norm = Normalize(ops, mixer.qk_norm, *shape(H))
            if makes:
                self.k_norm = Normalize(ops, mixer.qk_norm, *shape(K))
        self.v_norm = nn.Identity() if mixer.value_norm is None else Normalize(ops, mixer.value_norm, C)
        self.sinks = nn.Parameter(torch.empty(H)) if mixer.sinks else None

    def forward(self, x_TD: Tensor, tables: Tables, rows: Rows, cache: Memory | None) -> Tensor:
        mixer = self.mixer
        q_THC = self._turned(self.q(x_TD, tables.choice), self.q_norm, tables)
        if mixer.temperature is not None:
            q_THC = (q_THC * tables[mixer.temperature][0]).to(q_THC.dtype)
        held = self._keys_values(x_TD, tables, rows, cache) if mixer.shares is None else tables.lent[mixer.shares]
        if self.lends:
            tables.lent[self.index] = held
        out_THC = held.attend(self.ops, q_THC, *held.parts, rows.lengths, scale=mixer.scale, window=mixer.window, softcap=mixer.softcap,
                              chunk=mixer.chunk, sinks_H=self.sinks, slopes_H=self.slopes(x_TD.device), causal=mixer.causal)
        return self.o(out_THC.flatten(1), tables.choice)

    def _keys_values(self, x_TD: Tensor, tables: Tables, rows: Rows, cache: Memory | None) -> Held:
        """What the rows now hold of keys and values, those of the new tokens last."""
        assert self.k is not None  # who shares them does not come here
        k_TE = self.k(x_TD, tables.choice)
        v_TKC = self.v_norm(self._split(k_TE if self.v is None else self.v(x_TD, tables.choice)))
        k_TKC = self._turned(k_TE, self.k_norm, tables)
        return keep(cache, self.index, rows, k_TKC, v_TKC)

    def _turned(self, x_TE: Tensor, norm: nn.Module | None, tables: Tables) -> Tensor:
        """Queries or keys of every head, normalized where the mixer says so, and rotated."""
        mixer = self.mixer
        x_THC = self._split(norm(x_TE) if norm is not None and mixer.qk_norm_over == "width" else x_TE)
        by_head = norm if mixer.qk_norm_over != "width" else None
        if by_head is not None and not mixer.qk_norm_late:
            x_THC = by_head(x_THC)
        if mixer.rope is not None:
            x_THC = self.ops.rotate(x_THC, *tables[mixer.rope], pairing=mixer.rope.pairing)
        return by_head(x_THC) if by_head is not None and mixer.qk_norm_late else x_THC

    def _split(self, x_TE: Tensor) -> Tensor:
        """Clamped, and split into heads: (T, H, C)."""
        clip = self.mixer.clip
        return (x_TE if clip is None else x_TE.clamp(-clip, clip)).unflatten(-1, (-1, self.mixer.d_head))

    def slopes(self, device: torch.device) -> Tensor | None:
        """ALiBi's slopes, (H,), float32, made once and kept on the device."""
        if self.mixer.alibi is not None and (self._slopes is None or self._slopes.device != device):
            self._slopes = torch.tensor(self.mixer.alibi.slopes(self.mixer.n_heads), device=device)
        return self._slopes


class Block(nn.Module):
    """One layer: two sublayers, each adding what it computes to the residual stream.

        sequential   x ─ x + attn(norm(x)) ─ x + mlp(norm(x))        either may be missing
        parallel     x ─ x + attn(norm(x)) + mlp(norm(x))

    A mixture may stand beside mlp (see Beside), and an input of the layer's own be taken in at the end (see TakeInput).
    `norm_in` and `norm_out` say on which side of a sublayer the norms stand; `norm_stream` puts them on the line between the sublayers instead:

        before       x ─ norm ─ x + attn(x) ─ norm ─ x + mlp(x)
        after        x ─ x + attn(x) ─ norm ─ x + mlp(x) ─ norm
    """

    def __init__(self, ops: Ops, spec: DecoderSpec, layer: Layer, index: int, *, deterministic: bool) -> None:
        super().__init__()
        self.spec, self.layer = spec, layer

        def norm(used: bool) -> nn.Module:
            return Normalize(ops, spec.norm, spec.d_model) if used else nn.Identity()

        self.scale = nn.Parameter(torch.empty(1)) if layer.scaled else None
        if layer.mixer is not None:
            self.attn_norm = norm(spec.norm_in or spec.norm_stream is not None)
            self.attn = self._mixer(ops, spec, layer.mixer, index)
            self.attn_out_norm = norm(spec.norm_out)
        if layer.mlp is not None:
            self.mlp_norm = norm((spec.norm_in and not spec.shared_norm) or spec.norm_stream is not None)
            self.mlp = self._mlp(ops, spec, layer.mlp, deterministic)
            self.mlp_out_norm = norm(spec.norm_out)
        self.beside = None if layer.beside is None else Beside(ops, spec, layer.beside, deterministic=deterministic)
        self.input = None if spec.layer_inputs is None else TakeInput(ops, spec, spec.layer_inputs)

    def _mixer(self, ops: Ops, spec: DecoderSpec, mixer: Mixer | Matrix, index: int) -> nn.Module:
        if isinstance(mixer, Matrix):
            return OneMatrix(ops, spec.d_model)
        if isinstance(mixer, LatentAttention):
            return CompressedAttention(ops, spec.d_model, mixer, index)
        lends = any(isinstance(other, Attention) and other.shares == index for other in spec.mixers)
        return SoftmaxAttention(ops, spec.d_model, mixer, index, lends=lends)

    def _mlp(self, ops: Ops, spec: DecoderSpec, mlp: FeedForward | Experts | Matrix, deterministic: bool) -> nn.Module:
        if isinstance(mlp, Experts):
            return MixtureOfExperts(ops, spec.d_model, mlp, deterministic=deterministic)
        return OneMatrix(ops, spec.d_model) if isinstance(mlp, Matrix) else Mlp(ops, spec.d_model, mlp)

    def forward(self, x_TD: Tensor, tables: Tables, rows: Rows, cache: Memory | None, input_TP: Tensor | None = None) -> Tensor:
        """input_TP: what this layer reads beside the stream, where the spec says that it does."""
        x_TD = self.sublayers(x_TD, tables, rows, cache)
        if self.input is not None:
            x_TD = x_TD + self.input(x_TD, input_TP, tables.choice)
        return x_TD if self.scale is None else x_TD * self.scale

    def sublayers(self, x_TD: Tensor, tables: Tables, rows: Rows, cache: Memory | None) -> Tensor:
        if self.spec.norm_stream == "before":
            x_TD = self.attn_norm(x_TD)
            x_TD = self.mlp_norm(x_TD + self.scaled(self.attn(x_TD, tables, rows, cache)))
            return x_TD + self.scaled(self.mlp(x_TD, tables.choice))
        if self.spec.norm_stream == "after":
            x_TD = self.attn_norm(x_TD + self.scaled(self.attn(x_TD, tables, rows, cache)))
            return self.mlp_norm(x_TD + self.scaled(self.mlp(x_TD, tables.choice)))
        if self.spec.parallel:
            h_TD = self.attn_norm(x_TD)
            attn_TD = self.scaled(self.attn_out_norm(self.attn(h_TD, tables, rows, cache)))
            h_TD = h_TD if self.spec.shared_norm else self.mlp_norm(x_TD)
            return x_TD + attn_TD + self.scaled(self.mlp_out_norm(self.mlp(h_TD, tables.choice)))
        if self.layer.mixer is not None:
            x_TD = x_TD + self.scaled(self.attn_out_norm(self.attn(self.attn_norm(x_TD), tables, rows, cache)))
        if self.layer.mlp is not None:
            mlp_TD = self.mlp(self.mlp_norm(x_TD), tables.choice)
            x_TD = x_TD + self.scaled(self.mlp_out_norm(mlp_TD if self.beside is None else self.beside(x_TD, mlp_TD, tables.choice)))
        return x_TD

    def scaled(self, x_TD: Tensor) -> Tensor:
        return x_TD if self.spec.residual_scale == 1.0 else x_TD * self.spec.residual_scale


class Decoder(nn.Module):
    """A whole model. Parameters are uninitialized until something loads or initializes them.

    `deterministic`: every row is computed alone, so that its result does not depend, bitwise, on the rows beside it. Slower
    for batches: each row reads all the weights. adapters: those that are attached, by name (model/adapters.py); each row of a pass says which it takes.
    devices: each layer's, where not all are the embedding's; the stream then goes where the next layer is. layer_ops: what each layer computes with there.
    recomputed: backward has each layer's input and computes the layer once more, where it would have all that was computed.
    """

    def __init__(self, spec: DecoderSpec, ops: Ops, *, deterministic: bool = False, layer_ops: Sequence[Ops] | None = None) -> None:
        super().__init__()
        self.devices: tuple[torch.device, ...] | None = None
        self.recomputed = False
        self.spec, self.ops, self.deterministic = spec, ops, deterministic
        self.adapters: dict[str, Any] = {}
        d_embed = spec.d_embed or spec.d_model
        self.embed = Embed(ops, spec.n_vocab, d_embed)
        self.embed_in = Project(ops, d_embed, spec.d_model, bias=False) if spec.d_embed is not None else nn.Identity()
        self.pos_embed = Embed(ops, spec.learned_positions, spec.d_model) if spec.learned_positions else None
        self.embed_norm = Normalize(ops, spec.norm, spec.d_model) if spec.embed_norm else nn.Identity()
        self.inputs = InputTable(ops, spec, spec.layer_inputs) if spec.layer_inputs is not None else None
        self.blocks = nn.ModuleList(Block(layer_ops[i] if layer_ops else ops, spec, layer, i, deterministic=deterministic)
                                    for i, layer in enumerate(spec.layers))
        self.final_norm = Normalize(ops, spec.norm, spec.d_model) if spec.final_norm else nn.Identity()
        self.embed_out = Project(ops, spec.d_model, d_embed, bias=False) if spec.d_embed is not None else nn.Identity()
        self.unembed = Unembed(ops, spec, deterministic=deterministic)
        if spec.tied:
            self.unembed.weight = self.embed.weight
        self._reach = reach(spec)
        self._by_length = rotary.by_length(spec)
        self._ropes = {mixer.rope for mixer in spec.mixers if mixer.rope is not None}
        self._temperatures = {mixer.temperature for mixer in spec.mixers if isinstance(mixer, Attention) and mixer.temperature is not None}
        self._frequencies: dict[tuple[Rope, int], tuple[Tensor, float]] = {}

    def weights(self) -> dict[str, Weight]:
        """Every tensor by its name, dense and packed, without those of adapters; of a tied model the embedding only."""
        packed = {f"{name}.weight": module.weight for name, module in self.named_modules()
                  if isinstance(module, Weighted) and isinstance(module.weight, PackedWeight)}
        out: dict[str, Weight] = {name: p for name, p in self.named_parameters() if ".adapters." not in name} | packed
        if self.spec.tied:
            out.pop("unembed.weight", None)
        return out

    @property
    def n_parameters(self) -> int:
        """Numbers that its weights mean."""
        return sum(math.prod(weight.shape) for weight in self.weights().values())

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights as they are held."""
        return sum(weight.nbytes for weight in self.weights().values())

    @property
    def n_on_device(self) -> int:
        """How many layers are elsewhere than on the CPU."""
        devices = self.devices or (self.embed.weight.device,) * len(self.spec.layers)
        return sum(device != torch.device("cpu") for device in devices)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.devices is not None:
            self.devices = tuple(fn(torch.empty(0, device=device)).device for device in self.devices)
        if self.spec.tied:  # packed, the two were sent each for itself
            self.unembed.weight = self.embed.weight
        return self

    def forward(self, tokens: Tensor, positions_T: Tensor | None = None, rows: Rows | None = None, cache: Memory | None = None) -> Tensor:
        """Hidden states (T, D) after the final norm, ready for `unembed`; as wide as the embedding, where that has a width of its own.

        tokens: ids (T,), int64, or embeddings (T, D) to be used in their place. positions_T defaults to each row's
        next positions: after what its cache row holds. rows defaults to one row of all tokens.
        """
        rows = rows or Rows.of(tokens.shape[0])
        if sum(rows.lengths) != tokens.shape[0]:
            raise BadRequest(f"rows count {sum(rows.lengths)} tokens and {tokens.shape[0]} were given", field="rows")
        if self.inputs is not None and tokens.is_floating_point():
            raise BadRequest("embeddings were given in place of token ids, and this model looks its layers' inputs up by id. Give the ids.", field="tokens")
        if cache is not None and not self.spec.causal:
            raise BadRequest("tokens of this model see those that follow them: a row is computed whole, without a cache", field="cache")
        self.check_adapters(rows.adapters)
        self._check_reach(positions_T, rows, cache)
        lengths = self._lengths(positions_T, rows, cache) if self._by_length else ()
        if positions_T is None:
            positions_T = self.next_positions(rows, cache, tokens.device)
        if self.deterministic and len(rows.lengths) > 1:
            each = [Rows((n,), (slot,), rows.adapters[b : b + 1]) for b, (n, slot) in enumerate(zip(rows.lengths, rows.slots, strict=True))]
            return torch.cat([self.forward(*alone, cache) for alone in zip(tokens.split(rows.lengths), positions_T.split(rows.lengths), each, strict=True)])
        choice = Choice.of(rows.adapters, rows.lengths, tokens.device)
        x_TD = tokens if tokens.is_floating_point() else self.embed(tokens)
        if self.spec.embed_scale != 1.0:
            # Rounded to the stream's dtype first: bfloat16 models were trained with the rounded factor.
            x_TD = x_TD * torch.tensor(self.spec.embed_scale, dtype=x_TD.dtype, device=x_TD.device)
        x_TD = self.embed_in(x_TD) if isinstance(self.embed_in, nn.Identity) else self.embed_in(x_TD, choice)
        if self.pos_embed is not None:
            x_TD = x_TD + self.pos_embed(positions_T + self.spec.position_offset)
        if self.spec.sinusoidal_positions:
            x_TD = x_TD + sinusoids(positions_T + self.spec.position_offset, self.spec.d_model).to(x_TD.dtype)
        inputs_TLP = None if self.inputs is None else self.inputs(tokens, x_TD, choice)
        x_TD = self.embed_norm(x_TD)
        tables = self.tables(positions_T, rows, lengths, choice)
        for i, block in enumerate(self.blocks):
            if self.devices is not None:
                x_TD, tables = x_TD.to(self.devices[i]), tables.on(self.devices[i])
            given = (x_TD, tables, rows, cache) if inputs_TLP is None else (x_TD, tables, rows, cache, inputs_TLP[:, i].to(x_TD.device))
            x_TD = checkpoint(block, *given, use_reentrant=False) if self.recomputed and torch.is_grad_enabled() else block(*given)
        x_TD = x_TD.to(tokens.device)
        if cache is not None:
            cache.advance(rows.slots, rows.lengths)
        x_TD = self.final_norm(x_TD)
        return self.embed_out(x_TD) if isinstance(self.embed_out, nn.Identity) else self.embed_out(x_TD, choice)

    def check_adapters(self, names: Iterable[str | None]) -> None:
        """Raises UnknownAdapter for a name that no attached adapter has, with the nearest names."""
        for name in names:
            if name is not None and name not in self.adapters:
                there = f"There {'is' if len(self.adapters) == 1 else 'are'} {', '.join(self.adapters)}" if self.adapters else "None is loaded"
                raise UnknownAdapter(f"adapter {name!r} is not loaded.{did_you_mean(nearest(name, self.adapters))} {there}; load one with "
                                     f"load(..., adapters={{NAME: PATH}}) or load_adapter(NAME, PATH)", nearest(name, self.adapters))

    def _check_reach(self, positions_T: Tensor | None, rows: Rows, cache: Memory | None) -> None:
        """Raises BadRequest for a position this model has no number for. Most models have no such limit."""
        if self._reach is None or not rows.lengths:
            return
        if positions_T is None:
            n = max((cache.lengths[slot] if cache else 0) + n for slot, n in zip(rows.slots, rows.lengths, strict=True))
        else:
            n = int(positions_T.max()) + 1
        limit, why = self._reach
        if n > limit:
            raise BadRequest(f"a row of {n} tokens, and this model goes to {limit}: {why}. Shorten the input.", field="prompt")

    def _lengths(self, positions_T: Tensor | None, rows: Rows, cache: Memory | None) -> Sequence[int]:
        """How long each row is, or is planned to be: what decides how it turns."""
        if cache is not None:
            return cache.planned_lengths(rows.slots, rows.lengths)
        return rows.lengths if positions_T is None else [int(part.max()) + 1 for part in positions_T.split(rows.lengths)]

    def tables(self, positions_T: Tensor, rows: Rows, lengths: Sequence[int], choice: Choice | None = None) -> Tables:
        """cos and sin of every rope in use and the factors of every temperature, once for all layers."""
        out = Tables(choice)
        for temperature in self._temperatures:
            out[temperature] = rotary.sharpness(temperature, positions_T),
        for rope in self._ropes:
            frequency, gain = self.frequencies(rope, rows, lengths, positions_T.device)
            out[rope] = rotary.tables(frequency, gain, positions_T, rope.pairing)
        return out

    def next_positions(self, rows: Rows, cache: Memory | None, device: torch.device) -> Tensor:
        """(T,): each row counts on from what its cache row holds."""
        starts = [cache.lengths[slot] if cache else 0 for slot in rows.slots]
        return torch.cat([torch.arange(start, start + n, device=device) for start, n in zip(starts, rows.lengths, strict=True)])

    def frequencies(self, rope: Rope, rows: Rows, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, float]:
        """The rope's frequencies, (R/2,), or (T, R/2) where rows turn by different ones, and its gain."""
        stand_for = [rope.scaling.turns_as(n) for n in lengths] if isinstance(rope.scaling, rotary.ByLength) else []
        distinct = list(dict.fromkeys(stand_for)) or [0]
        if len(distinct) == 1:
            return self._kept(rope, distinct[0], device)
        frequency_NR = torch.stack([self._kept(rope, n, device)[0] for n in distinct])
        index_T = torch.tensor([distinct.index(n) for n in stand_for]).repeat_interleave(torch.tensor(rows.lengths))
        return frequency_NR[index_T.to(device)], self._kept(rope, distinct[0], device)[1]

    def _kept(self, rope: Rope, length: int, device: torch.device) -> tuple[Tensor, float]:
        """The rope's frequencies in rows of this length, computed once and kept on the device."""
        key = rope, length
        if key not in self._frequencies or self._frequencies[key][0].device != device:
            if len(self._frequencies) >= KEPT:
                self._frequencies.clear()
            frequency_R, gain = rotary.frequencies(rope, length)
            self._frequencies[key] = frequency_R.to(device), gain
        return self._frequencies[key]


def reach(spec: DecoderSpec) -> tuple[int, str] | None:
    """How many tokens of a row the decoder can compute at all, and why no more; None where nothing stops it."""
    return (spec.learned_positions - spec.position_offset, "its table of learned positions ends there") if spec.learned_positions else None

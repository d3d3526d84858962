"""A whole pass of a decoder as a flat list of native steps, written from the spec when an engine is made: one Python call runs it.

The decoder stays the definition. Facts that no step is written from are declined by name (plan_scope.py); hooks, training and whatever
wants to see inside use the decoder. The stream is float32 whatever the weights are in, and no result depends, bitwise, on what is computed beside it.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from pellucid.model.decoder import Block, Decoder, SoftmaxAttention
from pellucid.model.experts import Beside, MixtureOfExperts
from pellucid.model.mlp import Mlp
from pellucid.model.parts import Normalize, Project, Rows
from pellucid.model.plan_scope import check, few, is_dense, is_plain, is_whole, short
from pellucid.model.rope import by_length
from pellucid.ops.attention import KINDS
from pellucid.ops.interface import Weight
from pellucid.ops.panels import Panels, n_threads, native
from pellucid.spec import Attention, FeedForward, LogTemperature, Rope, Temperature
from pellucid.weights.packed_rows import PackedRows


class Kept(Protocol):
    """Where keys and values are kept: the engine's pages."""

    lengths: dict[int, int]  # tokens that each row holds
    pools: list[list[Tensor]]  # of each layer: keys and values (P, N, K, C), or the numbers of 8 bits and the scales of both

    def places(self, rows: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """Of every group and row the pages it holds, and the first position on them."""
        ...

    def group(self, layer: int) -> int:
        """Which group a layer's pages are of."""
        ...

    def planned_lengths(self, rows: Sequence[int], q_lengths: Sequence[int]) -> Sequence[int]: ...

    def advance(self, rows: Sequence[int], q_lengths: Sequence[int]) -> None: ...


class Plan:
    """The steps of one decoder over one cache. Raises Declined where there are none.

    whole: it is the faster way for passes of any length, else for those of up to `few` tokens, or whose rows all end within `short`. finite: whether
    the last pass computed numbers.
    """

    def __init__(self, decoder: Decoder, cache: Kept, page: int) -> None:
        check(decoder)
        self.decoder, self.spec, self.cache = decoder, decoder.spec, cache
        self._plan = native.Plan(decoder.ops.variant, page)
        self._held: list[object] = []  # what the steps read: memory whose address they have stays where it is, whoever else lets go of it
        self._buffers: dict[tuple[str, int], int] = {}
        self._ropes: dict[Rope, int] = {}
        self._turning: list[Tensor] = []  # the frequencies of each rope, where they are the same for all rows
        self._groups: dict[tuple[object, ...], int] = {}
        self.finite = True
        self._lengths = by_length(decoder.spec)
        self._write()
        pools = [[pool.data_ptr() for pool in of] for of in cache.pools]
        # keys, values and their scales; of layers that keep nothing none
        self._pools = torch.tensor([[of[0], of[2], of[1], of[3]] if len(of) == 4 else [*of, 0, 0] if of else [0] * 4 for of in pools])
        self._kept = next((str(of[0].dtype).removeprefix("torch.") for of in cache.pools if of), "float32")
        self._state = self._weights()
        self._hooks = [hooks for module in decoder.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._hooks += [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]

    # A pass

    @property
    def watched(self) -> bool:
        """Whether somebody wants to see what modules compute."""
        return any(self._hooks)

    @property
    def current(self) -> bool:
        """Whether the decoder's modules and weights are those that the steps were written from."""
        return self._state == self._weights()

    def forward(self, ids: Sequence[int], rows: Rows) -> Tensor:
        """See `Decoder.forward`: hidden states (T, D), float32. Each row goes on from what the cache holds of it."""
        cache, slots = self.cache, rows.slots
        starts = [cache.lengths[slot] for slot in slots]
        tables, bases = cache.places(slots)
        frequencies = self._frequencies(rows)
        ids_T = torch.tensor(ids)
        embeddings_TD = None if self._looks_up else self.decoder.embed(ids_T).float().contiguous()
        out_TD = torch.empty(len(ids), self._width)
        native.set_threads(n_threads())
        self.finite = self._plan.run(
            ids_T.data_ptr(), 0 if embeddings_TD is None else embeddings_TD.data_ptr(), list(zip(rows.lengths, starts, strict=True)), tables,
            bases, [frequency.data_ptr() for frequency in frequencies], self._pools.data_ptr(), self._kept, self._last, out_TD.data_ptr())
        cache.advance(slots, rows.lengths)
        return out_TD

    @property
    def goes_on(self) -> bool:
        """Whether `go_on` can be asked: ids are all that a pass needs of Python, and logits are neither scaled nor capped."""
        return self._looks_up and not self._lengths and self.spec.logit_scale == 1.0 and self.spec.logit_softcap is None

    def go_on(self, ids: Sequence[int], slots: Sequence[int], n: int, stops: Sequence[int]) -> list[list[int]]:
        """n passes in which every row goes on with its likeliest id; of each pass those (rows). ids: what each row begins with, not in the cache yet.

        Fewer where a row met one of the stops, which is the last id to come then, or where something is not a number. Wants pages for all n.
        """
        cache = self.cache
        tables, bases = cache.places(slots)
        frequencies = [frequency.data_ptr() for frequency in self._turning for _ in slots]
        native.set_threads(n_threads())
        came: list[list[int]] = self._plan.go_on(ids, [cache.lengths[slot] for slot in slots], tables, bases, frequencies, self._pools.data_ptr(), self._kept,
                                                 self._last, self._unembed, n, stops)
        cache.advance(slots, [len(came)] * len(slots))
        return came

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        """See `Unembed`: logits (T, V), float32."""
        x_TD, out_TV = hidden_TD.float().contiguous(), torch.empty(len(hidden_TD), self.spec.n_vocab)
        assert x_TD.shape[1] == self._width
        native.set_threads(n_threads())
        self._plan.unembed(self._unembed, x_TD.data_ptr(), len(x_TD), self.spec.logit_scale, self.spec.logit_softcap or 0.0, out_TV.data_ptr())
        return out_TV

    def likeliest(self, hidden_TD: Tensor) -> list[int]:
        """Of each row where its largest logit is, the first of equal ones; -1 where not all are numbers. For models that neither scale nor cap logits."""
        x_TD = hidden_TD.float().contiguous()
        assert x_TD.shape[1] == self._width
        native.set_threads(n_threads())
        out: list[int] = self._plan.likeliest(self._unembed, x_TD.data_ptr(), len(x_TD))
        return out

    def seconds(self) -> dict[str, float]:
        """Seconds spent in steps of each kind since this was last asked; they are counted from the first time on."""
        spent = dict(self._plan.seconds())
        self._plan.measured = True
        return spent

    def _frequencies(self, rows: Rows) -> list[Tensor]:
        """Of every rope and row."""
        if not self._lengths:
            return [frequency for frequency in self._turning for _ in rows.slots]
        lengths, cpu = self.cache.planned_lengths(rows.slots, rows.lengths), torch.device("cpu")
        return [self.decoder.frequencies(rope, Rows((1,), (0,)), (n,), cpu)[0] for rope in self._ropes for n in lengths]

    def _weights(self) -> list[tuple[object, ...]]:
        """Every module, weight, place where its numbers lie and count of changes to them."""
        return [(id(module), *((id(weight), _place(weight), getattr(weight, "_version", 0)) for weight in _own(module))) for module in self.decoder.modules()]

    # How it is written

    def _write(self) -> None:
        spec, decoder, plan = self.spec, self.decoder, self._plan
        self.whole, self.few, self.short = is_whole(decoder), few(decoder), short(decoder)
        embed, d_embed = decoder.embed.weight, spec.d_embed or spec.d_model
        self._looks_up = isinstance(embed, Panels) or is_dense(embed) or _in_rows(embed)
        x, last = self._buffer("x", spec.d_model), self._buffer("embed", d_embed)
        # Rounded to the stream's dtype first, as the decoder does.
        factor = float(torch.tensor(spec.embed_scale, dtype=embed.dtype))
        plan.embed(self._matrix(embed) if self._looks_up else -1, x if spec.d_embed is None else last, factor)
        if isinstance(decoder.embed_in, Project):
            self._multiply(last, (decoder.embed_in, x))
        if decoder.pos_embed is not None:
            plan.place(self._matrix(decoder.pos_embed.weight), x, spec.position_offset)
        self._normalize(decoder.embed_norm, x, x)
        for i, block in enumerate(decoder.blocks):
            self._write_block(i, block, x)  # type: ignore[arg-type]
        self._last = self._normalize(decoder.final_norm, x, self._buffer("h", spec.d_model))
        self._width = spec.d_model
        if isinstance(decoder.embed_out, Project):
            self._multiply(self._last, (decoder.embed_out, last))
            self._last, self._width = last, d_embed
        self._unembed = self._matrix(decoder.unembed.weight, decoder.unembed.bias)

    def _write_block(self, i: int, block: Block, x: int) -> None:
        """The lines of `Block.sublayers`, written down."""
        spec, plan = self.spec, self._plan
        h, y = (self._buffer(name, spec.d_model) for name in ("h", "y"))
        add = spec.residual_scale
        if spec.norm_stream == "before":
            self._normalize(block.attn_norm, x, x)
        if block.layer.mixer is not None:
            read = x if spec.norm_stream is not None else self._normalize(block.attn_norm, x, h)
            self._write_attention(i, block.attn, read, y)  # type: ignore[arg-type]
            self._normalize(block.attn_out_norm, y, y)
            if spec.parallel:
                read = read if spec.shared_norm else self._normalize(block.mlp_norm, x, h)
                z = self._buffer("z", spec.d_model)
                self._write_mlp(block.mlp, read, z)  # type: ignore[arg-type]
                self._normalize(block.mlp_out_norm, z, z)
                plan.add(x, y, add)
                plan.add(x, z, add)
            else:
                plan.add(x, y, add)
        if block.layer.mlp is not None and not spec.parallel:
            read = self._normalize(block.attn_norm if spec.norm_stream == "after" else block.mlp_norm, x, h if spec.norm_stream is None else x)
            self._write_mlp(block.mlp, read, y)  # type: ignore[arg-type]
            if block.beside is not None:
                self._write_beside(block.beside, x, y)
            self._normalize(block.mlp_out_norm, y, y)
            plan.add(x, y, add)
            if spec.norm_stream == "after":
                self._normalize(block.mlp_norm, x, x)
        if block.scale is not None:
            plan.scale(x, self._floats(block.scale))

    def _write_attention(self, i: int, attn: SoftmaxAttention, x: int, y: int) -> None:
        plan, mixer = self._plan, attn.mixer
        q, out = (self._buffer(name, mixer.n_heads * mixer.d_head) for name in ("q", "attn"))
        k = v = -1
        outs = [(attn.q, q)]
        if attn.k is not None:
            k = v = self._buffer("k", mixer.n_kv_heads * mixer.d_head)
            outs.append((attn.k, k))
        if attn.v is not None:
            v = self._buffer("v", mixer.n_kv_heads * mixer.d_head)
            outs.append((attn.v, v))
        self._multiply(x, *outs)
        kept = i if mixer.shares is None else mixer.shares
        facts = mixer.window or 0, mixer.chunk or 0, mixer.n_heads, mixer.n_kv_heads, mixer.d_head, self.cache.group(kept)
        if facts not in self._groups:
            self._groups[facts] = plan.group(*facts)
        group = self._groups[facts]
        plan.heads(q, k, v, kept, group, mixer.n_heads, mixer.n_kv_heads, mixer.d_head, mixer.clip or 0.0, self._head_norm(attn.q_norm, mixer),
                   self._head_norm(attn.k_norm, mixer), self._head_norm(attn.v_norm, None), self._rope(mixer.rope), _sharpen(mixer))
        slopes = attn.slopes(torch.device("cpu"))
        plan.attend(q, out, kept, group, mixer.scale, mixer.softcap or 0.0, self._floats(attn.sinks), self._floats(slopes))
        self._multiply(out, (attn.o, y))

    def _write_mlp(self, mlp: Mlp | MixtureOfExperts, x: int, y: int) -> None:
        if isinstance(mlp, MixtureOfExperts):
            return self._write_experts(mlp, x, y)
        plan, facts = self._plan, mlp.mlp
        up = self._buffer("up", facts.d_ff)
        gate = up if mlp.gate is None else self._buffer("gate", facts.d_ff)
        self._multiply(x, (mlp.up, up), *([] if mlp.gate is None else [(mlp.gate, gate)]))
        plan.gate(gate, -1 if mlp.gate is None else up, up, *_gate(facts))
        self._multiply(up, (mlp.down, y))
        return None

    def _write_beside(self, beside: Beside, x: int, y: int) -> None:
        """The line of `Beside.forward`; y: what the feed-forward wrote."""
        h, out = (self._buffer(name, self.spec.d_model) for name in ("beside_h", "beside"))
        self._normalize(beside.mlp_norm, y, y)
        self._write_experts(beside.mixture, self._normalize(beside.norm, x, h), out, x)
        self._normalize(beside.out_norm, out, out)
        self._plan.add(y, out, 1.0)

    def _write_experts(self, mixture: MixtureOfExperts, x: int, y: int, read: int | None = None) -> None:
        """The lines of `MixtureOfExperts.forward`. Routers compute in float32 with unpacked weights there: they do here."""
        plan, facts, router = self._plan, mixture.spec, mixture.router
        logits, read = self._buffer("logits", facts.n_experts), x if read is None else read
        if router.norm is not None:
            read = self._normalize(router.norm, read, self._buffer("routed", self.spec.d_model))
        plan.multiply(read, [(self._matrix(self.decoder.ops.unpack(router.weight, torch.float32), router.bias), logits)])
        plan.route(logits, facts.n_experts, facts.n_active, facts.n_groups, facts.n_active_groups, facts.scoring == "sigmoid", facts.group_score == "best_two",
                   facts.spread, facts.renormalize, facts.router_scale, facts.share_scale, self._floats(router.correction), self._floats(router.gain))
        experts = [[-1 if part is None else self._matrix(part.weight, part.bias) for part in (each.up, each.gate, each.down)]  # type: ignore[union-attr,arg-type]
                   for each in mixture.experts]
        plan.experts(x, y, experts, facts.n_active, facts.each.d_ff, facts.scale_input, *_gate(facts.each))
        if mixture.shared is None:
            return
        shared = self._buffer("shared", self.spec.d_model)
        self._write_mlp(mixture.shared, x, shared)
        if mixture.shared_gate is None:
            plan.add(y, shared, 1.0)
        else:
            self._multiply(x, (mixture.shared_gate, gate := self._buffer("shared_gate", 1)))
            plan.add_shared(y, shared, gate)

    def _multiply(self, x: int, *outs: tuple[Project, int]) -> None:
        self._plan.multiply(x, [(self._matrix(project.weight, project.bias), out) for project, out in outs])

    def _normalize(self, norm: nn.Module, x: int, out: int) -> int:
        """Which buffer holds the result: `out`, or x itself where there is no norm."""
        if not isinstance(norm, Normalize):
            return x
        self._plan.normalize(x, out, self._norm(norm))
        return out

    def _norm(self, norm: Normalize) -> dict[str, object]:
        facts = norm.norm
        return {"layer": facts.kind == "layer", "eps": facts.eps, "offset": facts.offset, "weight": self._floats(norm.weight), "bias": self._floats(norm.bias)}

    def _head_norm(self, norm: nn.Module | None, mixer: Attention | None) -> dict[str, object] | None:
        """mixer: None for values, whose norm is always over a head."""
        if not isinstance(norm, Normalize):
            return None
        over = "head" if mixer is None else mixer.qk_norm_over
        return {**self._norm(norm), "each": over == "each_head", "whole": over == "width", "late": mixer is not None and mixer.qk_norm_late}

    def _rope(self, rope: Rope | None) -> int:
        if rope is None:
            return -1
        if rope not in self._ropes:
            frequency_R, gain = self.decoder.frequencies(rope, Rows((1,), (0,)), (), torch.device("cpu"))
            self._turning.append(frequency_R)
            self._ropes[rope] = self._plan.rope(rope.d_rotary, gain, rope.pairing == "adjacent")
        return self._ropes[rope]

    def _buffer(self, name: str, width: int) -> int:
        if (name, width) not in self._buffers:
            self._buffers[name, width] = self._plan.buffer(width)
        return self._buffers[name, width]

    def _matrix(self, weight: Weight, bias: Tensor | None = None) -> int:
        n_rows, n_columns = weight.shape
        self._held.append(weight.detach() if isinstance(weight, Tensor) else weight)  # a parameter itself may be given other memory
        if isinstance(weight, Panels):
            return self._plan.packed(weight.format, weight.bytes.data_ptr(), n_rows, n_columns, self._floats(bias))
        if is_plain(weight):
            return self._plan.dense("float32", weight.bytes.data_ptr(), n_rows, n_columns, self._floats(bias))  # type: ignore[union-attr]
        if isinstance(weight, PackedRows):
            return self._plan.rows(weight.format, weight.bytes.data_ptr(), n_rows, n_columns)
        return self._plan.dense(KINDS[weight.dtype], weight.data_ptr(), n_rows, n_columns, self._floats(bias))  # type: ignore[union-attr]

    def _floats(self, x: Tensor | None) -> int:
        """Where these few numbers lie as float32; 0 for none."""
        if x is None:
            return 0
        self._held.append(floats := x.detach().float().contiguous())
        return floats.data_ptr()


def _gate(facts: FeedForward) -> tuple[str, float, float, float]:
    return facts.act, facts.slope, facts.limit or 0.0, facts.up_offset


def _in_rows(weight: Weight) -> bool:
    """Rows of a file that the kernels look up: those that are never multiplied by are not repacked. In another dtype the decoder rounds them."""
    return isinstance(weight, PackedRows) and weight.format in native.formats() and weight.dtype == torch.float32 and weight.bytes.is_contiguous()


def _own(module: nn.Module) -> Iterable[object]:
    """A module's weights, packed ones too."""
    return (*module._parameters.values(), module.__dict__.get("weight"))


def _place(weight: object) -> int:
    """Where it lies: `.to` and `.data` put other numbers under the same parameter, and count no change."""
    return weight.data_ptr() if isinstance(weight, Tensor) else 0


def _sharpen(mixer: Attention) -> tuple[int, list[float]]:
    match mixer.temperature:
        case None:
            return 0, [0.0] * 4
        case Temperature(every=every, by=by, first=first):
            return 1, [every, by, first, 0.0]
        case LogTemperature(original=original):
            return 2, [0.0, 0.0, 0.0, torch.tensor(original).double().log().item()]

"""The native plan of a whole pass beside the decoder, its definition: every family, every changed fact, any company."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pellucid.engine.group import PAGE
from pellucid.engine.pages import PagedCache
from pellucid.engine.store import CacheDtype, pack16
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows, hold
from pellucid.model.plan import Plan
from pellucid.model.plan_scope import ACTS, UNDERSTOOD, Declined, check, describe, understood
from pellucid.ops.choose import choose
from pellucid.ops.panels import native
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows
from tests.families.build import TOLERANCE, build, error, logits, ours, refused
from tests.families.cases import CASES
from tests.families.conftest import one_thread  # noqa: F401, a fixture: tiny models
from tests.families.mutants import Refused, mutants

pytestmark = pytest.mark.native

DECLINED = ("LatentAttention", "Matrix", "Attention.causal", "DecoderSpec.unembed_unit", "DecoderSpec.sinusoidal_positions",
            "DecoderSpec.layer_inputs", "FeedForward.act", "FeedForward.xielu")
FOLLOWED = ("llama-yarn_ramp", "gemma2-caps", "olmo2-biases", "cohere2-mixed", "gpt_neox-redpajama", "qwen-logn", "opt-unnormalized", "gemma4_text-plain",
            "qwen2_moe-released", "dots1-groups", "llama4_text-mixed", "gpt_oss-released", "pangu_pro_moe-released", "gemma4_text-26b")


def cache_of(spec: DecoderSpec, dtype: torch.dtype = torch.float32, store: CacheDtype = "same") -> PagedCache:
    return PagedCache(spec, n_bytes=10**8, max_rows=4, step_tokens=64, dtype=dtype, store=store)


class Run:
    """Rows that go on pass by pass."""

    def __init__(self, decoder: Decoder, store: CacheDtype = "same") -> None:
        self.cache = cache_of(decoder.spec, decoder.embed.weight.dtype, store)
        self.plan = Plan(decoder, self.cache, PAGE)
        self.done: dict[int, int] = {}

    def begin(self, ids: Sequence[int]) -> int:
        slot = self.cache.open(ids, len(ids), reuse=0)
        assert slot is not None
        self.done[slot] = 0
        return slot

    def hidden(self, *rows: tuple[int, Sequence[int], int]) -> list[Tensor]:
        """The next n tokens of rows (slot, ids, n) in one pass: their hidden states."""
        ids: list[int] = []
        for slot, of, n in rows:
            start = self.done[slot]
            assert self.cache.reserve(slot, start + n)
            ids += of[start : start + n]
        out = self.plan.forward(ids, Rows(tuple(n for _, _, n in rows), tuple(slot for slot, _, _ in rows)))
        for slot, of, n in rows:
            self.done[slot] += n
            self.cache.settle(slot, of, self.done[slot])
        return list(out.split([n for _, _, n in rows]))


def in_passes(decoder: Decoder, tokens_T: Tensor, *sizes: int, store: CacheDtype = "same") -> Tensor:
    """The logits of one row: passes of these sizes, then token by token."""
    run, ids = Run(decoder, store), tokens_T.tolist()
    slot = run.begin(ids)
    parts = [*sizes, *[1] * (len(ids) - sum(sizes))]
    return torch.cat([run.plan.unembed(run.hidden((slot, ids, n))[0]) for n in parts])


def declined(decoder: Decoder) -> str | None:
    try:
        check(decoder)
    except Declined as why:
        return str(why)
    return None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_family_by_the_plan_or_declined_by_name(case):
    built = build(case)
    tensors = {name: tensor.contiguous() for name, tensor in built.tensors.items()}
    decoder = ours(built.spec, tensors, ops="native")
    if (why := declined(decoder)) is not None:
        assert why.startswith(DECLINED)
        return
    found = in_passes(decoder, built.tokens_T, 5, 17)
    assert error(found, built.logits_TV) < TOLERANCE
    assert error(found, logits(ours(built.spec, tensors), built.tokens_T)) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in FOLLOWED], ids=str)
def test_every_changed_fact_is_followed_or_declined(case):
    """What the decoder computes under a mutated spec, the plan of that spec computes too: with the decoder's own mutants no fact is overlooked."""
    built, tokens_T = build(case), build(case).tokens_T[:26]
    tensors = {name: tensor.contiguous() for name, tensor in built.tensors.items()}
    followed, missed = 0, []
    for label, mutant in mutants(built.spec):
        if isinstance(mutant, Refused):
            continue
        expected: list[Tensor] = []
        if refused(lambda expected=expected, mutant=mutant: expected.append(logits(ours(mutant, tensors, ops="fused"), tokens_T))):
            continue
        decoder = ours(mutant, tensors, ops="native")
        if declined(decoder) is not None:
            continue
        found = in_passes(decoder, tokens_T, 11, 3)
        followed += 1
        numbers = bool(expected[0].isfinite().all())  # a norm turned negative, say: then neither computes any. Capped logits are small beside their rounding
        if not (error(found, expected[0]) < 2 * TOLERANCE if numbers else not found.isfinite().all()):
            missed.append(label)
    assert followed > 20
    assert not missed


def small(**facts: object) -> DecoderSpec:
    mixer = Attention(n_heads=6, n_kv_heads=3, d_head=14, scale=0.3, rope=Rope(theta=1e4, d_rotary=14))
    narrow = dataclasses.replace(mixer, window=40)
    layers = (Layer(mixer=mixer, mlp=FeedForward(d_ff=72)), Layer(mixer=narrow, mlp=FeedForward(d_ff=80)))
    return DecoderSpec(**{"family": "llama", "n_vocab": 101, "n_ctx": 700, "d_model": 48, "layers": layers, "norm": Norm(eps=1e-5)} | facts)


def random_decoder(spec: DecoderSpec, dtype: torch.dtype = torch.float32) -> Decoder:
    decoder, noise = Decoder(spec, choose("native")), torch.Generator().manual_seed(3)
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=noise) * (0.4 if parameter.ndim < 2 else 1.4 * parameter.shape[-1] ** -0.5)
    return decoder.requires_grad_(False).eval().to(dtype)


def random_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(101, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_long_rows_in_any_company_are_the_same_bits(monkeypatch):
    """Past pages, windows and several softmaxes; in chunks, beside others, with more threads."""
    decoder, long, short = random_decoder(small()), random_ids(600), random_ids(90, 1)
    alone, other = (torch.cat([run.hidden((slot, ids, 1))[0] for _ in ids]) for run in [Run(decoder)] for ids in (long, short) for slot in [run.begin(ids)])
    expected = logits(ours(decoder.spec, decoder.state_dict()), torch.tensor(long))
    run = Run(decoder)
    assert error(run.plan.unembed(alone), expected) < TOLERANCE
    for n in (1, 3):
        monkeypatch.setattr("pellucid.model.plan.n_threads", lambda n=n: n)
        run = Run(decoder)
        a, b = run.begin(long), run.begin(short)
        passes = [[(a, long, 70)], [(b, short, 1), (a, long, 1)], [(a, long, 33), (b, short, 63)], *[[(b, short, 1), (a, long, 1)]] * 26, [(a, long, 470)]]
        parts: dict[int, list[Tensor]] = {a: [], b: []}
        for rows in passes:
            for (slot, _, _), hidden in zip(rows, run.hidden(*rows), strict=True):
                parts[slot].append(hidden)
        assert torch.equal(torch.cat(parts[a]), alone)
        assert torch.equal(torch.cat(parts[b]), other)
        logits_TV = run.plan.unembed(alone)
        assert all(torch.equal(run.plan.unembed(alone[t : t + 1]), logits_TV[t : t + 1]) for t in (0, 100, 599))


@pytest.mark.parametrize("format", native.formats() if native else [])
def test_rows_looked_up_as_the_file_has_them_are_the_decoders_bits(format, monkeypatch):
    decoder, ids = random_decoder(small(d_model=256)), random_ids(9)
    n_bytes = 256 // BY_NAME[format].n_numbers * BY_NAME[format].n_bytes
    noise = torch.Generator().manual_seed(5)
    hold(decoder.embed, "weight", PackedRows(torch.randint(0x20, 0x3c, (101, n_bytes), dtype=torch.uint8, generator=noise), format))
    found = []
    for _ in range(2):
        run = Run(decoder)
        found.append((run.plan._looks_up, run.hidden((run.begin(ids), ids, 9))[0]))
        monkeypatch.setattr("pellucid.model.plan._in_rows", lambda weight: False)  # the decoder looks them up
    assert [looks_up for looks_up, _ in found] == [True, False]
    assert found[0][1].isfinite().all()
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize(("dtype", "store", "tolerance"), [
    (torch.float32, "same", TOLERANCE),
    (torch.bfloat16, "same", 2e-2),  # the decoder rounds its stream to 8 bits after every operation, and the plan never
    (torch.float16, "same", 3e-3),  # 11 bits
    (torch.float32, "float16", 2e-3),  # keys and values of 11 bits
    (torch.float32, "int8", 3e-2)], ids=str)  # keys and values of 8 bits
def test_kinds_of_weights_and_pages(variant, dtype, store, tolerance):
    decoder = random_decoder(small(), dtype)
    decoder.ops.variant = variant
    tokens_T = torch.tensor(random_ids(70))
    found = in_passes(decoder, tokens_T, 40, 7, store=store)
    assert found.dtype == torch.float32
    exact = {name: tensor.float() for name, tensor in decoder.state_dict().items()}
    assert error(found, logits(ours(decoder.spec, exact), tokens_T)) < tolerance
    if dtype != torch.float32:  # nearer to what the weights mean than the decoder in their own precision
        assert error(found, logits(ours(decoder.spec, exact), tokens_T)) < error(logits(decoder, tokens_T), logits(ours(decoder.spec, exact), tokens_T))


@pytest.mark.parametrize("variant", native.variants() if native else [])
def test_float16_pages_hold_what_torch_rounds_to_and_no_number_past_the_end(variant):
    """Subnormal numbers, ties and what rounds past 65,504 among the first layer's values, which depend on no page."""
    decoder, ids = random_decoder(small(norm=Norm(eps=0.0))), list(range(70))
    edges = torch.tensor([65519.996, -65519.996, 65520.0, -65520.0, 65504.0, -1e30, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 6.1e-5, 2049.0, 2051.0, -0.0, 0.1])
    decoder.embed.weight.fill_(1.0)  # whose norm is ones: values are sums of a row of the weight, here of one number
    decoder.blocks[0].attn_norm.weight.fill_(1.0)
    decoder.blocks[0].attn.v.weight.zero_()[: len(edges), 0] = edges
    decoder.ops.variant = variant
    pools = []
    for store in ("same", "float16"):
        run = Run(decoder, store)
        run.hidden((run.begin(ids), ids, len(ids)))
        pools.append(run.cache.pools[0])
    assert torch.equal(pools[0][1][0, 0].flatten()[: len(edges)], edges)
    for exact, short in zip(*pools, strict=True):
        assert short.dtype == torch.float16
        assert torch.equal(short.view(torch.int16).where(~short.isnan(), 0), pack16(exact).view(torch.int16).where(~short.isnan(), 0))
        assert torch.equal(short.isnan(), exact.abs() >= 65520)
    assert pools[1][1].isnan().sum() == 3 * len(ids)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("store", ["same", "float16", "int8"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])  # by 6, 3 and 1 query
def test_keys_read_where_they_lie_and_keys_turned_around_give_the_same_bits(variant, store, n_kv_heads):
    """Heads of whole vectors, past a softmax, in pages of every kind: a prompt token by token and in one pass."""
    mixer = dataclasses.replace(small().layers[0].mixer, n_kv_heads=n_kv_heads, d_head=16, rope=Rope(theta=1e4, d_rotary=16))
    decoder, ids = random_decoder(small(layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=72)),) * 2)), random_ids(300)
    decoder.ops.variant = variant
    run = Run(decoder, store)
    a, b, c = (run.begin(ids) for _ in range(3))
    [whole] = run.hidden((a, ids, 300))
    singles, fives = torch.cat([run.hidden((b, ids, 1))[0] for _ in ids]), torch.cat([run.hidden((c, ids, 5))[0] for _ in range(60)])
    assert torch.equal(whole, singles)
    assert torch.equal(whole, fives)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("facts", [{}, {"limit": 7.0}, *({"act": act} for act in ACTS)], ids=str)
def test_what_is_no_number_goes_through_every_gate(variant, facts):
    """Limits and soft-caps are comparisons, which a number that is none fails either way."""
    for broken in ("gate", "up"):
        mlp = FeedForward(d_ff=72, **facts)
        layers = tuple(dataclasses.replace(layer, mlp=mlp) for layer in small().layers)
        decoder = random_decoder(small(layers=layers, logit_softcap=5.0))
        decoder.ops.variant = variant
        run, ids = Run(decoder), random_ids(3)
        assert run.plan.unembed(run.hidden((run.begin(ids), ids, 3))[0]).isfinite().all()
        getattr(decoder.blocks[1].mlp, broken).weight[5] = torch.nan
        run = Run(decoder)
        hidden = run.hidden((run.begin(ids), ids, 3))[0]
        assert not run.plan.finite
        assert run.plan.unembed(hidden).isnan().all()


def test_a_fact_that_no_step_knows_is_declined_by_name():
    for spec, why in ((small(unembed_unit=True), "DecoderSpec.unembed_unit=True"), (small(sinusoidal_positions=True), "DecoderSpec.sinusoidal_positions=True"),
                      (small(layers=(Layer(mixer=None, mlp=FeedForward(d_ff=8, act="mish")),)), "FeedForward.act='mish'")):
        with pytest.raises(Declined, match=why):
            understood(spec)
        assert describe(Decoder(spec, choose("native"))).startswith(f" · layer by layer: no plan knows {why}")
    assert describe(Decoder(small(), choose("native"))) == " · one native plan a pass of up to 16 tokens"
    assert describe(Decoder(small(), choose("fused"))) == ""
    turned = random_decoder(small())
    turned.blocks[0].mlp.up.weight.data = turned.blocks[0].mlp.up.weight.data.T.contiguous().T
    assert declined(turned) == "weights column by column"
    with pytest.raises(Declined, match="the backend fused"):
        Plan(Decoder(small(), choose("fused")), cache_of(small()), PAGE)


def test_large_weights_of_16_bits_are_torchs_from_fewer_tokens_on(monkeypatch):
    short, half, exact = (random_decoder(small(), dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32))
    monkeypatch.setattr("pellucid.model.plan_scope.LARGE", 1000)
    assert describe(half) == " · one native plan a pass of up to 4 tokens"
    assert describe(exact) == " · one native plan a pass of up to 16 tokens"
    for variant in native.variants():  # tiles multiply bfloat16, where there are any
        short.ops.variant = half.ops.variant = variant
        tiled = " of up to 32 tokens or within the first 512 of each text"
        assert describe(short) == f" · one native plan a pass{tiled if native.tiled(variant) else ' of up to 4 tokens'}"
        assert describe(half) == " · one native plan a pass of up to 4 tokens"
    assert not any(map(native.tiled, native.variants()[1:]))
    monkeypatch.setattr("pellucid.model.plan_scope.MEDIUM", 1000)  # torch multiplies many rows with large weights as fast
    short.ops.variant = native.variants()[0]
    assert describe(short) == f" · one native plan a pass of up to {32 if native.tiled(short.ops.variant) else 4} tokens"


@pytest.mark.parametrize("variant", native.variants() if native else [])
def test_bfloat16_rows_are_the_same_bits_in_passes_of_any_length(variant):
    """Few rows read weights where they lie, many of them laid out; widths that end inside of a tile, weights that begin between two lines."""
    mixer = Attention(n_heads=5, n_kv_heads=5, d_head=14, scale=0.3)
    layers = tuple(Layer(mixer=mixer, mlp=FeedForward(d_ff=width)) for width in (93, 128))
    decoder = random_decoder(small(d_model=70, layers=layers), torch.bfloat16)
    decoder.ops.variant = variant
    for parameter in decoder.parameters():
        moved = torch.empty(parameter.numel() + 4, dtype=parameter.dtype)[4:].view(parameter.shape)
        parameter.data = moved.copy_(parameter)
    tokens_T = torch.tensor(random_ids(150))
    alone = in_passes(decoder, tokens_T)
    for sizes in ((150,), (40, 17, 33), (16, 64, 65)):
        assert torch.equal(in_passes(decoder, tokens_T, *sizes), alone)


def test_a_later_field_is_declined_until_a_step_knows_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(FeedForward):
        schedule: int = 3

    UNDERSTOOD[Later] = UNDERSTOOD[FeedForward]
    try:
        understood(Later(d_ff=4))
        with pytest.raises(Declined, match=r"Later\.schedule=4"):
            understood(Later(d_ff=4, schedule=4))
    finally:
        del UNDERSTOOD[Later]
    assert set(ACTS) < set(choose("reference").activate.__globals__["ACTIVATIONS"])

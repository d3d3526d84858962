"""Every backend against the reference over one grid, and the reference against arithmetic written out by hand."""
from __future__ import annotations

import cmath
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from pellucid.errors import BadRequest
from pellucid.families._config import ACTIVATIONS as SPELLINGS
from pellucid.model.rope import tables
from pellucid.ops.choose import BACKENDS, choose
from pellucid.ops.fused import BLOCK, FEW
from pellucid.ops.interface import Pages
from pellucid.ops.reference import ACTIVATIONS, Reference
from pellucid.ops.triton import backend
from pellucid.spec import Experts, FeedForward

REFERENCE = Reference()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
C, V = 14, 10  # channels of queries and keys, and of values: a backend may not take them for the same

# (query lengths, key lengths): prefill, decode, resumed prefill, even batches and ragged ones
ROWS = [((5,), (5,)), ((1,), (9,)), ((3,), (9,)), ((4, 4), (4, 4)), ((1, 1, 1), (7, 7, 7)), ((2, 2), (8, 8)),
        ((3, 1, 5), (3, 8, 6)), ((1, 1), (4, 12)), ((2, 2), (2, 9)), ((1,), (1,))]


def routing(**facts: Any) -> Experts:
    return Experts(**{"n_experts": 8, "renormalize": False, "each": FeedForward(d_ff=1), **facts})


ROUTINGS = [routing(n_active=n, scoring=scoring, renormalize=renormalize, share_scale=scale, n_groups=groups, n_active_groups=active, group_score=by)
            for n, (groups, active, by) in [(1, (1, 1, "best")), (3, (1, 1, "best")), (8, (1, 1, "best")), (2, (4, 1, "best")),
                                            (3, (4, 2, "best")), (3, (4, 2, "best_two")), (4, (2, 1, "best_two")), (3, (4, 4, "best_two"))]
            for scoring, renormalize, scale in itertools.product(("softmax", "sigmoid"), (False, True), (1.0, 2.5))]
ROUTINGS += [routing(n_active=n, n_groups=groups, n_active_groups=groups, spread=True, renormalize=renormalize)
             for n, groups in [(4, 4), (4, 2), (8, 4), (2, 2)] for renormalize in (False, True)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(found: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int) -> None:
    """`expected` is float32, of the same inputs; `roundings` counts those of the result's own size that the backend may make."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 16 * torch.finfo(dtype).eps  # sums in another order
    assert float((found.float() - expected).abs().max()) <= roundings * eps * float(expected.abs().max().clamp_min(1e-3))


@pytest.fixture(params=BACKENDS)
def ops(request):
    return choose(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "K"), [(6, 3), (4, 1), (5, 5)])
def test_attend(ops, H, K, dtype):
    slopes = random(H, seed=3).abs()
    for (q_lengths, k_lengths), window, softcap, slopes_H in itertools.product(ROWS, (None, 1, 3, 50), (None, 2.0), (None, slopes)):
        q, k, v = (random(n, heads, width, dtype=dtype, seed=i) for i, (n, heads, width) in enumerate(
            [(sum(q_lengths), H, C), (sum(k_lengths), K, C), (sum(k_lengths), K, V)]))
        how = {"q_lengths": q_lengths, "k_lengths": k_lengths, "scale": 0.4, "window": window, "softcap": softcap, "slopes_H": slopes_H}
        near(ops.attend(q, k, v, **how), REFERENCE.attend(q.float(), k.float(), v.float(), **how), dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("q_lengths", "k_lengths"), [((BLOCK + 44,), (BLOCK + 74,)), ((BLOCK + 1, BLOCK + 1), (BLOCK + 1, BLOCK + 1))])
def test_attend_with_slopes_is_the_same_in_blocks_of_queries(ops, q_lengths, k_lengths, dtype):
    q, k, v = (random(n, heads, C, dtype=dtype, seed=i) for i, (n, heads) in enumerate([(sum(q_lengths), 4), (sum(k_lengths), 2), (sum(k_lengths), 2)]))
    for window in (None, 70):
        how = {"q_lengths": q_lengths, "k_lengths": k_lengths, "scale": 0.4, "window": window, "softcap": None,
               "slopes_H": torch.tensor([0.5, 0.01, 0.1, 0.004])}
        near(ops.attend(q, k, v, **how), REFERENCE.attend(q.float(), k.float(), v.float(), **how), dtype, 2)


def test_attend_with_slopes_in_float64_is_the_reference(ops):
    for T in (1, 5, 40, 70):
        q, k, v = (random(T, heads, C, dtype=torch.float64, seed=i) for i, heads in enumerate((4, 2, 2)))
        how = {"q_lengths": [T], "k_lengths": [T], "scale": 0.4, "window": None, "softcap": None, "slopes_H": torch.tensor([0.5, 0.01, 0.1, 0.004])}
        assert (ops.attend(q, k, v, **how) - REFERENCE.attend(q, k, v, **how)).abs().max() < 1e-6  # biases are rounded to float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "K"), [(6, 3), (4, 1), (5, 5)])
def test_attend_in_chunks_with_sinks_and_with_slopes(ops, H, K, dtype):
    variants = itertools.product(ROWS, (None, 2), (None, 1, 3, 50), (None, random(H, dtype=dtype, seed=3)), (None, random(H, seed=4).abs()))
    for (q_lengths, k_lengths), window, chunk, sinks, slopes in variants:
        q, k, v = (random(n, heads, width, dtype=dtype, seed=i) for i, (n, heads, width) in enumerate(
            [(sum(q_lengths), H, C), (sum(k_lengths), K, C), (sum(k_lengths), K, V)]))
        how = {"q_lengths": q_lengths, "k_lengths": k_lengths, "scale": 0.4, "window": window, "softcap": None, "chunk": chunk, "slopes_H": slopes}
        expected = REFERENCE.attend(q.float(), k.float(), v.float(), **how, sinks_H=None if sinks is None else sinks.float())
        near(ops.attend(q, k, v, **how, sinks_H=sinks), expected, dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "K"), [(6, 3), (4, 1), (5, 5)])
def test_attend_both_ways(ops, H, K, dtype):
    for lengths, window, softcap in itertools.product([(5,), (9, 1, 4)], (None, 1, 3, 50), (None, 2.0)):
        q, k, v = (random(sum(lengths), heads, width, dtype=dtype, seed=i) for i, (heads, width) in enumerate([(H, C), (K, C), (K, V)]))
        found = ops.attend(q, k, v, q_lengths=lengths, k_lengths=lengths, scale=0.4, window=window, softcap=softcap, causal=False)
        expected = torch.zeros(sum(lengths), H, V)
        for t, h in itertools.product(range(sum(lengths)), range(H)):
            first = next(start for start, n in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False) if start <= t < start + n)
            n = dict(zip(itertools.accumulate(lengths, initial=0), lengths, strict=False))[first]
            seen = [s for s in range(first, first + n) if window is None or abs(s - t) < window]
            scores = torch.stack([q[t, h].float() @ k[s, h * K // H].float() * 0.4 for s in seen])
            share = (scores if softcap is None else softcap * torch.tanh(scores / softcap)).softmax(0)
            expected[t, h] = sum(p * v[s, h * K // H].float() for p, s in zip(share, seen, strict=True))
        near(found, expected, dtype, 2)


# (queries, pages, tokens of the first page that are skipped, keys): decoding rows of lengths alike and not, alone, before a prompt, prompts alone
PAGED = [[(1, (3, 9), 1, 7), (1, (4,), 0, 2), (1, (11, 0, 5, 2, 7, 8), 2, 21)], [(1, (6, 7, 8), 3, 9)], [(3, (1, 2), 0, 6), (1, (5,), 2, 1)],
         [(1, (2,), 0, 4), (1, (10, 4), 0, 5), (5, (8, 0, 3), 1, 10), (1, (1,), 3, 1)], [(4, (5, 6, 7), 0, 12)]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "K"), [(6, 3), (4, 1), (5, 5)])
def test_attend_pages(ops, H, K, dtype):
    sinks, slopes, size = random(H, dtype=dtype, seed=3), random(H, seed=4).abs(), 4
    k_PNKC, v_PNKC = random(12, size, K, C, dtype=dtype, seed=1), random(12, size, K, V, dtype=dtype, seed=2)
    for rows, window, softcap, sinks_H, slopes_H in itertools.product(PAGED, (None, 1, 3, 50), (None, 2.0), (None, sinks), (None, slopes)):
        q_lengths, tables, offsets, lengths = zip(*rows, strict=True)
        pages = Pages(size, tables, offsets, lengths, q_lengths)
        q = random(sum(q_lengths), H, C, dtype=dtype)
        how = {"scale": 0.4, "window": window, "softcap": softcap, "slopes_H": slopes_H}
        k, v = (torch.stack([pool[table[i // size], i % size] for _, table, offset, n in rows for i in range(offset, offset + n)]).float()
                for pool in (k_PNKC, v_PNKC))
        expected = REFERENCE.attend(q.float(), k, v, q_lengths=q_lengths, k_lengths=lengths, sinks_H=None if sinks_H is None else sinks_H.float(), **how)
        near(ops.attend_pages(q, k_PNKC, v_PNKC, pages, sinks_H=sinks_H, **how), expected, dtype, 2)


def test_one_row_of_pages_that_follow_one_another_is_read_where_it_lies():
    pool = random(8, 4, 3, C)
    there, apart = (Pages(4, (table,), (1,), (9,), (2,)).gather(pool) for table in ((3, 4, 5), (3, 5, 4)))
    assert there.data_ptr() == pool[3, 1].data_ptr()
    assert torch.equal(there, pool.flatten(0, 1)[13:22])
    assert torch.equal(apart, torch.cat([pool[3, 1:], pool[5], pool[4, :2]]))


def test_layer_after_layer_gathers_its_pages_into_the_same_memory():
    scratch: dict[str, torch.Tensor] = {}
    for pool, pages_Bn in ((random(8, 4, 3, C), torch.tensor([[3, 0], [7, 7]])), (random(8, 4, 3, C, seed=1), torch.tensor([[5], [1]])),
                           (random(8, 4, 3, C, seed=2), torch.tensor([[1, 2, 3], [4, 5, 6]]))):
        pages = Pages(4, ((0,),), (0,), (1,), (1,), scratch=scratch)
        with torch.inference_mode():
            got = pages.padded(pool, pages_Bn, "keys")
        assert torch.equal(got, pool[pages_Bn].flatten(1, 2))
        again = pages.padded(pool, pages_Bn, "keys")  # out of inference mode too
        assert again.data_ptr() == got.data_ptr() == scratch["keys"].data_ptr()
    assert scratch["keys"].numel() == got.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normalize(ops, kind, dtype):
    gains = {"none": None, "one": random(C, dtype=dtype, seed=1), "a head": random(6, C, dtype=dtype, seed=1)}
    for gain, biased, offset, eps in itertools.product(gains, (False, True), (0.0, 1.0), (1e-6, 0.1)):
        x, weight = random(5, 6, C, dtype=dtype), gains[gain]
        bias = random(*(weight.shape if weight is not None else (C,)), dtype=dtype, seed=2) if biased else None
        wide, how = [None if t is None else t.float() for t in (weight, bias)], {"kind": kind, "eps": eps, "offset": offset}
        near(ops.normalize(x, weight, bias, **how), REFERENCE.normalize(x.float(), *wide, **how), dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pairing", ["half", "adjacent"])
def test_rotate(ops, pairing, dtype):
    for R in (2, 8, 14):
        x, (cos, sin) = random(5, 3, C, dtype=dtype), tables(random(R // 2, seed=1), 1.0, torch.arange(5) * 7, pairing)
        expected = REFERENCE.rotate(x.float(), cos, sin, pairing=pairing)
        near(ops.rotate(x, cos, sin, pairing=pairing), expected, dtype, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matmul_embed_activate_and_gated(ops, dtype):
    x, weight, bias = random(5, 12, dtype=dtype), random(9, 12, dtype=dtype, seed=1), random(9, dtype=dtype, seed=2)
    near(ops.matmul(x, weight), x.float() @ weight.float().T, dtype, 2)
    near(ops.matmul(x, weight, bias), x.float() @ weight.float().T + bias.float(), dtype, 2)
    rows = torch.tensor([3, 0, 8, 3])
    near(ops.embed(weight, rows), weight.float()[rows], dtype, 0)
    for act in ACTIVATIONS:
        near(ops.activate(x, act), ACTIVATIONS[act](x.float()), dtype, 2)
        near(ops.gated(x, x.flip(0), act), ACTIVATIONS[act](x.float()) * x.flip(0).float(), dtype, 2)
    for slope, limit, up_offset in itertools.product((1.0, 1.7), (None, 0.5), (0.0, 1.0)):
        how = {"slope": slope, "limit": limit, "up_offset": up_offset}
        near(ops.gated(x, x.flip(0), "silu", **how), REFERENCE.gated(x.float(), x.flip(0).float(), "silu", **how), dtype, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_route(ops, dtype):
    logits, correction = random(5, 8, dtype=dtype) * 3, random(8, seed=1)
    for how, corrected in itertools.product(ROUTINGS, (None, correction)):
        share, expert = ops.route(logits, corrected, how)
        expected_share, expected_expert = REFERENCE.route(logits.float(), corrected, how)
        assert torch.equal(expert, expected_expert)
        near(share, expected_share, torch.float32, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_xielu(ops, dtype):
    x, (p, n) = random(5, 12, dtype=dtype), random(2, 1, seed=1)
    numbers = (p, n, torch.tensor(0.5), torch.tensor(-1e-6))
    near(ops.xielu(x, *numbers), REFERENCE.xielu(x.float(), *numbers), dtype, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_faster_without_gradients_is_the_same(ops, dtype):
    """One token's products, norms over many numbers, rotation and gates: backends take other ways there, and may not write where they read."""
    with torch.inference_mode():
        weight, bias = random(9, 300, dtype=dtype, seed=1), random(9, dtype=dtype, seed=2)
        for x in (random(rows, 300, dtype=dtype) for rows in (1, 2, 300 // FEW, 300 // FEW + 1)):
            near(ops.matmul(x, weight), x.float() @ weight.float().T, dtype, 2)
            near(ops.matmul(x, weight, bias), x.float() @ weight.float().T + bias.float(), dtype, 2)
            near(ops.matmul(x, weight.T.contiguous().T), x.float() @ weight.float().T, dtype, 2)
            assert ops.matmul(x, weight).is_contiguous()
            assert ops.matmul(x, weight, bias).is_contiguous()
        assert ops.matmul(x[:0], weight).shape == (0, 9)
        x, gain = random(65, 1024, dtype=dtype), random(1024, dtype=dtype, seed=1)
        before = x.clone()
        for weight in (None, gain):
            expected = REFERENCE.normalize(x.float(), None if weight is None else weight.float(), None, kind="rms", eps=1e-5, offset=0.0)
            near(ops.normalize(x, weight, None, kind="rms", eps=1e-5, offset=0.0), expected, dtype, 2)
        assert torch.equal(x, before)
        heads, (cos, sin) = random(5, 3, C, dtype=dtype), tables(random(C // 2, seed=1), 1.0, torch.arange(5) * 7)
        gate, up = random(5, 12, dtype=dtype), random(5, 12, dtype=dtype, seed=1)
        kept = [t.clone() for t in (heads, gate, up)]
        near(ops.rotate(heads, cos, sin, pairing="half"), REFERENCE.rotate(heads.float(), cos, sin, pairing="half"), dtype, 1)
        near(ops.gated(gate, up, "silu"), REFERENCE.gated(gate.float(), up.float(), "silu"), dtype, 2)
        assert all(map(torch.equal, (heads, gate, up), kept))


# The reference itself, against loops over plain Python numbers.


@pytest.mark.parametrize("sinks", [None, [0.3, -1.0, 2.0, 0.0, 4.0, -3.0]])
@pytest.mark.parametrize("slopes", [None, (0.5, 0.0, 1.5, 0.03, 0.7, 0.2)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (1, None), (3, None), (None, 4), (3, 4)])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), ROWS)
def test_the_reference_attends_as_the_formula_says(q_lengths, k_lengths, window, chunk, softcap, sinks, slopes):
    H, K = 6, 3
    q, k, v = random(sum(q_lengths), H, C), random(sum(k_lengths), K, C, seed=1), random(sum(k_lengths), K, V, seed=2)
    found = REFERENCE.attend(q, k, v, q_lengths=q_lengths, k_lengths=k_lengths, scale=0.4, window=window, softcap=softcap, chunk=chunk,
                             sinks_H=None if sinks is None else torch.tensor(sinks), slopes_H=None if slopes is None else torch.tensor(slopes))
    expected, t0, s0 = torch.zeros_like(found), 0, 0
    for T, S in zip(q_lengths, k_lengths, strict=True):
        for t, h in itertools.product(range(T), range(H)):
            at, kv = S - T + t, h // (H // K)  # the query's own position among the row's keys; its key head
            seen = [s for s in range(at + 1) if (window is None or at - s < window) and (chunk is None or s // chunk == at // chunk)]
            scores = [0.4 * sum(a * b for a, b in zip(q[t0 + t, h].tolist(), k[s0 + s, kv].tolist(), strict=True)) for s in seen]
            if softcap is not None:
                scores = [softcap * math.tanh(x / softcap) for x in scores]
            if slopes is not None:
                scores = [x - slopes[h] * (at - s) for x, s in zip(scores, seen, strict=True)]
            shares = [math.exp(x) for x in scores]
            whole = sum(shares) + (0.0 if sinks is None else math.exp(sinks[h]))
            expected[t0 + t, h] = sum(w / whole * v[s0 + s, kv] for w, s in zip(shares, seen, strict=True))
        t0, s0 = t0 + T, s0 + S
    assert torch.allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_the_reference_normalizes_as_the_formula_says(kind):
    x, weight, bias = random(3, C), random(C, seed=1), random(C, seed=2)
    found = REFERENCE.normalize(x, weight, bias, kind=kind, eps=0.1, offset=1.0)
    for row, out in zip(x.tolist(), found.tolist(), strict=True):
        mean = sum(row) / C if kind == "layer" else 0.0
        size = math.sqrt(sum((a - mean) ** 2 for a in row) / C + 0.1)
        expected = [(a - mean) / size * (1 + w) + b for a, w, b in zip(row, weight.tolist(), bias.tolist(), strict=True)]
        assert out == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pairing", ["half", "adjacent"])
def test_the_reference_turns_pairs_as_complex_numbers(pairing):
    P = 4  # pairs
    x, frequency, positions = random(3, 2, C), random(P, seed=1), torch.tensor([0, 11, 5])
    found = REFERENCE.rotate(x, *tables(frequency, 1.25, positions, pairing), pairing=pairing)
    for t, h, p in itertools.product(range(3), range(2), range(P)):
        a, b = (p, p + P) if pairing == "half" else (2 * p, 2 * p + 1)
        turned = complex(x[t, h, a], x[t, h, b]) * 1.25 * cmath.exp(1j * float(positions[t] * frequency[p]))
        assert complex(found[t, h, a], found[t, h, b]) == pytest.approx(turned, abs=2e-6)
    assert torch.equal(found[..., 2 * P :], x[..., 2 * P :])


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("how", ROUTINGS)
def test_the_reference_routes_as_the_formula_says(how, corrected):
    logits, correction = random(6, 8) * 2, random(8, seed=1)
    share, expert = REFERENCE.route(logits, correction if corrected else None, how)
    for row, shares, experts in zip(logits.tolist(), share.tolist(), expert.tolist(), strict=True):
        whole = sum(map(math.exp, row))
        scores = [math.exp(x) / whole if how.scoring == "softmax" else 1 / (1 + math.exp(-x)) for x in row]
        choices = [s + (b if corrected else 0.0) for s, b in zip(scores, correction.tolist(), strict=True)]
        size = 8 // how.n_groups
        groups = [sorted(choices[g * size : (g + 1) * size], reverse=True) for g in range(how.n_groups)]
        ranked = sorted(range(how.n_groups), key=lambda g: -sum(groups[g][: 1 if how.group_score == "best" else 2]))
        allowed = [i for i in range(8) if i // size in ranked[: how.n_active_groups]]
        if how.spread:
            allowed = [i for i in range(8) if choices[i] in groups[i // size][: how.n_active // how.n_groups]]
        best = sorted(allowed, key=lambda i: -choices[i])[: how.n_active]
        total = sum(scores[i] for i in best) if how.renormalize else 1.0
        assert experts == best
        assert shares == pytest.approx([scores[i] / total * how.share_scale for i in best], abs=1e-6)


def test_renormalized_shares_are_a_softmax_over_the_chosen_alone():
    logits = random(6, 8) * 2
    share, expert = REFERENCE.route(logits, None, routing(n_active=3, renormalize=True))
    assert torch.allclose(share, logits.gather(-1, expert).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("limit", [None, 0.75])
@pytest.mark.parametrize(("slope", "up_offset"), [(1.0, 0.0), (1.702, 1.0)])
def test_the_reference_gates_as_the_formula_says(slope, up_offset, limit):
    gate, up = random(3, 5), random(3, 5, seed=1)
    found = REFERENCE.gated(gate, up, "silu", slope=slope, limit=limit, up_offset=up_offset)
    for g, u, out in zip(gate.flatten().tolist(), up.flatten().tolist(), found.flatten().tolist(), strict=True):
        g, u = (g, u) if limit is None else (min(g, limit), max(-limit, min(u, limit)))
        assert out == pytest.approx(g / (1 + math.exp(-slope * g)) * (u + up_offset), abs=1e-6)


def test_the_reference_computes_xielu_as_the_formula_says():
    def softplus(x):
        return math.log1p(math.exp(x))

    xs, (p, n, beta, eps) = [-3.0, -0.5, -1e-3, 0.0, 0.4, 2.0], (0.3, -0.7, 0.25, -0.01)
    found = REFERENCE.xielu(torch.tensor(xs), *map(torch.tensor, ([p], [n], beta, eps)))
    expected = [softplus(p) * x * x + beta * x if x > 0 else (math.expm1(min(x, eps)) - x) * (beta + softplus(n)) + beta * x for x in xs]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_activations_are_those_of_transformers_under_their_spellings(spelling):
    x = torch.linspace(-9, 9, 181)
    assert torch.allclose(REFERENCE.activate(x, SPELLINGS[spelling]), ACT2FN[spelling](x), atol=1e-6)


def test_every_activation_has_a_spelling():
    assert set(SPELLINGS.values()) == set(ACTIVATIONS)


@pytest.mark.parametrize(("name", "expected", "activations"), [
    pytest.param("auto", "native", "int8", marks=pytest.mark.native), pytest.param("native", "native", "int8", marks=pytest.mark.native),
    ("reference", "reference", "exact"), ("fused", "fused", "exact")])
def test_choose(name, expected, activations):
    ops = choose(name)
    assert ops.name == expected
    assert expected in ops.describe()
    assert ops.activations == activations
    assert [choose(name, how).activations for how in ("exact", "int8")] == ["exact", "int8"]


def test_choose_without_the_native_kernels_is_fused(monkeypatch):
    monkeypatch.delitem(BACKENDS, "native", raising=False)
    assert (choose().name, choose().activations) == ("fused", "exact")


def test_choose_names_the_ways_to_multiply_there_are():
    with pytest.raises(BadRequest, match=r"activations='int4' is not a way to multiply \(auto, exact, int8\)"):
        choose("auto", "int4")


def test_choose_names_the_backends_there_are():
    with pytest.raises(BadRequest, match=r"ops='metal' is not a backend \(auto, native, triton, fused, reference, training\)"):
        choose("metal")


def test_the_kernels_of_the_cpu_compute_nowhere_else():
    for device in ("cuda", "mps"):
        with pytest.raises(BadRequest, match=f"ops='native' computes on the CPU, and device is '{device}'. Leave it out, or say device='cpu'"):
            choose("native", device=torch.device(device))


def test_the_kernels_of_gpus_say_what_they_miss(monkeypatch):
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    with pytest.raises(BadRequest, match=r"ops='triton' computes on a CUDA device, and device is 'cpu'\. Leave it out"):
        choose("triton")
    monkeypatch.setattr(backend, "triton", None)
    monkeypatch.setattr(backend, "why_not", "No module named 'triton'")
    with pytest.raises(BadRequest, match=r"ops='triton' is not installed \(No module named 'triton'\)\. On Linux: pip install triton"):
        choose("triton", device=torch.device("cuda"))


def test_each_kind_of_device_has_its_fastest_backend(monkeypatch):
    assert choose("auto", device=torch.device("mps")).name == "fused"
    monkeypatch.setattr("pellucid.ops.choose.find_spec", lambda name: None)
    assert choose("auto", device=torch.device("cuda")).name == "fused"
    assert choose("auto").name == next(iter(BACKENDS))

"""The engine by its native plan: the same bits in any company for nothing, and the decoder wherever somebody looks inside."""
from __future__ import annotations

import random
import weakref

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.engine.draft import DraftModel
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request
from pellucid.errors import PellucidError
from pellucid.model.decoder import Decoder
from pellucid.model.load import load_decoder
from pellucid.ops.panels import native
from tests.engine.test_engine import GREEDY, NEAR, all_free, alone, pages, requests, scheduled
from tests.engine.test_engine import small as case_of
from tests.families.build import build
from tests.families.test_gguf import CASES, converted
from tests.model.test_plan import random_decoder
from tests.model.test_plan import small as spec_of

pytestmark = pytest.mark.native

PLANNED = ["llama-biases", "mistral-window", "gemma2-caps", "bloom-released", "llama-dynamic", "gemma4_text-plain"]


def small(name: str, *, deterministic: bool) -> Decoder:
    return case_of(name, deterministic=deterministic, ops="native")


@pytest.mark.parametrize("name", PLANNED)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_request_is_bitwise_what_it_is_alone(name, seed):
    """In chunks, on pages of others, preempted and computed anew; prompts too."""
    decoder, rng = small(name, deterministic=True), random.Random(seed)
    asked = requests(decoder, seed, 6)
    engine = Engine(decoder, max_rows=4, step_tokens=rng.choice([5, 40, 300]), cache_bytes=pages(decoder, 8))
    assert engine.passes.plan is not None
    for result, request in zip(scheduled(engine, asked, rng), asked, strict=True):
        expected = alone(decoder, request)
        assert result.token_ids == expected.token_ids
        assert result.logprobs == expected.logprobs
    assert all_free(engine)


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_says_what_the_decoder_says(name):
    planned, plain = (Engine(case_of(name, ops=ops)) for ops in ("native", "fused"))
    assert plain.passes.plan is None
    for asked in requests(planned.decoder, 5, 6):
        [[a]], [[b]] = planned.run([asked]), plain.run([asked])
        same = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)) if x != y), len(a.token_ids))
        assert same == len(a.token_ids) or asked.sampling.temperature > 0
        assert all(abs(x - y) < 10 * NEAR for x, y in zip(a.logprobs[:same], b.logprobs[:same], strict=True))


def test_long_passes_of_dense_weights_are_the_decoders_and_short_ones_the_plans(monkeypatch):
    engine = Engine(small("llama-biases", deterministic=False))
    sizes: list[int] = []
    forward = engine.passes.plan.forward
    monkeypatch.setattr(engine.passes.plan, "forward", lambda ids, rows: sizes.append(len(ids)) or forward(ids, rows))
    engine.run([Request(prompt_ids=list(range(3, 40)), max_tokens=3, sampling=GREEDY, logprobs=True)])
    assert sizes == [1, 1]
    assert Engine(small("llama-biases", deterministic=True)).passes.plan is not None


def test_long_passes_near_the_beginning_of_their_texts_are_the_plans_where_bfloat16_is_multiplied_in_tiles(monkeypatch):
    monkeypatch.setattr("pellucid.model.plan_scope.SHORT", 48)
    decoder = small("llama-biases", deterministic=False).to(torch.bfloat16)
    engine, sizes = Engine(decoder), []
    forward = engine.passes.plan.forward
    monkeypatch.setattr(engine.passes.plan, "forward", lambda ids, rows: sizes.append(len(ids)) or forward(ids, rows))
    for n in (48, 49):
        engine.run([Request(prompt_ids=list(range(3, n + 3)), max_tokens=1, sampling=GREEDY, logprobs=True, reuse=False)])
    assert sizes == ([48] if native.tiled(decoder.ops.variant) else [])


@pytest.mark.parametrize(("name", "all_logits"), [("llama-biases", False), ("bloom-released", False), ("gemma2-caps", True)])  # capped logits may tie
def test_greedy_ids_are_found_without_all_logits(name, all_logits, monkeypatch):
    engine, asked = Engine(small(name, deterministic=False)), [Request(prompt_ids=list(range(3, 9 + i)), max_tokens=9, sampling=GREEDY) for i in range(3)]
    calls: list[int] = []
    unembed = engine.passes.unembed
    monkeypatch.setattr(engine.passes, "unembed", lambda hidden_ND, adapters=(): calls.append(len(hidden_ND)) or unembed(hidden_ND, adapters))
    found = engine.run(asked)
    assert bool(calls) == all_logits
    monkeypatch.setattr(engine.passes, "likeliest", lambda hidden_ND: None)
    assert [one.token_ids for [one] in engine.run(asked)] == [one.token_ids for [one] in found]
    assert calls


def test_who_looks_inside_sees_every_pass_of_the_decoder():
    decoder = small("llama-biases", deterministic=False)
    engine, asked = Engine(decoder), Request(prompt_ids=[5, 6, 7], max_tokens=4, sampling=GREEDY, logprobs=True)
    [[unseen]] = engine.run([asked])
    shapes: list[tuple[int, ...]] = []
    for watch in (decoder.blocks[1].mlp.register_forward_hook, decoder.blocks[0].attn.q.register_forward_pre_hook):
        shapes.clear()
        handle = watch(lambda _, inputs, *out: shapes.append(tuple(inputs[0].shape)))
        engine.cache.forget()
        [[seen]] = engine.run([asked])
        handle.remove()
        assert shapes == [(3, decoder.spec.d_model), *[(1, decoder.spec.d_model)] * 3]
        assert seen.token_ids == unseen.token_ids
    engine.run([asked])
    assert len(shapes) == 4
    [embedded] = engine.embed([[5, 6, 7]], activation="blocks.1.mlp")
    assert embedded.vector.shape == (decoder.spec.d_model,)


def test_what_is_asked_after_the_weights_changed_is_answered_by_the_new_ones():
    decoder = random_decoder(spec_of(), torch.bfloat16)
    engine, asked = Engine(decoder), Request(prompt_ids=[5, 6, 7], max_tokens=1, sampling=GREEDY, logprobs=True, reuse=False)
    found = [engine.run([asked])[0][0].logprobs]
    decoder.blocks[0].attn_norm.weight.mul_(1.5)  # which the plan reads as float32, a copy
    found.append(engine.run([asked])[0][0].logprobs)
    decoder.blocks[1].mlp.down.weight = torch.nn.Parameter(decoder.blocks[1].mlp.down.weight * 2, requires_grad=False)
    found.append(engine.run([asked])[0][0].logprobs)
    assert len({tuple(x) for x in found}) == 3
    assert found[-1] == Engine(decoder).run([asked])[0][0].logprobs


@pytest.mark.parametrize("change", ["data", "to"])
def test_weights_that_lie_elsewhere_are_read_there_and_never_where_they_were(change):
    """Neither way counts as a change of the parameter: `_version` stays what it was, and what the plan had the address of may be gone."""
    decoder = random_decoder(spec_of())
    down = decoder.blocks[1].mlp.down.weight
    numbers = down.numpy().copy()
    down.data, lying = torch.from_numpy(numbers), weakref.ref(numbers)
    del numbers
    engine, asked = Engine(decoder), Request(prompt_ids=list(range(5, 5 + PAGE + 3)), max_tokens=2, sampling=GREEDY, logprobs=True)
    begun = engine.submit(asked)
    engine.step()
    if change == "data":
        for parameter in decoder.parameters():
            parameter.data = parameter.data * 1.25
    else:
        decoder.to(torch.float64).to(torch.float32)
    assert lying() is not None, "what runs still reads the old numbers"
    while not begun.finished:
        engine.step()
    assert not engine.passes.plan.current
    [[found]] = engine.run([asked])  # also what is known of the prompt was computed by the old ones
    assert found.logprobs == Engine(decoder).run([asked])[0][0].logprobs
    assert engine.passes.plan.current
    assert lying() is None
    assert (found.logprobs == begun.result().logprobs) == (change == "to")


def test_who_looks_inside_changes_no_bit_of_what_others_get():
    """Deterministic: what the decoder computes for a tap or a hook is not what the plan computes, and the two are never mixed."""
    decoder, ids = small("llama-biases", deterministic=True), list(range(3, 3 + 2 * PAGE + 5))
    asked = Request(prompt_ids=ids, max_tokens=5, sampling=GREEDY, logprobs=True)
    expected = alone(decoder, asked)
    engine = Engine(decoder)
    running = engine.submit(asked)
    engine.step()
    beside = engine.embed([ids, ids[:7]], activation="blocks.1.mlp")
    while not running.finished:
        engine.step()
    assert running.result().logprobs == engine.run([asked])[0][0].logprobs == expected.logprobs
    assert torch.equal(beside[0].vector, Engine(decoder).embed([ids], activation="blocks.1.mlp")[0].vector)
    shapes: list[int] = []
    handle = decoder.blocks[0].register_forward_hook(lambda _, inputs, out: shapes.append(len(out)))
    watched = engine.run([asked])[0][0].logprobs
    handle.remove()
    assert len(shapes) >= 3 + 4, "every block of the prompt was computed before their eyes"
    assert engine.run([asked])[0][0].logprobs == expected.logprobs != watched


def test_hooks_on_every_module_there_is_are_seen_too():
    decoder, called = small("llama-biases", deterministic=False), []
    engine = Engine(decoder)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    engine.run([Request(prompt_ids=[5, 6], max_tokens=1, sampling=GREEDY)])
    handle.remove()
    assert decoder.blocks[0].mlp in called


def test_a_decoder_without_a_plan_says_why():
    engine = Engine(case_of("deepseek_v2-lite", ops="native"))
    assert engine.passes.plan is None
    assert engine.passes.declined == "LatentAttention"
    assert Engine(case_of("llama-biases")).passes.declined == "the backend fused"


def test_an_int8_cache_by_the_plan_is_near():
    decoder = small("llama-biases", deterministic=False)
    exact, short = (Engine(decoder, cache_dtype=store) for store in ("same", "int8"))
    ids = list(range(3, 3 + 2 * PAGE + 5))
    [a], [b] = (engine.score([([], ids)]) for engine in (exact, short))
    assert 0 < max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) < 0.2
    assert short.cache_bytes < exact.cache_bytes


@pytest.mark.parametrize("ops", ["native", "fused"])
def test_quantized_weights_keep_float16_and_others_what_they_compute_in(tmp_path, ops):
    converted(tmp_path / "m.gguf", build(CASES["llama-plain"]), GGMLQuantizationType.Q4_0)
    decoder, report = load_decoder(tmp_path / "m.gguf", device="cpu", ops=ops, activations="exact")  # rounded ones would be rounded otherwise
    auto, same = (Engine(decoder, cache_dtype=store, max_rows=1) for store in ("auto", "same"))
    assert (auto.cache.kept, same.cache.kept) == (torch.float16, torch.float32)
    assert {pool.dtype for pools in auto.cache.pools for pool in pools} == {torch.float16}
    assert same.cache.n_bytes == 2 * auto.cache.n_bytes == 2 * auto.cache.groups[0].n_pages * PAGE * report.cache_bytes_per_token
    [a], [b] = (engine.score([([], list(range(3, 90)))]) for engine in (auto, same))
    assert 0 < max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) < 0.02
    assert Engine(small("llama-biases", deterministic=False)).cache.kept == torch.float32
    assert Engine(random_decoder(spec_of(), torch.bfloat16)).cache.kept == torch.bfloat16
    draft = DraftModel(decoder)
    Engine(decoder, proposer=draft)
    assert draft.cache.kept == torch.float16


@pytest.mark.parametrize(("name", "ops"), [("llama-biases", "native"), ("llama-biases", "fused"), ("gemma2-caps", "native"), ("deepseek_v3-released", "fused")])
def test_a_number_that_float16_pages_cannot_hold_is_an_error_that_says_what_to_do(name, ops):
    decoder = case_of(name, ops=ops)
    made = decoder.blocks[1].attn
    weight = (made.k if hasattr(made, "k") else made.kv_down).weight
    asked = Request(prompt_ids=list(range(3, 70)), max_tokens=3, sampling=GREEDY, logprobs=True)
    exact, short = (Engine(decoder, cache_dtype=store) for store in ("same", "float16"))
    [[a]], [[b]] = exact.run([asked]), short.run([asked])
    assert all(abs(x - y) < 0.02 for x, y in zip(a.logprobs, b.logprobs, strict=True))
    weight.data[-1] *= 1e7
    exact, short = (Engine(decoder, cache_dtype=store) for store in ("same", "float16"))
    exact.run([asked])
    with pytest.raises(PellucidError, match=r"not numbers.* keys and values do that reach 65,520 where pages are float16: try cache_dtype='same'"):
        short.run([asked])
    assert all_free(short)
    weight.data[-1] /= 1e7
    short.passes.refresh()
    [[again]] = short.run([asked])  # no page of the failed pass is left
    assert again.token_ids == b.token_ids

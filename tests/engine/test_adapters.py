"""Adapters chosen per request: each request is what it is alone, with the plan and without, and no page of one adapter is taken for another's."""
from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from pellucid.engine.engine import Engine
from pellucid.engine.grammar import Vocabulary, compile_grammar
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.engine.speculate import PromptLookup
from pellucid.engine.verdict import judge
from pellucid.errors import BadRequest, UnknownAdapter
from pellucid.model.adapters import attach, detach
from pellucid.model.decoder import Decoder
from pellucid.weights.adapter import open_adapter
from tests.engine.test_engine import NEAR, all_free, alone, pages, requests, scheduled, small
from tests.engine.test_speculate import drafting
from tests.families.build import logits
from tests.model.adapting import adapted_logits, random_pairs, write_peft
from tests.model.test_adapters import matrices
from tests.model.test_decoder import case

NAMES = (None, "x", "y")


def adapted(name: str, folder: Path, **how) -> Decoder:
    """A decoder with two adapters, one of them on its unembedding too."""
    decoder, built = small(name, **how), case(name)
    names, _ = matrices(built)
    for seed, adapter in enumerate(NAMES[1:]):
        on = [n for n in names if adapter == "x" or "lm_head" not in n]
        attach(decoder, open_adapter(write_peft(folder / adapter, random_pairs(built.files, on, seed=seed))), adapter)
    return decoder


def asked(decoder: Decoder, seed: int, n: int = 7) -> list[Request]:
    return [dataclasses.replace(request, adapter=NAMES[i % 3]) for i, request in enumerate(requests(decoder, seed, n))]


# A plan for the dense ones, no plan, latents and experts; the decoder alone.
@pytest.mark.parametrize(("name", "ops"), [pytest.param("llama-llama3_rope", "native", marks=pytest.mark.native), ("llama-llama3_rope", "fused"),
                                           ("deepseek_v3-released", "fused"), ("qwen3_moe-renormalized", "fused")])
def test_deterministic_requests_are_bitwise_what_they_are_alone(name: str, ops: str, tmp_path: Path) -> None:
    decoder = adapted(name, tmp_path, ops=ops, deterministic=True)
    for seed in range(2):
        engine = Engine(decoder, max_rows=4, step_tokens=(9, 70)[seed])
        assert (engine.passes.plan is not None) == (ops == "native")
        wanted = asked(decoder, seed)
        for result, request in zip(scheduled(engine, wanted, random.Random(seed)), wanted, strict=True):
            expected = alone(decoder, request)
            assert (result.token_ids, result.logprobs) == (expected.token_ids, expected.logprobs)


def test_all_at_once_changes_no_bit_grammars_adapters_drafts_preemption_and_those_who_leave(tmp_path: Path) -> None:
    decoder = adapted("llama-llama3_rope", tmp_path, deterministic=True)
    n_vocab = decoder.spec.n_vocab
    vocabulary = Vocabulary([bytes([32 + i]) if i < n_vocab - 1 else b"<end>" for i in range(n_vocab)], (), (n_vocab - 1,))
    held = [compile_grammar("regex", "[A-C ]{30,60}", vocabulary), compile_grammar("choice", ["ABRA CADABRA", "ABRA"], vocabulary), None]
    engine = drafting(decoder, PromptLookup(), n=3, cache_bytes=pages(decoder, 12), max_rows=6, step_tokens=40)  # so many drafts, whatever they cost
    rng = random.Random(0)
    wanted = [dataclasses.replace(request, constraint=rng.choice(held), max_tokens=60, stop_ids=frozenset(vocabulary.eos_ids),
                                  prompt_logprobs=(None, 1)[i % 2]) for i, request in enumerate(asked(decoder, 6, 16))]
    going = []
    for i, request in enumerate(wanted):
        going.append(engine.submit(request))
        for _ in range(rng.randrange(4)):
            engine.step()
        if i % 5 == 4:
            going[-2].cancel()
    while engine.step():
        pass
    for generation, request in zip(going, wanted, strict=True):
        result, expected = generation.result(), alone(decoder, request)
        if result.finish_reason == "cancelled":
            assert result.token_ids == expected.token_ids[: len(result.token_ids)]
            continue
        assert (result.token_ids, result.logprobs, result.prompt_logprobs) == (expected.token_ids, expected.logprobs, expected.prompt_logprobs)
        if request.constraint is not None and result.finish_reason == "stop":
            assert judge(request.constraint.text(result.token_ids), request.constraint, "stop").status == "valid"
    report = engine.report()
    assert all_free(engine)
    assert min(report.n_preempted, report.n_accepted, report.n_cancelled, report.n_reused_tokens) > 0


@pytest.mark.native
def test_beside_adapters_the_plan_still_computes_whoever_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = adapted("llama-llama3_rope", tmp_path, ops="native", deterministic=True)
    engine, planned = Engine(decoder), []
    plan = engine.passes.plan
    assert plan is not None
    forward = plan.forward
    monkeypatch.setattr(plan, "forward", lambda ids, rows: planned.append(len(ids)) or forward(ids, rows))
    engine.run([Request(prompt_ids=range(3, 12), adapter=adapter, max_tokens=1) for adapter in NAMES])
    assert planned == [9]


def test_what_an_adapter_writes_is_the_adapted_models(tmp_path: Path) -> None:
    decoder = adapted("llama-llama3_rope", tmp_path)
    told = set()
    for adapter in NAMES:
        [[result]] = Engine(decoder).run([Request(prompt_ids=range(3, 40), adapter=adapter, sampling=Sampling(temperature=0), max_tokens=20, logprobs=True,
                                                  prompt_logprobs=0)])
        ids = torch.tensor([*range(3, 40), *result.token_ids])
        full_TV = logits(decoder, ids) if adapter is None else adapted_logits(decoder, ids, [len(ids)], [adapter])
        expected = full_TV.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([*result.prompt_logprobs, *result.logprobs]), expected, rtol=0, atol=10 * NEAR)
        told.add(result.token_ids)
    assert len(told) == 3


def test_pages_are_shared_within_an_adapter_and_never_across(tmp_path: Path) -> None:
    decoder = adapted("llama-llama3_rope", tmp_path)
    engine, prompt = Engine(decoder), list(range(3, 3 + 2 * PAGE + 5))

    def ask(adapter: str | None) -> tuple[int, tuple[float, ...]]:
        [[result]] = engine.run([Request(prompt_ids=prompt, adapter=adapter, sampling=Sampling(temperature=0), max_tokens=4, logprobs=True)])
        return result.n_reused, result.logprobs
    first = {adapter: ask(adapter) for adapter in NAMES}
    assert [n for n, _ in first.values()] == [0, 0, 0]
    again = {adapter: ask(adapter) for adapter in NAMES}
    assert [n for n, _ in again.values()] == [2 * PAGE] * 3
    for adapter in NAMES:
        assert again[adapter][1] == pytest.approx(first[adapter][1], abs=10 * NEAR)
    # The same name for another adapter finds nothing of the first; the same files under another name find their own.
    detach(decoder, "x")
    built = case("llama-llama3_rope")
    attach(decoder, open_adapter(write_peft(tmp_path / "z", random_pairs(built.files, matrices(built)[0], seed=9))), "x")
    attach(decoder, open_adapter(tmp_path / "x"), "first")
    assert ask("x")[0] == 0
    n_reused, logprobs = ask("first")
    assert (n_reused, logprobs) == (2 * PAGE, pytest.approx(first["x"][1], abs=10 * NEAR))


def test_pages_by_a_ropes_length_are_kept_apart_too(tmp_path: Path) -> None:
    """Under dynamic scaling a row opens its pages anew when it turns by other angles: the adapter stays part of their names."""
    decoder = adapted("llama-dynamic", tmp_path, deterministic=True)
    wanted = [Request(prompt_ids=range(3, 60), adapter=adapter, sampling=Sampling(temperature=0), max_tokens=60, logprobs=True) for adapter in NAMES]
    for [result], request in zip(Engine(decoder, step_tokens=100).run(wanted), wanted, strict=True):
        assert result.logprobs == alone(decoder, request).logprobs


def test_scores_and_vectors_are_the_adapters(tmp_path: Path) -> None:
    decoder = adapted("llama-llama3_rope", tmp_path)
    engine, ids = Engine(decoder), list(range(3, 50))
    for adapter in NAMES:
        [told] = engine.score([(ids[:9], ids[9:])], adapter=adapter)
        full_TV = adapted_logits(decoder, torch.tensor(ids), [len(ids)], [adapter]).log_softmax(-1)
        expected = full_TV[8:-1].gather(1, torch.tensor(ids[9:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(told.logprobs), expected, rtol=0, atol=10 * NEAR)
    vectors = [engine.embed([ids], adapter=adapter)[0].vector for adapter in NAMES]
    assert min(float((vectors[0] - v).norm()) for v in vectors[1:]) > 0.05


def test_an_unknown_adapter_is_its_own_error_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = Engine(adapted("llama-llama3_rope", tmp_path))
    for call in (lambda name: engine.submit(Request(prompt_ids=[3], adapter=name)), lambda name: engine.score([([3], [4])], adapter=name),
                 lambda name: engine.embed([[3]], adapter=name)):
        with pytest.raises(UnknownAdapter, match=r"adapter 'z' is not loaded\. There are x, y; load one with load\(\.\.\., adapters="):
            call("z")
    with pytest.raises(BadRequest, match=r"adapter must be the name of a loaded adapter, or None; got int 3"):
        Request(prompt_ids=[3], adapter=3)
    assert len(engine.run([Request(prompt_ids=[3], adapter="y", max_tokens=2)])[0][0].token_ids) == 2

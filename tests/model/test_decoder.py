"""The decoder's own promises, which no family changes: rows, positions, embeddings, limits."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import BadRequest
from pellucid.model.cache import Cache
from pellucid.model.decoder import Rows, reach
from tests.families.build import TOLERANCE, Built, build, logits, ours
from tests.families.cases import CASES


def case(name: str) -> Built:
    return build(next(case for case in CASES if str(case) == name))


# Plain, soft-capped and windowed, and with experts: the three ways a row could meet its neighbours.
COMPANIONS = ["llama-biases", "gemma2-caps", "mixtral-window"]
lengths = st.lists(st.integers(1, 45), min_size=1, max_size=6)


def company(built: Built, sizes: list[int], seed: int) -> list[torch.Tensor]:
    """Rows of random tokens."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(3, built.spec.n_vocab, (n,), generator=noise) for n in sizes]


@pytest.mark.parametrize("name", COMPANIONS)
@settings(max_examples=12, deadline=None)
@given(sizes=lengths, seed=st.integers(0, 99))
def test_a_row_in_any_company_is_what_it_is_alone(name, sizes, seed):
    built = case(name)
    decoder, rows = ours(built.spec, built.tensors, ops="fused"), company(built, sizes, seed)
    together = logits(decoder, torch.cat(rows), Rows.of(*sizes)).split(sizes)
    for tokens_T, part_TV in zip(rows, together, strict=True):
        assert (part_TV - logits(decoder, tokens_T)).abs().max() < TOLERANCE * part_TV.abs().max()


@pytest.mark.parametrize("name", COMPANIONS)
@settings(max_examples=12, deadline=None)
@given(sizes=lengths, seed=st.integers(0, 99), ops=st.sampled_from(["fused", "reference"]))
def test_a_row_in_any_company_is_bitwise_itself_when_deterministic(name, sizes, seed, ops):
    built = case(name)
    decoder, rows = ours(built.spec, built.tensors, ops=ops, deterministic=True), company(built, sizes, seed)
    cache, alone_in = Cache(built.spec, len(sizes)), [Cache(built.spec) for _ in sizes]
    for chunk in ([tokens_T[:20] for tokens_T in rows], [tokens_T[20:] for tokens_T in rows]):  # a first pass, and one that resumes
        live = [b for b, tokens_T in enumerate(chunk) if len(tokens_T)]
        if not live:
            continue
        at = Rows.of(*(len(chunk[b]) for b in live), slots=live)
        together = logits(decoder, torch.cat([chunk[b] for b in live]), at, cache).split(at.lengths)
        for b, part_TV in zip(live, together, strict=True):
            assert torch.equal(part_TV, logits(decoder, chunk[b], cache=alone_in[b]))


def test_embeddings_may_stand_in_place_of_tokens():
    built = case("gemma2-caps")  # scales its embeddings: given ones are scaled as well
    decoder = ours(built.spec, built.tensors)
    assert torch.equal(logits(decoder, built.tensors["embed.weight"][built.tokens_T]), logits(decoder, built.tokens_T))


def test_positions_default_to_the_next_of_each_row():
    built = case("llama-llama3_rope")
    decoder, rows = ours(built.spec, built.tensors), Rows.of(3, 2, slots=(1, 0))
    cache = Cache(built.spec, 2)
    cache.advance((1,), (7,))
    assert decoder.next_positions(rows, cache, torch.device("cpu")).tolist() == [7, 8, 9, 0, 1]
    tokens_T = built.tokens_T[:5]
    with torch.inference_mode():
        said, shifted = decoder(tokens_T, torch.arange(5)), decoder(tokens_T, torch.tensor([0, 2, 4, 6, 8]))
        assert torch.equal(decoder(tokens_T), said)
    assert not torch.allclose(said, shifted)


def test_rows_that_do_not_count_the_tokens_are_refused():
    built = case("llama-biases")
    with pytest.raises(BadRequest, match="rows count 5 tokens and 4 were given"):
        logits(ours(built.spec, built.tensors), built.tokens_T[:4], Rows.of(3, 2))


@pytest.mark.parametrize(("name", "why"), [
    ("gpt2-released", "its table of learned positions ends there"),
    ("opt-released", "its table of learned positions ends there"),
])
def test_a_row_past_the_models_reach_is_refused(name, why):
    built = case(name)
    limit = built.spec.n_ctx
    decoder, tokens_T = ours(built.spec, built.tensors), torch.full((limit + 1,), 7)
    message = rf"a row of {limit + 1} tokens, and this model goes to {limit}: {why}. Shorten the input\."
    assert reach(built.spec) == (limit, why)
    logits(decoder, tokens_T[:limit])
    with pytest.raises(BadRequest, match=message):
        logits(decoder, tokens_T)
    cache = Cache(built.spec)
    logits(decoder, tokens_T[:limit], cache=cache)
    with pytest.raises(BadRequest, match=message):  # also where the cache brings the row there
        logits(decoder, tokens_T[:1], cache=cache)
    with pytest.raises(BadRequest, match=message):  # and where the caller says the positions
        decoder(tokens_T[:2], torch.tensor([3, limit]))


def test_most_models_have_no_reach():
    assert reach(case("llama-biases").spec) is None


def test_parameters_carry_the_names_that_files_are_read_into():
    built = case("llama-biases")
    assert dict(ours(built.spec, built.tensors).named_parameters()).keys() == built.tensors.keys()

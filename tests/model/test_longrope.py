"""A rope that depends on a row's length: a cached row is on one side of the switch, planned, begun anew or refused, and never a mixture."""
from __future__ import annotations

import pytest
import torch

from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, Sampling
from pellucid.errors import BadRequest
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder, Rows
from tests.families.build import TOLERANCE, build, error, logits, ours
from tests.families.case import ORIGINAL
from tests.families.cases_later import PHI3

BUILT = {case.name: case for case in PHI3}
GREEDY = Sampling(temperature=0)


@pytest.fixture
def long():
    built = build(BUILT["128k"])
    return ours(built.spec, built.tensors), built.tokens_T


def test_a_row_that_grows_past_the_switch_unplanned_is_refused(long):
    decoder, tokens_T = long
    cache = Cache(decoder.spec)
    logits(decoder, tokens_T[:ORIGINAL], cache=cache)
    with pytest.raises(BadRequest) as refusal:
        logits(decoder, tokens_T[ORIGINAL : ORIGINAL + 1], cache=cache)
    assert str(refusal.value) == (
        f"a row of {ORIGINAL + 1} tokens was begun as one of {ORIGINAL}, and this model's rope turns all keys of so long a row by other angles. "
        f"Cache.plan(row, length) says it in time; or start the row anew.")


def test_each_side_of_the_switch_is_exact_and_they_differ(long):
    decoder, tokens_T = long
    short_TV, long_TV = logits(decoder, tokens_T[:ORIGINAL]), logits(decoder, tokens_T)[:ORIGINAL]
    assert error(short_TV, long_TV) > 1e-2
    for length, full_TV in ((ORIGINAL, short_TV), (ORIGINAL + 1, long_TV)):
        cache = Cache(decoder.spec)
        cache.plan(0, length)
        assert error(torch.cat([logits(decoder, t, cache=cache) for t in tokens_T[:ORIGINAL].split(5)]), full_TV) < TOLERANCE


def test_positions_that_are_given_choose_the_rope_of_their_row(long):
    decoder, tokens_T = long
    places_T, rows = torch.cat([torch.arange(ORIGINAL), torch.arange(ORIGINAL + 1)]), Rows.of(ORIGINAL, ORIGINAL + 1)
    with torch.inference_mode():
        both_TV = decoder.unembed(decoder(torch.cat([tokens_T[:ORIGINAL], tokens_T[: ORIGINAL + 1]]), places_T, rows))
    for part_TV in both_TV.split(rows.lengths):
        assert error(part_TV, logits(decoder, tokens_T[: len(part_TV)])) < TOLERANCE


def test_a_plan_for_the_other_side_forgets_what_the_row_held(long):
    decoder, tokens_T = long
    cache = Cache(decoder.spec)
    logits(decoder, tokens_T[:20], cache=cache)
    cache.truncate(0, 8)
    assert cache.plan(0, 30)
    assert cache.lengths == [8]
    assert not cache.plan(0, ORIGINAL)
    assert cache.lengths == [0]
    assert error(logits(decoder, tokens_T[:9], cache=cache), logits(decoder, tokens_T[:9])) < TOLERANCE
    cache.truncate(0, 0)
    assert cache.planned == [0]


def greedy(decoder: Decoder, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(logits(decoder, torch.tensor(ids))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_generation_across_the_switch_equals_full_passes(long, chunk):
    decoder, tokens_T = long
    engine = Engine(decoder, max_rows=1, step_tokens=chunk)
    for n_prompt, n_more in ((5, 15), (20, 4), (4, 4), (6, 3)):  # over it; past it; back before it; there to stay
        prompt = tokens_T[:n_prompt].tolist()
        assert list(engine.submit(Request(prompt_ids=prompt, sampling=GREEDY, max_tokens=n_more))) == greedy(decoder, prompt, n_more)

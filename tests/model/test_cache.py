"""The cache holds what a full pass would compute, however it was filled."""
from __future__ import annotations

import torch

from pellucid.model.cache import GROWTH, Cache
from pellucid.model.decoder import Rows
from tests.families.build import TOLERANCE, error, logits, ours
from tests.model.test_decoder import case


def test_a_row_longer_than_several_buffers_equals_the_full_pass():
    built = case("mistral-window")
    decoder, noise = ours(built.spec, built.tensors, ops="fused"), torch.Generator().manual_seed(2)
    tokens_T = torch.randint(3, built.spec.n_vocab, (2 * GROWTH + 90,), generator=noise)
    cache = Cache(built.spec)
    # One token short of a buffer, over its edge one by one, then past the doubled one at once.
    sizes = [GROWTH - 1, 1, 1, 1, GROWTH, 86, 1, 1]
    parts = [logits(decoder, chunk, cache=cache) for chunk in tokens_T.split(sizes)]
    assert cache.lengths == [sum(sizes)] == [len(tokens_T)]
    assert error(torch.cat(parts), logits(decoder, tokens_T)) < TOLERANCE


def test_a_truncated_row_goes_on_as_if_the_rest_had_never_been():
    built = case("gemma2-caps")
    decoder, cache = ours(built.spec, built.tensors), Cache(built.spec, 2)
    logits(decoder, built.tokens_T.repeat(2)[:60], Rows.of(40, 20), cache)
    cache.truncate(0, 12)
    cache.truncate(1, 30)  # longer than it is: nothing to forget
    assert cache.lengths == [12, 20]
    other_T = built.tokens_T.flip(0)[:9]
    resumed_TV = logits(decoder, other_T, Rows.of(9, slots=(0,)), cache)
    full_TV = logits(decoder, torch.cat([built.tokens_T[:12], other_T]))[12:]
    assert error(resumed_TV, full_TV) < TOLERANCE


def test_one_row_is_read_where_it_lies():
    """No copy for the common case: what attention reads is the buffer that the next token is written into."""
    spec = case("llama-biases").spec
    cache = Cache(spec)
    k = torch.randn(5, 3, 14)
    first, _ = cache.extend(0, (0,), (5,), k, k)
    cache.advance((0,), (5,))
    second, values = cache.extend(0, (0,), (1,), k[:1], k[:1] + 1)
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(second, torch.cat([k, k[:1]]))
    assert torch.equal(values, torch.cat([k, k[:1] + 1]))


def test_several_rows_come_back_one_after_another():
    spec = case("llama-biases").spec
    cache = Cache(spec, 3)
    k = torch.randn(5, 3, 14)
    keys, _ = cache.extend(0, (2, 0), (4, 1), k, k)
    assert torch.equal(keys, k)
    cache.advance((2, 0), (4, 1))
    assert cache.lengths == [1, 0, 4]
    keys, _ = cache.extend(0, (0, 2), (1, 2), -k[:3], -k[:3])
    assert torch.equal(keys, torch.cat([k[4:5], -k[:1], k[:4], -k[1:3]]))

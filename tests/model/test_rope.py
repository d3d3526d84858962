"""Frequencies against transformers' own functions, over parameters drawn at random."""
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pellucid.families._config import Config
from pellucid.model.rope import frequencies, sharpness, tables
from pellucid.spec import LogTemperature, Rope, Temperature

HEADS = st.sampled_from([2, 6, 16, 64, 128])
THETAS = st.sampled_from([50.0, 10_000.0, 500_000.0, 1e6])
FACTORS = st.floats(1.0, 40.0)
LENGTHS = st.integers(20, 5000)


def agree(d_head: int, n_ctx: int, rope_parameters: dict) -> None:
    """Both sides read the same facts, and turn by the same angles; the gain of cos and sin is the same too."""
    facts = {"hidden_size": 2 * d_head, "num_attention_heads": 2, "head_dim": d_head, "max_position_embeddings": n_ctx,
             "rope_parameters": rope_parameters}
    expected_R, gain = ROPE_INIT_FUNCTIONS[rope_parameters["rope_type"]](LlamaConfig(**facts), None)
    found_R, found_gain = frequencies(Config(facts).rope(d_head))
    assert torch.allclose(found_R, expected_R, rtol=1e-5, atol=0)  # where a ramp begins its numerator cancels, and float32 keeps fewer digits
    assert abs(found_gain - gain) < 1e-9 * gain


@settings(max_examples=20, deadline=None)
@given(HEADS.filter(lambda n: n < 64), THETAS, st.one_of(st.none(), FACTORS), LENGTHS, LENGTHS, st.one_of(st.none(), st.floats(0.5, 2.0)), st.data())
def test_longrope(d_head, theta, factor, n_ctx, original, gain, data):
    short, long = (data.draw(st.lists(st.floats(0.5, 60.0), min_size=d_head // 2, max_size=d_head // 2)) for _ in range(2))
    how = {"rope_type": "longrope", "rope_theta": theta, "short_factor": short, "long_factor": long, "original_max_position_embeddings": original}
    how |= {key: value for key, value in (("factor", factor), ("attention_factor", gain)) if value is not None}
    facts = {"hidden_size": 2 * d_head, "num_attention_heads": 2, "head_dim": d_head, "max_position_embeddings": n_ctx, "rope_parameters": how}
    rope = Config(facts).rope(d_head)
    for n in (original, original + 1):
        found_R, found_gain = frequencies(rope, n)
        expected_R, expected_gain = ROPE_INIT_FUNCTIONS["longrope"](LlamaConfig(**facts), None, seq_len=n)
        assert torch.allclose(found_R, expected_R, rtol=2e-6, atol=0)
        assert abs(found_gain - expected_gain) < 1e-9 * expected_gain


@settings(max_examples=20, deadline=None)
@given(HEADS, THETAS, st.one_of(st.none(), FACTORS), LENGTHS, st.sampled_from([0.25, 0.5, 1.0]))
def test_proportional(d_head, theta, factor, n_ctx, share):
    how = {} if factor is None else {"factor": factor}
    agree(d_head, n_ctx, {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": share, **how})


@settings(max_examples=40, deadline=None)
@given(HEADS.filter(lambda n: n > 2), THETAS, FACTORS, LENGTHS, st.floats(0.1, 9.0))
def test_dynamic(d_head, theta, factor, n_ctx, share):
    """Lengths on both sides of the original; the same function gives transformers' frequencies where a module grows."""
    how = {"rope_type": "dynamic", "rope_theta": theta, "factor": factor}
    facts = {"hidden_size": 2 * d_head, "num_attention_heads": 2, "head_dim": d_head, "max_position_embeddings": n_ctx, "rope_parameters": how}
    rope = Config(facts).rope(d_head)
    for n in (n_ctx, n_ctx + 1, int(share * n_ctx) + 1):
        found_R, found_gain = frequencies(rope, n)
        expected_R, expected_gain = ROPE_INIT_FUNCTIONS["dynamic"](LlamaConfig(**facts), None, seq_len=n)
        assert torch.allclose(found_R, expected_R, rtol=1e-5, atol=0)
        assert found_gain == expected_gain == 1.0


@settings(max_examples=20, deadline=None)
@given(HEADS, THETAS, FACTORS, LENGTHS)
def test_linear(d_head, theta, factor, n_ctx):
    agree(d_head, n_ctx, {"rope_type": "linear", "rope_theta": theta, "factor": factor})


@settings(max_examples=60, deadline=None)
@given(HEADS, THETAS, FACTORS, LENGTHS, st.one_of(st.none(), LENGTHS), st.floats(0.3, 2.0), st.floats(2.1, 9.0))
def test_llama3(d_head, theta, factor, n_ctx, original, low, high):
    where = {} if original is None else {"original_max_position_embeddings": original}
    agree(d_head, n_ctx, {"rope_type": "llama3", "rope_theta": theta, "factor": factor,
                          "low_freq_factor": low, "high_freq_factor": high, **where})


@settings(max_examples=150, deadline=None)
@given(HEADS, THETAS, st.one_of(st.none(), FACTORS), LENGTHS, st.one_of(st.none(), LENGTHS), st.fixed_dictionaries({}, optional={
    "attention_factor": st.floats(0.5, 2.0), "beta_fast": st.floats(4.0, 60.0), "beta_slow": st.floats(0.2, 3.0),
    "mscale": st.floats(0.1, 2.0), "mscale_all_dim": st.floats(0.1, 2.0), "truncate": st.booleans()}))
def test_yarn(d_head, theta, factor, n_ctx, original, optional):
    where = {} if original is None else {"original_max_position_embeddings": original}
    if factor is None and not where:
        factor = 2.0
    agree(d_head, n_ctx, {"rope_type": "yarn", "rope_theta": theta, "factor": factor, **where, **optional})


@pytest.mark.parametrize("pairing", ["half", "adjacent"])
def test_tables_are_the_angles_of_every_position_times_the_gain(pairing):
    frequency_P, _ = frequencies(Rope(theta=10_000.0, d_rotary=6))
    cos_TR, sin_TR = tables(frequency_P, 1.25, torch.tensor([0, 7, 3]), pairing)
    assert cos_TR.shape == sin_TR.shape == (3, 6)
    for p in range(3):
        first, second = (p, p + 3) if pairing == "half" else (2 * p, 2 * p + 1)
        angle = torch.tensor([0.0, 7.0, 3.0]) / 10_000 ** (2 * p / 6)
        assert torch.allclose(cos_TR[:, first], 1.25 * angle.cos())
        assert torch.allclose(sin_TR[:, second], 1.25 * angle.sin())
        assert torch.equal(cos_TR[:, first], cos_TR[:, second])
        assert torch.equal(sin_TR[:, first], -sin_TR[:, second])


def test_scores_sharpen_by_the_logarithm_of_the_stretches_passed():
    """Llama 4 at its published settings: 1 up to position 8190, then a step every 8192 tokens."""
    t = Temperature(every=8192, by=0.1, first=1)
    positions = torch.tensor([0, 8190, 8191, 16_382, 16_383, 10_485_759])
    expected = [1.0, 1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3), 1 + 0.1 * math.log(1281)]
    assert sharpness(t, positions).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert sharpness(Temperature(every=8192, by=0.1, first=0), positions[2:3]).item() == 1.0


def test_scores_sharpen_by_the_logarithm_of_what_is_seen():
    """Qwen-1 at its published 2048 or 8192: the query at position p sees p + 1 tokens."""
    positions = torch.tensor([0, 2046, 2047, 2048, 8191, 32_767])
    expected = [1.0, 1.0, 1.0, math.log(2049, 2048), math.log(8192, 2048), math.log(32_768, 2048)]
    assert sharpness(LogTemperature(original=2048), positions).flatten().tolist() == pytest.approx(expected, rel=1e-6)

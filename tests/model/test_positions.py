"""Sines and cosines against numbers worked out one by one, and against the model they come from."""
from __future__ import annotations

import math

import pytest
import torch
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from pellucid.model.positions import sinusoids


@pytest.mark.parametrize("width", [6, 7, 48])
def test_sines_come_first_and_frequencies_reach_one_in_ten_thousand(width):
    positions_T = torch.tensor([0, 1, 40, 2049])
    found = sinusoids(positions_T, width)
    assert found.shape == (4, width)
    for row, p in zip(found.tolist(), positions_T.tolist(), strict=True):
        angles = [p * 10_000 ** (-i / (width // 2 - 1)) for i in range(width // 2)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [0.0] * (width % 2)
        assert row == pytest.approx(expected, abs=3e-4)  # float32 angles: 2049 radians are known to 1.2e-4


@pytest.mark.parametrize("width", [6, 7, 48])
def test_sinusoids_equal_those_of_transformers(width):
    theirs = XGLMSinusoidalPositionalEmbedding(2048, width, None)
    assert torch.equal(sinusoids(torch.arange(2050), width), theirs.weights)

"""Families that transformers lacks: published configs are read whole, and what is not computed is refused by name."""
from __future__ import annotations

import math

import pytest

from pellucid import cost, families
from pellucid.errors import PellucidError
from pellucid.families._describe import describe
from tests.families.build import build, shapes
from tests.families.cases_d import CASES
from tests.families.configs_d import CONFIGS

CASE = {str(case): case for case in CASES}
REFERENCE = {case.model_type: case.reference for case in CASES}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read_whole_and_its_tensors_count_as_the_reference_lists_them(name):
    raw = CONFIGS[name]
    described, reference = describe(raw), REFERENCE[raw["model_type"]]
    listed = reference.shapes(reference.DEFAULTS | raw)
    assert cost.parameters(described.spec) == sum(math.prod(shape) for shape in listed.values())
    assert set(listed) == set(described.names.saved(shapes(described.spec), {n: s[0] for n, s in shapes(described.spec).items()})) - (
        {"lm_head.weight", "output.weight"} if described.spec.tied else set())


@pytest.mark.parametrize(("case", "settings", "message"), [
    ("internlm2-released", {"rope_pos_id_version": "interleaved"}, "rope_pos_id_version='interleaved' (only 'default')"),
    ("minicpm-released", {"sparse_config": {"kernel_size": 32}}, "sparse_config={'kernel_size': 32} (only None)"),
    ("minicpm-released", {"num_experts": 8}, "1 key that family 'minicpm' does not read: num_experts=8"),
])
def test_a_setting_that_is_not_computed_is_refused_by_name(case, settings, message):
    with pytest.raises(PellucidError) as refusal:
        describe(build(CASE[case]).raw | settings)
    assert message in str(refusal.value)


def test_a_model_type_run_together_is_found_by_its_words():
    assert families.family("PanguEmbedded") is families.family("pangu_embedded")

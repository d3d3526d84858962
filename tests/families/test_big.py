"""What the shared tests of the big mixtures do not see: names of their own, refusals."""
from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pellucid import families
from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._describe import describe
from tests.families.build import build
from tests.families.case import Json
from tests.families.cases_c import CASES

RAW = {str(case): case for case in CASES}


def changed(case: str, **settings: Any) -> Json:
    """The config.json of a case with these settings; ... drops a key."""
    return {k: v for k, v in (build(RAW[case]).raw | settings).items() if v is not ...}


@pytest.mark.parametrize(("case", "settings", "kind", "message"), [
    ("deepseek_v2-lite", {"topk_method": "noaux_tc"}, UnsupportedModel, "topk_method='noaux_tc' (only 'greedy' and 'group_limited_greedy')"),
    ("deepseek_v2-lite", {"norm_topk_prob": True}, UnsupportedModel, "does not implement: norm_topk_prob=True (only False)"),
    ("deepseek_v2-lite", {"moe_layer_freq": 2}, UnsupportedModel, "does not implement: moe_layer_freq=2 (only 1)"),
    ("deepseek_v2-lite", {"num_key_value_heads": 2}, UnsupportedModel, "does not implement: num_key_value_heads=2 (only 6)"),
    ("deepseek_v3-released", {"scoring_func": "softmax"}, UnsupportedModel, "does not implement: scoring_func='softmax' (only 'sigmoid')"),
    ("deepseek_v3-released", {"topk_method": "greedy"}, UnsupportedModel, "does not implement: topk_method='greedy' (only 'noaux_tc')"),
    ("deepseek_v3-released", {"kv_lora_rank": 0}, BadConfig, "ValueError: d_latent is 0, and no decoder has fewer than 1"),
    ("deepseek_v3-released", {"n_group": 3}, BadConfig, "do not go together: 8 experts do not make 3 groups of equal size"),
])
def test_a_refusal_says_what_was_found_and_what_was_expected(case: str, settings: Json, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as refusal:
        describe(changed(case, **settings))
    assert message in str(refusal.value)


def test_kimi_k2_is_deepseek_v3_under_a_name_of_its_own() -> None:
    theirs = build(RAW["deepseek_v3-one_group"])
    mine = describe(theirs.raw | {"model_type": "kimi_k2"})
    assert mine.spec == dataclasses.replace(theirs.spec, family="kimi_k2")
    assert families.family("kimi_k2").WEIGHTS == theirs.module.WEIGHTS

"""Published configs of Llama's line are read whole, and describe the model that was published."""
from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

from pellucid import families
from pellucid.weights.assemble import assemble
from pellucid.weights.names import NameTable
from tests.families.build import read_spec, shapes
from tests.families.cases_llama import CASES
from tests.families.configs_llama import CONFIGS

FAMILIES = {raw["model_type"] for raw, _ in CONFIGS.values()}


def test_every_family_of_the_line_is_among_them():
    assert {case.family for case in CASES} == FAMILIES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read_whole_and_makes_a_model_of_the_published_size(name):
    raw, n_parameters = CONFIGS[name]
    assert sum(math.prod(shape) for shape in shapes(read_spec(raw)).values()) == n_parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_same_model_out_of_it(name, tmp_path):
    """What transformers makes of the file, saved in its own dialect of today, is the same spec to us."""
    raw = CONFIGS[name][0]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert read_spec(json.loads((tmp_path / "again" / "config.json").read_text())) == read_spec(raw)


@pytest.mark.parametrize("family", sorted(FAMILIES - {"mixtral", "qwen3_moe", "olmoe"}))  # those hold their experts stacked in memory
def test_every_tensor_that_transformers_makes_of_it_has_its_place_and_shape(family, tmp_path):
    raw = next(raw for raw, _ in CONFIGS.values() if raw["model_type"] == family)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    spec = read_spec(raw)
    files = {n: t for n, t in theirs.state_dict().items() if not (spec.tied and n == "lm_head.weight")}
    ours, out = assemble(NameTable(families.family(family).WEIGHTS), files.items(), shapes(spec), spec)
    assert {n: tuple(t.shape) for n, t in ours.items()} == shapes(spec)
    assert not out

"""Published configs beside transformers: the same model is read out of them, and every tensor of it has its place. Sizes: tests/test_real_configs.py."""
from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from pellucid import cost, families
from pellucid.spec import Experts
from pellucid.weights.assemble import assemble
from pellucid.weights.names import NameTable
from tests.families.build import read_spec, shapes
from tests.test_real_configs import CHECKPOINTS

# Read by their authors' own code, or by ours alone: transformers knows the name for something else, or not at all.
KNOWN = {repo: entry["config"] for repo, entry in CHECKPOINTS.items() if entry["config"]["model_type"] in transformers.CONFIG_MAPPING}
SPEC = {repo: read_spec(raw) for repo, raw in KNOWN.items()}


def smallest() -> dict[str, str]:
    """Family -> its smallest checkpoint, where transformers names its tensors in memory as in the files: not experts, which it stacks; not wrappers."""
    found: dict[str, str] = {}
    for repo in sorted(KNOWN, key=lambda repo: cost.parameters(SPEC[repo])):
        spec = SPEC[repo]
        if spec.family == KNOWN[repo]["model_type"].replace("-", "_") and not any(isinstance(layer.mlp, Experts) for layer in spec.layers):
            found.setdefault(spec.family, repo)
    return found


def their_config(raw: dict[str, Any], folder: Any) -> Any:
    (folder / "config.json").write_text(json.dumps(raw))
    return transformers.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("repo", KNOWN)
def test_transformers_reads_the_same_model_out_of_it(repo, tmp_path):
    """What transformers makes of the file, saved in its own dialect of today, is the same spec to us."""
    their_config(KNOWN[repo], tmp_path).save_pretrained(tmp_path / "again")
    assert read_spec(json.loads((tmp_path / "again" / "config.json").read_text())) == SPEC[repo]


@pytest.mark.parametrize("family", smallest())
def test_every_tensor_that_transformers_makes_of_it_has_its_place_and_shape(family, tmp_path):
    repo = smallest()[family]
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(their_config(KNOWN[repo], tmp_path))
    spec = SPEC[repo]
    files = {n: t for n, t in theirs.state_dict().items() if not (spec.tied and n in ("lm_head.weight", "embed_out.weight"))}
    ours, out = assemble(NameTable(families.family(family).WEIGHTS), files.items(), shapes(spec), spec)
    assert {n: tuple(t.shape) for n, t in ours.items()} == shapes(spec)
    assert not out

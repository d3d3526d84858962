"""Published configs beside transformers: the same model is read out of them, and every tensor of it has its place. Sizes: tests/test_real_configs.py."""
from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers

from pellucid import cost, families
from pellucid.spec import DecoderSpec, Experts
from pellucid.weights.assemble import assemble
from pellucid.weights.names import NameTable
from tests.families.build import read_spec, shapes
from tests.test_real_configs import CHECKPOINTS

# Read by their authors' own code, or by ours alone: transformers knows the name for something else, or not at all.
KNOWN = {repo: entry["config"] for repo, entry in CHECKPOINTS.items() if entry["config"]["model_type"] in transformers.CONFIG_MAPPING}
SPEC = {repo: read_spec(raw) for repo, raw in KNOWN.items()}

# Where transformers 5.23 makes another model of the file than it says, or none: what is different, and why ours stands.
BASE = "attn_config says rope_theta=500000, and the file says 10000 outside of it"  # its rotary embedding turns by its default, not by attn_config's base
KINDS = "Field 'attn_type' expected one of ('multihead_attention', 'multiquery_attention'), got grouped_query_attention"
APART = {
    "SinclairSchneider/dbrx-instruct-quantization-fixed": BASE, "ChuckMcSneed/dolphin-2.9.1-dbrx-llamacppfixed": BASE,
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "tied=True",  # the wrapper class's own default; the files hold an unembedding: see families/_describe.py
    "replit/replit-code-v1_5-3b": KINDS, "nluai/phogpt-ft-test3": "Field 'attn_pdrop' expected int, got float (value: 0.0)"}


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


def reread(repo: str, folder: Any) -> DecoderSpec:
    """What transformers makes of the file, saved in its own dialect of today, as we read that."""
    their_config(KNOWN[repo], folder).save_pretrained(folder / "again")
    return read_spec(json.loads((folder / "again" / "config.json").read_text()))


@pytest.mark.parametrize("repo", [repo for repo in KNOWN if repo not in APART])
def test_transformers_reads_the_same_model_out_of_it(repo, tmp_path):
    assert reread(repo, tmp_path) == SPEC[repo]


@pytest.mark.parametrize("repo", APART)
def test_what_transformers_reads_otherwise_is_known(repo, tmp_path):
    try:
        theirs, ours = reread(repo, tmp_path), SPEC[repo]
    except Exception as refusal:  # of whichever of the two libraries
        assert APART[repo] in str(refusal)  # noqa: PT017
        return
    different = [f"{f.name}={getattr(theirs, f.name)}" for f in dataclasses.fields(ours) if getattr(theirs, f.name) != getattr(ours, f.name)]
    assert different == [APART[repo]]


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

"""An unknown architecture is told apart by its config keys; its own code is never run."""
from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from pellucid import families
from pellucid.errors import UnsupportedModel
from pellucid.families._describe import describe
from pellucid.families._resemble import likeness, resembling
from pellucid.model.load import load_decoder
from tests.test_real_configs import CHECKPOINTS

CODE = {"AutoConfig": "configuration_acme.AcmeConfig", "AutoModelForCausalLM": "modeling_acme.AcmeForCausalLM"}
# Checkpoints whose family reads keys of its own: none other reads the whole file.
TELLING = ["openai-community/gpt2-xl", "bigcode/starcoder2-3b", "bigscience/bloom", "deepseek-ai/DeepSeek-R1", "google/gemma-2-9b",
           "ibm-granite/granite-3.3-8b-instruct", "allenai/OLMoE-1B-7B-0924-SFT", "stabilityai/stablelm-2-12b", "facebook/opt-1.3b"]


def renamed(repo: str, **more: object) -> dict:
    return CHECKPOINTS[repo]["config"] | {"model_type": "acme"} | more


def test_a_remote_code_checkpoint_says_what_it_resembles_and_that_its_code_is_not_run():
    with pytest.raises(UnsupportedModel) as refusal:
        describe(renamed("ibm-granite/granite-3.3-8b-instruct", auto_map=CODE))
    text = str(refusal.value)
    assert text.startswith("model_type 'acme' is not a family Pellucid runs. ")
    assert re.search(r"\) By its keys it resembles granite \((\d+) of \1 keys read\), \w+ \(\d+ of \d+ keys read\), ", text)
    assert "If it is one of these under another name, set model_type to it: a key nobody reads and a tensor without a place still stop the load." in text
    assert text.endswith("The repository brings code of its own for it (auto_map: modeling_acme.AcmeForCausalLM), and Pellucid never runs remote code.")


def test_its_code_lies_there_and_is_not_run(tmp_path):
    (tmp_path / "modeling_acme.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "config.json").write_text(json.dumps(renamed("openai-community/gpt2-xl", auto_map=CODE)))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="never runs remote code"):
        load_decoder(tmp_path, dtype="float32", device="cpu")
    assert not (tmp_path / "ran").exists()
    assert "modeling_acme" not in sys.modules


@pytest.mark.parametrize("repo", TELLING)
def test_a_known_family_under_another_name_is_recognized(repo):
    name, read, meant = resembling(renamed(repo))[0]
    assert name == CHECKPOINTS[repo]["config"]["model_type"]
    assert read == meant


def test_every_published_checkpoint_resembles_its_own_family_as_much_as_any():
    for repo, entry in CHECKPOINTS.items():
        like = resembling(renamed(repo), n=len(families.NAMES))
        own = families.family(entry["config"]["model_type"]).__name__.rpartition(".")[2]
        best = like[0][1]
        assert own in [name for name, read, _ in like if read == best], repo


@pytest.mark.parametrize("raw", [{}, {"model_type": "acme"}, {"hidden_size": "x", "vocab_size": [1]}, {"a": 1, "b": 2, "c": 3}])
def test_what_makes_no_decoder_resembles_nothing(raw):
    assert likeness(raw) == ""

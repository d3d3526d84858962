"""`pellucid quantize --auto`: what is written, what is said, and what is refused."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pellucid.records import Record
from pellucid.weights.gguf import open_gguf
from tests.audit.conftest import TEXT, random_model
from tests.cli.conftest import Said

Say = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(random_model(tmp_path / "a", scale=3, n_layers=1, dtype=torch.bfloat16))


def test_a_mix_is_made_told_and_recorded(say: Say, folder: str, tmp_path: Path) -> None:
    out, text = tmp_path / "b.gguf", str(tmp_path / "text.txt")
    done = say("quantize", folder, str(out), "--auto", "--fit", "5bpw", "--text", text, "--without-tokenizer", "--tokens", "1100")
    assert done.code == 0, done.err
    for part in ("ffn_down", "bits per weight", "KL, estimated", "by these estimates no mix of this size loses less than", "sensitivity  9 matrices on "):
        assert part in done.err
    assert done.err.endswith(f"next: pellucid compare {folder} {out} --text OTHER.txt\n")
    record = Record.read(tmp_path / "b.auto.record.json")
    types = {name: entry.type for name, (_, entry) in open_gguf(out).tensors.items()}
    mix = record.output["mix"]
    assert {name: choice["format"] for name, choice in mix.items()} == {name: types[name] for name in mix}
    assert record.output["bits_per_weight"] <= 5
    assert set(record.output["choices"]) == set(mix)
    assert {"model.safetensors", "text_file", "imatrix"} <= record.inputs.keys()
    assert (tmp_path / "b.imatrix.gguf").is_file()
    again = say("quantize", folder, str(tmp_path / "c.gguf"), "--auto", "--fit", "5bpw", "--text", text, "--without-tokenizer", "--tokens", "1100", "--json",
                "-q", "--imatrix", str(tmp_path / "b.imatrix.gguf"), "--formats", "q4_k,q6_k,q8_0,q4_0")
    said = json.loads(again.out)
    assert said["auto"]["bits_per_weight"] <= 5
    assert {choice["format"] for choice in said["auto"]["mix"].values()} <= {"Q4_K", "Q6_K", "Q8_0", "Q4_0", "BF16"}


def test_what_cannot_be_asked_is_said(say: Say, folder: str, tmp_path: Path) -> None:
    out = str(tmp_path / "b.gguf")
    assert "--auto needs a budget: --fit 4GB, --fit 300MB or --fit 4.5bpw" in say("quantize", folder, out, "--auto").err
    assert "--auto chooses every tensor's format, and --to does too" in say("quantize", folder, out, "--auto", "--fit", "1GB", "--to", "Q4_0").err
    assert "and --tensor-type does too" in say("quantize", folder, out, "--auto", "--fit", "1GB", "--tensor-type", "ffn=Q4_0").err
    assert "--fit, --text and --formats go with --auto" in say("quantize", folder, out, "--to", "Q4_0", "--fit", "1GB").err
    assert "no mix. Give one with --to Q4_K_M, or have one made for the model: --auto --fit 4GB" in say("quantize", folder, out).err
    for wrong, words in [(("--fit", "0"), "--fit '0' is no budget, such as 4GB"),
                         (("--fit", "1GB", "--formats", "Q4_K,Q9"), "--formats Q9: not written (written: F32")]:
        refused = say("quantize", folder, out, "--auto", *wrong)  # before the model is read
        assert (refused.code, refused.err.startswith(f"error: {words}")) == (2, True)
    assert "write NAME.gguf" in say("quantize", folder, str(tmp_path / "b"), "--auto", "--fit", "1GB").err
    done = say("quantize", folder, out, "--auto", "--fit", "10kB", "--text", str(tmp_path / "text.txt"), "-q")
    assert done.code == 2
    assert done.err.startswith("error: no mix fits 10,000 bytes: with every matrix in its smallest format this model takes ")
    assert not list(tmp_path.glob("b*"))

"""Which tensors changed, by our names, whatever the files call and pack them."""
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.audit.tensors import compare_tensors, relative_error
from pellucid.model.convert import convert
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.checkpoint import open_checkpoint

Make = Callable[..., Path]


def test_the_error_is_relative_to_the_squares_of_the_first() -> None:
    a = torch.tensor([[3.0, 4.0]])
    assert relative_error(a, torch.tensor([[3.0, 5.0]])) == 1 / 25
    assert relative_error(a, torch.zeros(1, 2)) == 1
    assert (relative_error(torch.zeros(2), torch.zeros(2)), relative_error(torch.zeros(2), torch.ones(2))) == (0, math.inf)


def test_pieces_of_packed_and_plain_rows_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.audit.tensors.PIECE", 200)
    a = torch.randn(13, 64, generator=torch.Generator().manual_seed(0))
    packed = quantize_rows(a, "Q4_0")
    assert relative_error(a, packed) == pytest.approx(((unpack(packed) - a).square().sum() / a.square().sum()).item(), rel=1e-5)


def test_tensors_are_ranked_by_error_with_the_format_and_bytes_of_each(make: Make, tmp_path: Path) -> None:
    folder = make("a", dtype=torch.bfloat16)
    convert(folder, tmp_path / "b.gguf", quantize="Q8_0", overrides=[("blk.1.ffn_up", "Q4_0")], tokenizer=False)
    found = compare_tensors(open_checkpoint(folder), open_checkpoint(tmp_path / "b.gguf"))
    assert found.left_out == {}
    worst = found.changed[0]
    assert (worst.name, worst.format_a, worst.format_b, worst.shape) == ("blocks.1.mlp.up.weight", "BF16", "Q4_0", (96, 256))
    assert (worst.bytes_a, worst.bytes_b) == (2 * 96 * 256, 96 * 256 // 32 * 18)
    stored = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].float()
    assert worst.error == pytest.approx(((unpack(quantize_rows(stored, "Q4_0")) - stored).square().sum() / stored.square().sum()).item(), rel=1e-4)
    errors = [each.error for each in found.changed]
    assert errors == sorted(errors, reverse=True)
    by_name = {each.name: each for each in found.changed}
    assert by_name["final_norm.weight"].error == 0
    assert by_name["blocks.0.attn.q.weight"].error < 1e-4  # whose rows GGUF keeps in another order


def test_what_only_one_of_them_has_is_said(make: Make) -> None:
    a, b = make("a", d_ff=96), make("b", d_ff=64, n_layers=3)
    found = compare_tensors(open_checkpoint(a), open_checkpoint(b))
    assert found.left_out["blocks.0.mlp.up.weight"] == "(96, 256) in A, (64, 256) in B"
    assert found.left_out["blocks.2.attn.q.weight"] == "only B has it"
    assert "blocks.1.attn.q.weight" in {each.name for each in found.changed}


def test_one_number_changed_is_found(make: Make) -> None:
    a, b = make("a"), make("b")
    tensors = load_file(b / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][5, 7] += 1
    save_file(tensors, b / "model.safetensors")
    found = compare_tensors(open_checkpoint(a), open_checkpoint(b)).changed
    assert [each.name for each in found if each.error] == ["blocks.1.attn.o.weight"]

"""Mixes made for a model: sensitivities are what was measured, budgets are kept, and a tensor that matters gets more bits."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.audit import auto
from pellucid.audit.auto import budget_bytes, head_bytes, plan
from pellucid.audit.damage import look
from pellucid.audit.held_out import windows
from pellucid.audit.sensitivity import Matrix, Model, Reference, measure, replacing, units
from pellucid.errors import BadRequest
from pellucid.families._describe import describe_checkpoint
from pellucid.model import importance
from pellucid.model.convert import convert
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.gguf import open_gguf
from pellucid.weights.imatrix import write_imatrix
from tests.audit.conftest import TEXT

Make = Callable[..., Path]


@pytest.fixture
def loaded(make: Make) -> pellucid.Model:
    return pellucid.load(make("a", scale=3, n_layers=1, dtype=torch.bfloat16), dtype="float32")


def texts(model: pellucid.Model) -> list:
    return windows(model.tokenizer.encode(TEXT), 128, bos=None, most=1_100)


def test_kl_with_a_tensor_replaced_is_that_of_the_model_with_it(loaded: pellucid.Model, make: Make) -> None:
    reference = Reference(loaded.decoder, texts(loaded))
    folder = make("b", scale=3, n_layers=1, dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    changed = unpack(quantize_rows(tensors[name].float(), "Q4_0"))
    save_file({key: tensor.float() for key, tensor in tensors.items()} | {name: changed}, folder / "model.safetensors")
    other = pellucid.load(folder, dtype="float32")
    expected = look(loaded.decoder, other.decoder, texts(loaded)).kl.mean().item()
    assert reference.kl({"blocks.0.mlp.up.weight": changed}) == pytest.approx(expected, rel=1e-3)
    assert reference.kl({}) == pytest.approx(0, abs=1e-9)


def test_what_was_replaced_is_put_back_also_of_tied_tables(make: Make) -> None:
    model = pellucid.load(make("a"), dtype="float32")
    before = {name: p.data_ptr() for name, p in model.decoder.named_parameters()}

    def stop() -> None:
        with replacing(model.decoder, {"embed.weight": torch.zeros(259, 256)}):
            assert not model.decoder.embed.weight.any()
            assert model.decoder.unembed.weight.any()
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert {name: p.data_ptr() for name, p in model.decoder.named_parameters()} == before
    tied = pellucid.load("shipped").decoder
    with replacing(tied, {"embed.weight": torch.zeros_like(tied.embed.weight)}):
        assert not tied.unembed.weight.any()
    assert tied.unembed.weight is tied.embed.weight


def test_the_damage_of_every_format_is_about_what_it_is_when_measured() -> None:
    """Of a trained model's matrix: estimated from one format's KL by squared errors, measured here for others."""
    loaded = pellucid.load("shipped", dtype="float32")
    ids, bos = loaded.tokenizer.encode((loaded.checkpoint.folder / "held_out.txt").read_text("utf8")), loaded.tokenizer.bos_id
    model = Model(loaded.checkpoint, describe_checkpoint(loaded.checkpoint))
    reference = Reference(loaded.decoder, windows(ids, 512, bos=bos, most=1_024))
    imatrix = importance.measure(loaded.decoder, importance.windows(ids, 512, bos=bos, most=4))
    [matrix] = model.matrices = [matrix for matrix in model.matrices if matrix.name == "blk.3.ffn_down.weight"]
    assert matrix.formats == ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "BF16")
    [choices] = measure(model, reference, imatrix, formats=("Q2_K", "Q4_K", "Q6_K")).values()
    assert [choice.format for choice in choices] == ["Q2_K", "Q4_K", "Q6_K", "BF16"]
    for choice in choices[:-1]:
        packed = quantize_rows(model.read("blocks.3.mlp.down.weight"), choice.format, imatrix.importance(matrix.name, matrix.shape))
        assert choice.n_bytes == packed.nbytes
        assert choice.damage == pytest.approx(reference.kl({"blocks.3.mlp.down.weight": unpack(packed)}), rel=0.25)
    assert (choices[-1].damage, choices[-1].n_bytes) == (0, 2 * 256 * 768)


def test_a_tensor_that_matters_gets_more_bits(make: Make) -> None:
    """Layer 1's feed-forward is made to write a hundredth of what layer 0's writes."""
    folder = make("a", scale=3)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 0.01
    save_file(tensors, folder / "model.safetensors")
    model = pellucid.load(folder, dtype="float32")
    found = plan(model, TEXT, "5bpw", source="text", tokens=1_100)
    bits = {name: choice.n_bytes for name, choice in found.allocation.chosen.items()}
    assert bits["blk.0.ffn_up.weight"] > bits["blk.1.ffn_up.weight"]
    assert bits["blk.0.ffn_gate.weight"] > bits["blk.1.ffn_gate.weight"]
    assert found.bits_per_weight <= 5
    assert found.bits_per_weight > 4.8
    assert found.allocation.bound <= found.allocation.damage


def test_the_file_is_what_was_planned_and_fits(loaded: pellucid.Model, tmp_path: Path) -> None:
    found = plan(loaded, TEXT, "180kB", source="text", tokens=1_100, tokenizer=False)
    write_imatrix(tmp_path / "i.gguf", found.imatrix)
    out = tmp_path / "b.gguf"
    done = convert(loaded.checkpoint.folder, out, quantize=found.base, overrides=found.overrides, imatrix=tmp_path / "i.gguf", tokenizer=False)
    assert done.n_bytes <= 180_000
    tensors = open_gguf(out).tensors
    assert {name: tensors[name][1].type for name in found.allocation.chosen} == {name: c.format for name, c in found.allocation.chosen.items()}
    assert sum(entry.n_bytes for _, entry in tensors.values()) == found.allocation.n_bytes + found.fixed
    assert sum(n for _, _, n, _ in found.table()) == found.allocation.n_bytes


def test_a_gguf_file_keeps_what_it_has_where_that_fits(loaded: pellucid.Model, tmp_path: Path) -> None:
    convert(loaded.checkpoint.folder, tmp_path / "q.gguf", quantize="Q5_K", tokenizer=False)
    checkpoint = open_checkpoint(tmp_path / "q.gguf")
    model = Model(checkpoint, describe_checkpoint(checkpoint))
    kinds = {matrix.name: (matrix.stored, matrix.formats[-1]) for matrix in model.matrices}
    assert kinds["blk.0.ffn_gate.weight"] == ("Q5_K", "Q5_K")
    up = next(matrix for matrix in model.matrices if matrix.name == "blk.0.ffn_up.weight")
    assert "Q6_K" not in up.formats
    assert torch.equal(model.read("blocks.0.mlp.up.weight"), unpack(checkpoint.tensor("blk.0.ffn_up.weight")))


def test_a_budget_no_mix_fits_is_an_error_before_anything_is_measured(loaded: pellucid.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure", None)
    least = r"^no mix fits 9,000 bytes: with every matrix in its smallest format this model takes 1\d\d,\d{3} bytes \(\d+,\d{3} of them"
    with pytest.raises(BadRequest, match=least):
        plan(loaded, TEXT, "9kB", source="text")
    with pytest.raises(BadRequest, match="--formats Q9: not written"):
        plan(loaded, TEXT, "1GB", source="text", formats=["Q9"])
    with pytest.raises(BadRequest, match="the text has 99 tokens to score, and 1,024 are the least"):
        plan(loaded, TEXT[:100], "1GB", source="text")


def test_budgets_are_sizes_or_bits_per_weight() -> None:
    assert [budget_bytes(text, 800) for text in ("4GB", "1.5 MiB", "300", "4.5bpw", "2BPW", "1kb", "1K")] == [
        4_000_000_000, 1_572_864, 300, 450, 200, 1000, 1000]
    for wrong in ("", "4 bananas", "-1GB", "0", "0bpw"):
        with pytest.raises(BadRequest, match=r"is no budget, such as 4GB, 300MB or 4\.5bpw"):
            budget_bytes(wrong, 800)


def test_room_is_kept_for_the_tokenizer(loaded: pellucid.Model) -> None:
    folder = loaded.checkpoint.folder
    n = head_bytes(loaded.checkpoint, 10, 259, True) - head_bytes(loaded.checkpoint, 10, 259, False)
    assert n == (folder / "tokenizer.json").stat().st_size + 12 * 259


def test_of_many_tensors_those_of_a_kind_in_neighboring_layers_are_measured_together() -> None:
    matrices = [Matrix(f"blk.{i}.{part}.weight", (256, 256), "BF16", (f"{part}{i}",)) for i in range(40) for part in ("attn_q", "ffn_up")]
    matrices.append(Matrix("token_embd.weight", (256, 256), "BF16", ("embed.weight",)))
    assert [len(unit) for unit in units(matrices, 200)] == [1] * 81
    several = units(matrices, 30)
    assert len(several) <= 30
    assert sorted(matrix.name for unit in several for matrix in unit) == sorted(matrix.name for matrix in matrices)
    for unit in several:
        numbers = [int(matrix.name.split(".")[1]) for matrix in unit if matrix.name.startswith("blk")]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else unit[0].name == "token_embd.weight"
        assert len({matrix.name.split(".")[-2] for matrix in unit}) == 1


def test_tensors_measured_together_share_what_was_found_by_their_errors(loaded: pellucid.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(loaded.checkpoint, describe_checkpoint(loaded.checkpoint))
    reference = Reference(loaded.decoder, texts(loaded))
    pair = [matrix for matrix in model.matrices if matrix.name in ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight")]
    monkeypatch.setattr("pellucid.audit.sensitivity.units", lambda matrices: [pair])
    choices = measure(model, reference, None)
    packed = {matrix.ours[0]: unpack(quantize_rows(model.read(matrix.ours[0]), matrix.probe)) for matrix in pair}
    shares = [next(choice.damage for choice in choices[matrix.name] if choice.format == matrix.probe) for matrix in pair]
    assert sum(shares) == pytest.approx(reference.kl(packed), rel=1e-6)

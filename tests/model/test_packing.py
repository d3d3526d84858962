"""Matrices packed as they are loaded: the numbers of a file that was written packed, in less memory, and what is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.errors import BadCheckpoint, BadRequest, OutOfMemoryBudget
from pellucid.model.convert import convert
from pellucid.model.decoder import Decoder
from pellucid.model.experts import Router
from pellucid.model.load import load_decoder
from pellucid.model.packing import AT_LOAD
from pellucid.ops.packed import is_whole
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.packed_rows import PackedWeight
from tests.families.build import randomized
from tests.families.cases import CASES
from tests.weights.build import llama, write

SHIPPED = Path(pellucid.__file__).with_name("shipped")
IDS = torch.arange(40, 60)


@torch.no_grad()
def logits(decoder: Decoder) -> torch.Tensor:
    return decoder.unembed(decoder(IDS)).float()


def test_nf4_at_load_is_nf4_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(SHIPPED, tmp_path / "nf4", quantize="nf4")
    monkeypatch.setattr("pellucid.model.packing._PART", 10_000)  # in many parts, as large matrices are
    for ops in ("training", "auto"):
        how: dict[str, Any] = dict(ops=ops, activations="exact")
        at_load, from_file = load_decoder(SHIPPED, quantize="nf4", **how)[0], load_decoder(tmp_path / "nf4", **how)[0]
        assert torch.equal(logits(at_load), logits(from_file))


@pytest.mark.parametrize("format", AT_LOAD)
def test_the_matrices_of_the_blocks_are_packed_and_nothing_else(format: str) -> None:
    dense = load_decoder(SHIPPED)[0].weights()
    decoder, report = load_decoder(SHIPPED, activations="exact", quantize=format)
    for name, weight in decoder.weights().items():
        if name.startswith("blocks.") and dense[name].ndim == 2:
            assert isinstance(weight, PackedWeight)
            plain, was = unpack(weight).float(), dense[name].float()
            assert 0 < (plain - was).square().mean() < 0.012 * was.square().mean()
            if format in ("q8_0", "q4_k"):
                assert torch.equal(plain, unpack(quantize_rows(was, format.upper())))
            if format == "int8":  # of a row's largest number 127 parts, so that no number is further than half a part from what it was
                assert ((plain - was).abs() <= was.abs().amax(1, keepdim=True) / 127 * 0.501).all()
        else:
            assert torch.equal(weight, dense[name])
    assert f"packed in {format} as they were loaded" in " ".join(report.notes)


@pytest.mark.parametrize("format", ["int8", "q8_0", "q4_k"])
def test_whole_numbers_are_multiplied_by_the_kernels(format: str) -> None:
    exact, fast = (load_decoder(SHIPPED, activations=how, quantize=format)[0] for how in ("exact", "auto"))
    assert all(is_whole(weight) for weight in exact.weights().values() if isinstance(weight, PackedWeight))
    assert torch.nn.functional.cosine_similarity(logits(exact).flatten(), logits(fast).flatten(), dim=0) > 0.999


def test_every_expert_is_packed_and_the_router_is_not(tmp_path: Path) -> None:
    randomized(next(case for case in CASES if str(case) == "mixtral-window")).save_pretrained(tmp_path)
    decoder, _ = load_decoder(tmp_path, quantize="int8")
    kinds = {name: isinstance(weight, PackedWeight) for name, weight in decoder.weights().items() if ".mlp." in name and name.endswith(".weight")}
    assert any(".experts." in name for name in kinds)
    assert all(packed == (not isinstance(decoder.get_submodule(name.rpartition(".")[0]), Router)) for name, packed in kinds.items())


def test_memory_is_counted_as_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m")
    held = {}
    for format in (None, "nf4", "int8"):
        decoder, _ = load_decoder(folder, dtype="bfloat16", quantize=format)
        held[format] = sum(weight.nbytes for weight in decoder.weights().values())
    assert held["nf4"] < held["int8"] < held[None]
    monkeypatch.setattr("pellucid.model.load.available_bytes", lambda place: 1000)
    for format in ("nf4", "int8"):
        with pytest.raises(OutOfMemoryBudget) as e:
            load_decoder(folder, dtype="bfloat16", quantize=format, activations="exact")
        cache = e.value.needed_bytes - held[format]
        assert cache >= 0
        assert held.setdefault("cache", cache) == cache  # what is left is the cache, the same for both


def test_what_cannot_be_packed_is_told(tmp_path: Path) -> None:
    convert(SHIPPED, tmp_path / "m.gguf")
    convert(SHIPPED, tmp_path / "nf4", quantize="nf4")
    for path, asked, words in ((SHIPPED, "int3", r"quantize='int3' is no format that .* \(nf4, int8, q8_0"),
                               (tmp_path / "m.gguf", "nf4", "is a GGUF file, whose blocks are used as they are. Leave it out"),
                               (tmp_path / "nf4", "NF4", "is packed already. Leave it out, or give the checkpoint it was made from"),
                               (write(tmp_path / "narrow"), "q4_k", r"blocks\.0\..* has rows of .* numbers, and Q4_K packs 256 together")):
        with pytest.raises(BadRequest, match=words):
            load_decoder(path, quantize=asked)
    plain = llama()
    plain["model.layers.1.mlp.down_proj.weight"][3, 1] = torch.nan
    for asked in ("nf4", "int8"):
        with pytest.raises(BadCheckpoint, match=r"blocks\.1\.mlp\.down\.weight holds nan in row 3, column 1"):
            load_decoder(write(tmp_path / "broken", plain), quantize=asked)


def test_a_run_is_replayed_with_what_it_was_packed_in(tmp_path: Path) -> None:
    from pellucid.api.replay import load_recorded, replay
    model = pellucid.load("shipped", quantize="q4_k")
    done = model.generate("Once", max_tokens=4, temperature=0)
    record = model.record(done)
    assert record.settings["load"]["quantize"] == "q4_k"
    assert replay(record, load_recorded(record)).same

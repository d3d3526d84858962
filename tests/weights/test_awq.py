"""AWQ in both of its layouts means the numbers that AutoAWQ's own order of eight makes of it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.errors import BadConfig, MisshapenTensor, MissingTensors, PellucidError, UnsupportedModel
from pellucid.model.load import load_decoder
from pellucid.weights import awq
from pellucid.weights.group_rows import Affine
from pellucid.weights.packed_rows import PackedRows
from tests.weights.build import write
from tests.weights.quantized import SIZES, Files, Packer, drawn, files, refused, runs_as, scales, spell, weight, words

CONFIG: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
MODULE = "model.layers.1.self_attn.o_proj"
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # order_map of WQLinear_GEMM.from_linear: the i-th code of a word is that of this row of eight


def packer(group: int = 32, version: str = "gemm", zero: int | None = None) -> Packer:
    def pack(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
        size = columns if group == -1 else group
        code_FD = drawn(0, 16, rows, columns, seed=seed)
        zero_FG = drawn(0, 16, rows, columns // size, seed=seed + 1) if zero is None else np.full((rows, columns // size), zero)
        scale_FG = scales(rows, columns // size, seed=seed)
        number_FD = (code_FD - zero_FG.repeat(size, 1)) * scale_FG.double().numpy().repeat(size, 1)
        if version == "gemm":
            def eights(codes: Any) -> Any:
                return words(codes.T.reshape(codes.shape[1], -1, 8)[..., ORDER].reshape(codes.shape[1], -1), 4)

            parts = {"qweight": spell(eights(code_FD)), "qzeros": spell(eights(zero_FG)), "scales": scale_FG.T.contiguous()}
        else:
            width = {32: 4, 64: 2}.get(size, 1)  # calculate_zeros_width of gemv.py, for no more than 8 groups
            zero_FZ, scale_FZ = np.zeros((rows, 8 * width), dtype=np.int64), torch.zeros(rows, 8 * width, dtype=torch.float16)
            zero_FZ[:, : columns // size], scale_FZ[:, : columns // size] = zero_FG, scale_FG
            parts = {"qweight": spell(words(code_FD, 4)), "qzeros": spell(words(zero_FZ, 4)), "scales": scale_FZ}
        return {f"{module}.{name}": tensor for name, tensor in parts.items()}, spell(number_FD).float()

    return pack


@pytest.mark.parametrize("group", [32, 16, -1])
def test_gemm_runs_as_its_numbers(tmp_path: Path, group: int) -> None:
    packed, plain = files(packer(group))
    report = runs_as(tmp_path, packed, plain, CONFIG | {"group_size": group})
    assert report.notes[0] == f"14 matrices stay packed: awq: int4, {'a scale for each row' if group == -1 else f'a scale for {group} columns'}"
    assert set(report.stored) == {"int4", "f32"}


def test_wide_matrices_are_put_in_order_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "_STEP", 3)  # words of a row; none of the widths is a multiple
    packed, plain = files(packer())
    runs_as(tmp_path, packed, plain, CONFIG)


@pytest.mark.parametrize("group", [32, -1])
def test_gemv_runs_as_its_numbers(tmp_path: Path, group: int) -> None:
    packed, plain = files(packer(group, "gemv"))
    runs_as(tmp_path, packed, plain, CONFIG | {"group_size": group, "version": "GEMV"})


def test_the_width_of_gemvs_zeros_is_autoawqs() -> None:
    """calculate_zeros_width by hand: 4096 / 128 = 32 groups make 4 words, 11008 / 128 = 86 make 11, 4096 / 64 = 64 make 8, 65 of them 10, 65 of 32 twelve."""
    assert [awq._width(*sizes) for sizes in ((32, 128), (86, 128), (64, 64), (65, 64), (65, 32), (1, 4096))] == [4, 11, 8, 10, 12, 1]


def test_zeros_in_the_middle_need_nothing_beside_the_blocks_of_gguf(tmp_path: Path) -> None:
    for name, zero, kind in (("middle", 8, PackedRows), ("others", None, Affine)):
        packed, plain = files(packer(zero=zero))
        (tmp_path / name).mkdir()
        runs_as(tmp_path / name, packed, plain, CONFIG)
        decoder, _ = load_decoder(write(tmp_path / name / "m", packed, **SIZES, quantization_config=CONFIG), activations="exact")
        assert type(weight(decoder, "blocks.0.attn.q")) is kind


def test_the_older_names_of_settings_are_read(tmp_path: Path) -> None:
    packed, plain = files(packer())
    runs_as(tmp_path, packed, plain, {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"})


@pytest.mark.parametrize(("change", "config", "kind", "message"), [
    ({}, {"bits": 8}, UnsupportedModel, "bits=8 (read: 4)"),
    ({}, {"version": "gemv_fast"}, UnsupportedModel, "version='gemv_fast' (read: 'gemm', 'gemv')"),
    ({}, {"zero_point": False}, UnsupportedModel, "zero_point=False (only True): without zeros nothing says where the codes begin"),
    ({}, {"group_size": 48}, UnsupportedModel, "has groups of 48 columns, and model.layers.0.mlp.down_proj.qweight has 160: a number that divides them"),
    ({}, {"turned": 1}, BadConfig, "has 1 key that nobody reads: turned=1"),
    ({f"{MODULE}.qzeros": None}, {}, MissingTensors, f"{MODULE}.qweight is packed, and {MODULE}.qzeros is not there"),
    ({f"{MODULE}.scales": torch.zeros(3, 63, dtype=torch.float16)}, {}, MisshapenTensor,
     f"{MODULE}.scales has shape (3, 63), and {MODULE}.qweight of (96, 8) makes it (3, 64)"),
    ({f"{MODULE}.qweight": torch.zeros(96, dtype=torch.int32)}, {}, MisshapenTensor, f"{MODULE}.qweight has shape (96,), and a matrix of words was expected"),
    ({f"{MODULE}.qweight": torch.zeros(96, 8)}, {}, UnsupportedModel, f"{MODULE}.qweight is F32"),
    ({f"{MODULE}.qweight": torch.zeros(160, 8, dtype=torch.int32), f"{MODULE}.qzeros": torch.zeros(5, 8, dtype=torch.int32),
      f"{MODULE}.scales": torch.zeros(5, 64, dtype=torch.float16)}, {}, MisshapenTensor,
     f"{MODULE}.weight has shape (64, 160), and config.json makes it (64, 96) (blocks.1.attn.o.weight)"),
    ({"model.layers.1.mlp.act.scales": torch.zeros(160, dtype=torch.float16)}, {}, PellucidError, "first: model.layers.1.mlp.act.scales"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], config: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    packed, _ = files(packer())
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, CONFIG | config)

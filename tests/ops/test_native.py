"""The CPU's kernels: every format by every variant this processor runs, against the reference; rows that do not depend on their company."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid.errors import BadRequest
from pellucid.model.load import load_decoder
from pellucid.ops.choose import choose
from pellucid.ops.native import Native
from pellucid.ops.packed import rounded
from pellucid.ops.panels import Panels, native
from pellucid.ops.unpack import unpack
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows
from tests.ops import test_packed
from tests.weights.build import write

pytestmark = pytest.mark.native

SHAPES = [(1, 256), (16, 512), (37, 768), (100, 256)]  # one row; a whole panel; ragged ones; several chunks of work


def weights(name: str, F: int, D: int, monkeypatch: pytest.MonkeyPatch) -> PackedRows:
    monkeypatch.setattr(test_packed, "D", D)
    return test_packed.weights(name, F)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("name", native.formats() if native else [])
def test_every_shape_is_the_reference_on_rounded_activations(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, noise = Native(variant=variant), torch.Generator().manual_seed(0)
    for F, D in SHAPES:
        packed = weights(name, F, D, monkeypatch)
        panels, x_TD, bias_F = ops.prepare(packed), torch.randn(21, D, generator=noise), torch.randn(F, generator=noise)
        assert isinstance(panels, Panels)
        assert torch.equal(ops.unpack(panels, torch.float32), unpack(packed))
        expected = rounded(x_TD).double() @ unpack(packed).double().T + bias_F
        out = ops.matmul(x_TD, panels, bias_F)
        assert (out - expected).abs().max() < 2e-6 * expected.abs().max()
        for start, stop in ((0, 1), (3, 5), (2, 18), (1, 21)):
            assert torch.equal(ops.matmul(x_TD[start:stop], panels, bias_F), out[start:stop])


@pytest.mark.parametrize("name", native.formats() if native else [])
def test_tiles_move_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a processor has AMX, whole groups of 16 rows go there: what is added up, and in which order, is the same. Elsewhere the best two are near."""
    packed, x_TD = weights(name, 85, 512, monkeypatch), torch.randn(53, 512, generator=torch.Generator().manual_seed(3))
    found = {variant: Native(variant=variant).matmul(x_TD, Panels.of(packed)) for variant in native.variants()}
    if "avx512-amx" in found:
        assert torch.equal(found["avx512-amx"], found["avx512-vnni"])
    for out in found.values():
        assert (out - found["portable"]).abs().max() < 2e-6 * found["portable"].abs().max()


def test_the_number_of_threads_moves_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, x_TD = Native(), torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    panels, found = ops.prepare(weights("Q8_0", 999, 512, monkeypatch)), []
    for n in (1, 2, 5):
        monkeypatch.setattr("pellucid.ops.native.n_threads", lambda n=n: n)
        found.append(ops.matmul(x_TD, panels))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_asking_for_what_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match=r"variant='sse9' does not run on this processor \(.*portable\)"):
        Native(variant="sse9")
    monkeypatch.setattr("pellucid.ops.native.native", None)
    monkeypatch.setattr("pellucid.ops.native.why_not", "No module named '_native'")
    with pytest.raises(BadRequest, match=r"ops='native' is not installed \(No module named '_native'\)\. Install a C\+\+ compiler .*make native"):
        choose("native")


def test_rows_there_are_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = Panels.of(weights("Q8_0", 5, 256, monkeypatch))
    for row in (-1, 5):
        with pytest.raises(IndexError, match=f"rows {min(row, 0)} to {max(row, 0)} were asked for, of 5"):
            panels.numbers(torch.tensor([0, row]))
    with pytest.raises(ValueError, match="rows of 255 numbers times a matrix of 5 x 256"):
        Native().matmul(torch.zeros(2, 255), panels)


def test_blocks_are_those_of_the_files() -> None:
    assert set(native.formats()) <= BY_NAME.keys()
    for name in native.formats():
        assert native.packed_bytes(name, 16, 256) >= 16 * 256 // BY_NAME[name].n_numbers * BY_NAME[name].n_bytes


def test_attention_is_torchs_where_its_threads_have_just_multiplied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense weights are multiplied by torch, whose threads then spin: a second pool beside them is slower than either."""
    folder = write(tmp_path)
    for threads, deterministic, own in ((1, False, True), (2, False, False), (2, True, True)):
        monkeypatch.setattr("pellucid.ops.native.n_threads", lambda n=threads: n)
        decoder, report = load_decoder(folder, device="cpu", ops="native", deterministic=deterministic)
        assert ("attend" in report.ops.split(" native")[0]) is own
        called: list[int] = []
        monkeypatch.setattr("pellucid.ops.attention.attend", lambda variant, q_THC, k_SKC, v_SKC, *, called=called, **how: called.append(1) or q_THC)
        decoder(torch.arange(3))
        assert bool(called) is own

"""Products in float32 with weights as files hold them: every format by every variant this processor runs, bit for bit the numbers of ops/unpack.py."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.ops import packed, stored
from pellucid.ops.native import Native
from pellucid.ops.panels import native
from pellucid.ops.unpack import UNPACK, unpack
from pellucid.weights.group_rows import GroupRows, Reordered
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from tests.ops import test_packed
from tests.ops.test_groups import BOOK, KINDS, numbers, rows
from tests.test_ops import random

pytestmark = pytest.mark.native
VARIANTS = native.variants() if native else []


def blocks(name: str, F: int, D: int, monkeypatch: pytest.MonkeyPatch) -> PackedRows:
    monkeypatch.setattr(test_packed, "D", D)
    return test_packed.weights(name, F)


def ragged(width: int, n_columns: int = 95) -> GroupRows:
    """A row's last byte holds codes that are nobody's."""
    F, group = 9, 40
    book = BOOK if width == 4 else None
    return GroupRows(codes=numbers(0, 256, F, -(-n_columns * width // 8)), scales=torch.rand(F, -(-n_columns // group)) + 0.1, group=group,
                     n_columns=n_columns, width=width, zeros=0 if book is not None else 2, book=book)


def agrees(variant: str, weight: PackedWeight) -> None:
    """Times the identity a product is the weight's numbers, each rounded never; times anything else the reference's, whatever stands beside a row."""
    ops, (F, D) = Native("exact", variant), weight.shape
    assert stored.has_product(weight)
    assert torch.equal(ops.matmul(torch.eye(D), weight).T, unpack(weight))
    x_TD, bias_F = random(37, D), random(F, seed=2)
    expected = x_TD.double() @ unpack(weight).double().T + bias_F
    out = ops.matmul(x_TD, weight, bias_F)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()
    for start, stop in ((0, 1), (3, 5), (2, 18), (1, 37)):
        assert torch.equal(ops.matmul(x_TD[start:stop], weight, bias_F), out[start:stop])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", UNPACK)
def test_every_format_is_the_reference(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for F, D in ((1, 256), (37, 768), (300, 256)):  # one row; ragged tiles; several chunks
        agrees(variant, blocks(name, F, D, monkeypatch))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_rows_of_plain_numbers_may_have_any_width(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for D in (1, 3, 77):
        agrees(variant, blocks(name, 9, D, monkeypatch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_groups_is_the_reference(variant: str) -> None:
    for weight in (*(rows(kind, group) for kind in KINDS for group in (40, 96, 128)), ragged(2), ragged(4), ragged(8), ragged(2, 1)):
        agrees(variant, weight)
        agrees(variant, weight[2:7])


def test_the_list_of_formats_is_whole() -> None:
    assert stored.formats() == UNPACK.keys()


def test_nothing_is_unpacked_beside_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(part: PackedWeight) -> Tensor:
        raise AssertionError("unpacked in torch")

    ops, x_TD = Native("exact"), random(3, 256)
    weights = [*(blocks(name, 5, 256, monkeypatch) for name in UNPACK), Reordered(blocks("Q4_0", 5, 256, monkeypatch), torch.arange(256).flip(0))]
    monkeypatch.setattr(packed, "unpack", refused)
    for weight in weights:
        assert ops.prepare(weight) is weight
        assert ops.matmul(x_TD, weight).shape == (3, 5)
    with pytest.raises(AssertionError, match="unpacked in torch"):
        ops.matmul(x_TD.double(), weights[0])  # float64 is the reference's


@pytest.mark.parametrize(("kind", "few"), [("F16", stored.FEW_PLAIN), ("groups", stored.FEW_IN_GROUPS)])
def test_many_rows_are_torchs_where_that_is_faster(kind: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = ragged(4, 256) if kind == "groups" else blocks(kind, 5, 256, monkeypatch)
    exact, ops, unpacked = unpack(weight).double(), Native("exact"), []
    monkeypatch.setattr(packed, "unpack", lambda part: unpacked.append(part.shape) or unpack(part))
    for n, torchs in ((few, []), (few + 1, [tuple(weight.shape)])):
        x_TD = random(n, 256)
        expected = x_TD.double() @ exact.T
        assert (ops.matmul(x_TD, weight) - expected).abs().max() < 2e-6 * expected.abs().max()
        assert unpacked == torchs


def test_the_number_of_threads_moves_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, x_TD, weight, found = Native("exact"), random(40, 256), blocks("IQ3_S", 999, 256, monkeypatch), []
    for n in (1, 2, 5):
        monkeypatch.setattr("pellucid.ops.stored.n_threads", lambda n=n: n)
        found.append(ops.matmul(x_TD, weight))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_rows_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rows of 255 numbers times a matrix of 5 x 256"):
        Native("exact").matmul(torch.zeros(2, 255), blocks("TQ1_0", 5, 256, monkeypatch))

"""What was computed ahead can be written and read, and belongs to one model."""
from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.data.example import Example
from pellucid.data.stock import digest
from pellucid.errors import BadCheckpoint
from pellucid.ops.fused import Fused
from pellucid.train.reference import Reference
from tests.train.tiny import tiny_decoder

ROWS = [Example((1, 2, 3), (False, True, True), "rows:1"), Example((1, 2, 3), (False, False, True), "rows:2"), Example((4, 5), (False, True), "rows:3")]


def filled() -> Reference:
    reference = Reference(None)
    reference.ahead(tiny_decoder(Fused()), ROWS, 100)
    return reference


def test_what_is_learned_tells_rows_apart_and_where_they_were_read_does_not() -> None:
    assert len({digest(row) for row in ROWS}) == 3
    assert digest(Example((4, 5), (False, True), "elsewhere:9")) == digest(ROWS[2])


@pytest.mark.parametrize("empty", [False, True])
def test_it_is_read_as_it_was_written(tmp_path: Path, empty: bool) -> None:
    reference, again = Reference(None) if empty else filled(), Reference(None)
    reference.save(tmp_path / "reference.safetensors", "sha256:a")
    again.load(tmp_path / "reference.safetensors", "sha256:a")
    assert again.kept == reference.kept
    assert len(again.kept) == (0 if empty else 3)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


def test_that_of_another_model_is_refused(tmp_path: Path) -> None:
    filled().save(tmp_path / "r", "sha256:a")
    with pytest.raises(BadCheckpoint, match=r"of the model sha256:a, and sha256:b is tuned\. Delete it, and they are computed again"):
        Reference(None).load(tmp_path / "r", "sha256:b")


@pytest.mark.parametrize("content", [b"", b"nothing"])
def test_a_file_that_is_none_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"holds no reference log-probabilities: .*Delete it"):
        Reference(None).load(tmp_path / "r", "sha256:a")

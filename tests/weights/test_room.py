"""Copies lie one after another in one region, at whole cache lines, in large pages where the system has them."""
from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from pellucid.weights.room import ALIGNMENT, Room, aligned, taken


def test_copies_hold_the_numbers_in_the_dtype_asked_for_at_whole_cache_lines() -> None:
    tensors = [torch.randn(3, 5), torch.randn(7, 2, 3).transpose(0, 2), torch.arange(11.0)]
    wanted = [torch.float32, torch.bfloat16, torch.float64]
    room = Room(sum(map(taken, tensors, wanted)))
    copies = [room.copy(tensor, dtype) for tensor, dtype in zip(tensors, wanted, strict=True)]
    for tensor, copy, dtype in zip(tensors, copies, wanted, strict=True):
        assert copy.dtype == dtype
        assert copy.equal(tensor.to(dtype))
        assert copy.stride() == tensor.clone().stride()
        assert copy.data_ptr() % ALIGNMENT == 0
        assert copy.untyped_storage().nbytes() >= copy.nbytes
    copies[0].fill_(1)
    assert copies[1].equal(tensors[1].to(torch.bfloat16)), "one copy is not another's memory"


def test_what_does_not_fit_is_an_error_and_changes_nothing() -> None:
    room = Room(64)
    kept = room.copy(torch.ones(16), torch.float32)
    with pytest.raises(ValueError, match="4 bytes do not fit the 0 that are left of 64"):
        room.copy(torch.zeros(1), torch.float32)
    assert kept.eq(1).all()


def test_the_memory_goes_with_the_last_tensor() -> None:
    room = Room(1 << 20)
    held = weakref.ref(room._map)
    copy = room.copy(torch.ones(8), torch.float32)
    del room
    assert held() is not None
    del copy
    gc.collect()
    assert held() is None


@pytest.mark.linux
def test_the_region_asks_for_large_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        return
    copy = Room(4 << 20).copy(torch.ones(1 << 20), torch.float32)
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags:")
    start = next(i for i, block in enumerate(blocks) if any(_holds(line, copy.data_ptr()) for line in block.splitlines()))
    assert " hg" in blocks[start + 1].splitlines()[0]


def _holds(line: str, address: int) -> bool:
    first, _, last = line.split(" ")[0].partition("-")
    try:
        return int(first, 16) <= address < int(last, 16)
    except ValueError:
        return False


@pytest.mark.linux
def test_the_region_is_the_process_own() -> None:
    """Memory that is shared with forked processes, as Python maps it where nothing else is said, gets no large pages on most systems."""
    room = Room(1 << 20)
    address = room.take(4096).fill_(1).data_ptr()
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    spans = [(*(int(end, 16) for end in line.split()[0].split("-")), line.split()[1], line.split()[4]) for line in lines]
    [(rights, inode)] = [(rights, inode) for start, stop, rights, inode in spans if start <= address < stop]
    assert (rights, inode) == ("rw-p", "0")


def test_a_piece_begins_at_a_whole_cache_line_and_does_not_reach_past_the_end() -> None:
    room = Room(aligned(100) + 64)
    first, second = room.take(100), room.take(64)
    assert second.data_ptr() - first.data_ptr() == 128
    with pytest.raises(ValueError, match="1 bytes do not fit the 0 that are left of 192"):
        room.take(1)

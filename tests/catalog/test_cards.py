"""The GPUs of this machine, as their drivers tell them: a program of nvidia-smi's name on PATH, and Linux's files, both made here."""
from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.catalog import cards, hardware
from pellucid.catalog.cards import Card

GIB = 1 << 30


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers as nvidia-smi does, the only one on PATH; it fails where it is asked anything else."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / "nvidia-smi"


def answer(program: Path, *lines: str, status: int = 0) -> None:
    asked = "--query-gpu=name,memory.total,memory.free --format=csv,noheader,nounits"
    text = "".join(f"echo '{line}'\n" for line in lines)
    program.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 2\n{text}exit {status}\n')
    program.chmod(0o755)


def test_nvidia_smi_tells_names_and_memory_in_mebibytes(smi: Path, tmp_path: Path) -> None:
    answer(smi, "NVIDIA H100 80GB HBM3, 81559, 80000", "NVIDIA GB10, [N/A], [N/A]")
    assert cards.cards(tmp_path) == (Card(name="NVIDIA H100 80GB HBM3", memory=81559 << 20, free=80000 << 20), Card(name="NVIDIA GB10"))


@pytest.mark.parametrize("status", [None, 9])  # 9: it cannot reach the driver
def test_without_nvidia_smi_the_driver_names_its_cards_and_no_memory_is_made_up(smi: Path, tmp_path: Path, status: int | None) -> None:
    if status is not None:
        answer(smi, "NVIDIA-SMI has failed, 1, 2", status=status)
    assert cards.cards(tmp_path) == ()
    file = tmp_path / "proc/driver/nvidia/gpus/0000:05:00.0/information"
    file.parent.mkdir(parents=True)
    file.write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 27\nBus Location: \t 0000:05:00.0\n")
    found = cards.cards(tmp_path)
    assert found == (Card(name="NVIDIA L4"),)
    assert (cards.places(found), cards.describe(found)) == ([], "NVIDIA L4 (does not say its memory)")


def test_amds_cards_are_read_from_linux_and_plugs_and_other_vendors_are_none(smi: Path, tmp_path: Path) -> None:
    for name, vendor, facts in (("card0", "0x8086", {}), ("card1", "0x1002", {"mem_info_vram_total": 24 * GIB, "mem_info_vram_used": GIB, "device": "0x744c"}),
                                ("card1-DP-1", "0x1002", {}), ("card2", "0x1002", {"product_name": "AMD Instinct"})):
        device = tmp_path / "sys/class/drm" / name / "device"
        device.mkdir(parents=True)
        for file, value in ({"vendor": vendor} | facts).items():
            (device / file).write_text(f"{value}\n")
    assert cards.cards(tmp_path) == (Card(name="AMD GPU 0x744c", memory=24 * GIB, free=23 * GIB), Card(name="AMD Instinct"))


def test_cards_of_one_kind_are_one_place_the_freest_and_the_catalog_knows_its_speed() -> None:
    l4 = [Card(name="NVIDIA L4", memory=23 * GIB, free=free * GIB) for free in (2, 22, 21)]
    other = Card(name="NVIDIA GeForce RTX 4090 Laptop GPU", memory=16 * GIB, free=15 * GIB)
    first, second = cards.places([*l4, other])
    known = hardware.find("l4")
    assert (first.key, first.memory, first.rent) == ("gpu1", 22 * GIB, None)
    assert (first.bandwidth, first.rates, first.watts) == (known.bandwidth, known.rates, known.watts)
    assert (second.key, second.memory, second.bandwidth, second.rates) == ("gpu3", 15 * GIB, None, {})  # no desktop's speed for a laptop's card
    assert cards.describe([*l4, other]) == "3 × NVIDIA L4 · NVIDIA GeForce RTX 4090 Laptop GPU"


def test_a_name_that_drivers_give_belongs_to_one_row() -> None:
    names = [name for row in hardware.table().values() for name in row.reported]
    assert len(names) == len(set(names)) >= 9

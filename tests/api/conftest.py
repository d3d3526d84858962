"""Scripted models on disk: what each says is in its script."""
from __future__ import annotations

from pathlib import Path

import pytest

import pellucid
from pellucid.api import Model
from tests.families.conftest import one_thread  # noqa: F401, a fixture: tiny models

from .scripted import scripted_model

ABC = list("abcdefghijkl")  # "a" goes on with "bcdefghijkl", then ends
THOUGHT = ["\n", "<think>", "h", "m", "</think>", "o", "k"]  # what follows "<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def abc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("models") / "abc", [ABC, [*"\nYES"]])


@pytest.fixture(scope="session")
def abc(abc_folder: Path) -> Model:
    return pellucid.load(abc_folder)

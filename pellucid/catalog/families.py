"""The table of families: what each covers, what it was proven against and how closely, and which other engines run it. No torch here.

`families.toml` is kept by hand, with its sources; `proofs.toml` is what the tests' report measured.
"""
from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pellucid import families

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was measured on tiny models with random weights: errors relative to the largest logit, cached decoding against one full pass."""

    cases: int
    against: str
    error: float
    cached: float
    mutants: int
    measured: datetime.date


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One family. `proof` is None where it runs another family's decoder under tensor names of its own.

    vllm: yes, no, unknown or the last release that ran it; llama_cpp: its architecture's name there, no or unknown; transformers: yes or no.
    refused: settings that are refused by name though somebody knows what they mean, and why.
    """

    name: str
    particular: str
    checkpoints: str
    proof: Proof | None
    vllm: str
    llama_cpp: str
    transformers: str
    refused: str = ""


def sources() -> dict[str, Any]:
    """Where the engines' lists were read, and when."""
    return dict(_read("families.toml")["sources"])


def table() -> list[Row]:
    """Every family, by name. Raises KeyError for one that families.toml does not speak of: a test holds the two together."""
    facts, proofs = _read("families.toml"), _read("proofs.toml")
    return [Row(name=name, particular=particular(name), proof=Proof(**proofs[name]) if name in proofs else None, **facts[name]) for name in families.NAMES]


def particular(name: str) -> str:
    """The first line of the family's docstring."""
    return (families.family(name).__doc__ or "").splitlines()[0]


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text(encoding="utf8"))

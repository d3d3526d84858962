"""Whether the native module is what its sources say: one that was built from others may compute what nobody expects any more, or crash."""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pellucid.errors import StaleKernels


def digest(folder: Path) -> str | None:
    """Of the sources of the kernels, as digest.cmake computes it at build time; None where there are none, as in an installed package."""
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h", ".cmake"))
    lines = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sources]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def check(module: Any, folder: Path) -> None:
    """Raises StaleKernels for a module that was built from other sources than those in this folder."""
    expected, found = digest(folder), getattr(module, "sources", "")
    if expected not in (None, found):
        raise StaleKernels(f"{Path(module.__file__).name} was built from other sources ({found[:12] or 'older ones'}) than those beside it ({expected[:12]}). "
                           f"Build it again: make native, or pip install -e . in the checkout")

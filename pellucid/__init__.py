"""Pellucid: run, tune, prove, audit and serve every open GPT on hardware you own.

    import pellucid
    model = pellucid.load("path or hub repository")
    model.generate("Once upon a time", max_tokens=64).text

Importing this imports no torch; the first use of a name below brings what it needs.
"""
from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from pellucid import errors

if TYPE_CHECKING:
    from pellucid.api import Model, load
    from pellucid.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = ["Model", "__version__", "errors", "load", "load_tokenizer"]

_HOME = {"Model": "pellucid.api", "load": "pellucid.api"}


def load_tokenizer(path: str | os.PathLike[str], *, pattern: str | None = None) -> Tokenizer:
    """The tokenizer of what `load` would load, a folder, a file, "shipped" or a downloaded `owner/name[@revision]`; no weights are needed.

    pattern, and what is raised: see tokenizer.load.load_tokenizer; ModelNotFound also for a repository that is not on this disk.
    """
    from pellucid.tokenizer import load_tokenizer, tokenizer_of_gguf
    from pellucid.weights.gguf import open_gguf
    from pellucid.weights.hub_cache import resolve
    found = resolve(path)
    if found.suffix == ".gguf" and found.is_file():
        return tokenizer_of_gguf(open_gguf(found).metadata, str(found), pattern=pattern)
    return load_tokenizer(found, pattern=pattern)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)  # looked up once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

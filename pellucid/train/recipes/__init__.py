"""Recipes that come with the package, and files that make rows for them: by name, without a suffix; anything else is a file of yours."""
from __future__ import annotations

from pathlib import Path

from pellucid.errors import BadRequest, did_you_mean, nearest

HERE = Path(__file__).parent


def shipped(suffix: str = ".yaml") -> dict[str, Path]:
    """name -> file."""
    return {file.stem: file for file in sorted(HERE.glob(f"*{suffix}")) if not file.stem.startswith("_")}


def find(name: str, suffix: str = ".yaml") -> Path:
    """The file that a name or a path stands for, there or not. Raises BadRequest for a name that no shipped one has."""
    if Path(name).suffix or len(Path(name).parts) > 1:
        return Path(name).expanduser()
    here = shipped(suffix)
    if name not in here:
        raise BadRequest(f"{name!r} is not shipped.{did_you_mean(nearest(name, here))} There are {', '.join(here)}; or give a file (./{name}{suffix})",
                         field="recipe")
    return here[name]


def about(file: Path) -> str:
    """What a recipe's header says first: its comment's first line."""
    return file.read_text("utf-8").partition("\n")[0].lstrip("# ").strip()

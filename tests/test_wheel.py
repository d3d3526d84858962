"""What is installed is the whole package: the page, the catalog, recipes and the model in it, not Python alone."""
from __future__ import annotations

import tomllib
from pathlib import Path

from pathspec import GitIgnoreSpec

from pellucid.serve.page import ASSETS, FILES

ROOT = Path(__file__).parent.parent
SOURCES = {".cpp", ".h", ".cmake"}  # of the kernels, which a wheel carries compiled


def test_no_rule_keeps_a_file_of_the_package_out_of_the_wheel() -> None:
    """By the rules that scikit-build-core 0.12.2 leaves files out (build/_file_processor.py, build/_pathutil.py): .gitignore's, and two lists of pyproject's.

    A rule without a slash, such as "web", counts at any depth, so that one meant for the root may take a folder of the package along.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    rules = GitIgnoreSpec.from_lines([*(ROOT / ".gitignore").read_text().splitlines(), *settings["sdist"]["exclude"], *settings["wheel"]["exclude"]])
    files = [path for path in (ROOT / "pellucid").rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"]
    kept = {path for path in files if not rules.match_file(path.relative_to(ROOT))}
    assert [path for path in files if path not in kept and path.suffix not in SOURCES] == []
    assert kept >= {ASSETS / name for name in FILES.values()}
    assert {path.suffix for path in kept} >= {".py", ".toml", ".yaml", ".txt", ".jinja", ".json", ".safetensors", ".typed"}

"""Tiny models are fastest on one thread."""
from __future__ import annotations

from tests.families.conftest import one_thread  # noqa: F401, a fixture

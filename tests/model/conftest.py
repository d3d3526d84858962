"""The models here are those of tests/families, as tiny."""
from __future__ import annotations

from tests.families.conftest import one_thread  # noqa: F401, a fixture

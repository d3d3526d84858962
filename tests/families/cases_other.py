"""GPT-2's line and the families with wiring of their own: every value of every switch that a published checkpoint uses or transformers implements."""
from __future__ import annotations

from tests.families.case import Case

CASES: list[Case] = []

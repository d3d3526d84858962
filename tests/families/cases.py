"""All cases."""
from __future__ import annotations

from tests.families import cases_a, cases_b, cases_c, cases_d, cases_gemma4, cases_later, cases_llama
from tests.families.case import Case

CASES: list[Case] = [*cases_llama.CASES, *cases_b.CASES, *cases_later.CASES, *cases_gemma4.CASES, *cases_c.CASES, *cases_d.CASES, *cases_a.CASES]

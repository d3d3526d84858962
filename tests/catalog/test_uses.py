"""What people say they want to do, as uses that licenses speak of."""
from __future__ import annotations

import pytest

from pellucid.catalog import uses
from pellucid.errors import BadRequest


def test_words_become_uses() -> None:
    assert uses.words("commercial api") == {"commercial", "hosting"}
    assert uses.words("Fine-tune it and sell the product") == {"modify", "commercial"}
    assert uses.words("medical advice") == {"medical"}


def test_a_word_nobody_knows_is_an_error_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"'comercial' is no use that is known. Did you mean commercial"):
        uses.words("comercial api")
    with pytest.raises(BadRequest, match="names no use"):
        uses.words("for the")


@pytest.mark.parametrize(("said", "value"), [("2e9", 2_000_000_000), ("800M", 800_000_000), ("1.5b", 1_500_000_000), ("1,000_000", 1_000_000), (0, 0)])
def test_numbers_with_their_units(said: str | int, value: int) -> None:
    assert uses.number(said, "--users") == value


@pytest.mark.parametrize("said", ["many", "5 parsecs", "-1", "nan", "inf", "", "M", True])
def test_a_unit_nobody_understands_is_an_error(said: str) -> None:
    with pytest.raises(BadRequest, match=r"--users .*: a number of 0 or more was expected, such as 2e9, 800M"):
        uses.number(said, "--users")


def test_a_country_of_the_union_is_the_union() -> None:
    assert [uses.territory(code) for code in ("de", "EU", "UK", "US", "BR", None)] == ["EU", "EU", "GB", "US", "other", None]
    with pytest.raises(BadRequest, match="'Germany': a country's two letters were expected"):
        uses.territory("Germany")

"""Costs beside seconds: only with a price, and small ones to be read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.runs.cost import cost
from pipelines.settings import Settings


def test_without_a_price_there_is_no_cost() -> None:
    assert cost(3600, Settings()) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.00 USD"),
        (0.05, "0.000035 USD"),
        (7.5, "0.0052 USD"),
        (120, "0.083 USD"),
        (1440, "1.00 USD"),
        (9_000_000, "6,250.00 USD"),
    ],
)
def test_seconds_cost_their_share_of_an_hour(seconds: float, words: str) -> None:
    assert cost(seconds, Settings(gpu_hour_price=2.5, currency="USD")) == words


@pytest.mark.parametrize("wrong", [{"gpu_hour_price": -1}, {"gpu_hour_price": "nan"}, {"currency": ""}])
def test_a_price_is_a_number(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)

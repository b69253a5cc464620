"""What computing costs: measured seconds at the price of an hour."""

from __future__ import annotations

import math

from pipelines.settings import Settings


def price_of(seconds: float, settings: Settings) -> float | None:
    """What these seconds cost, in the currency of the settings; None where no price is set."""
    return seconds / 3600 * settings.gpu_hour_price if settings.gpu_hour_price else None


def cost(seconds: float, settings: Settings) -> str:
    """The cost of these seconds in words, such as `0.0042 EUR`; "" where no price is set.

    Below 1 it has two digits that count, because one image costs little.
    """
    amount = price_of(seconds, settings)
    if amount is None:
        return ""
    digits = 2 if amount >= 0.1 or amount == 0 else 1 - math.floor(math.log10(amount))
    return f"{amount:,.{digits}f} {settings.currency}"

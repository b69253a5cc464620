"""What computing costs: measured seconds at the price of an hour."""

from __future__ import annotations

import math

from pipelines.settings import Settings


def cost(seconds: float, settings: Settings) -> str:
    """The cost of these seconds in words, such as `0.0042 EUR`; "" where no price is set.

    Below 1 it has two digits that count, because one image costs little.
    """
    if not settings.gpu_hour_price:
        return ""
    amount = seconds / 3600 * settings.gpu_hour_price
    digits = 2 if amount >= 0.1 or amount == 0 else 1 - math.floor(math.log10(amount))
    return f"{amount:,.{digits}f} {settings.currency}"

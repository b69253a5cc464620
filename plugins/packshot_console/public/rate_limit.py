"""How many requests without a login each address may make."""

from __future__ import annotations

import ipaddress
import math
import time
from http import HTTPStatus

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.settings import get_settings

WINDOW = 60.0
"""Seconds. Whoever made no request lately may make those of a whole window at once."""

REMEMBERED = 10_000
"""Addresses. Those that came first are forgotten first."""


class RateLimit:
    """Answers 429 to an address that makes more than PACKSHOT_PUBLIC_PER_MINUTE requests a minute.

    Each request takes its share of a minute of an address's time, and no address is more than a minute ahead (GCRA).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._paid_until: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the refusal of it."""
        client = scope.get("client")
        wait = self.wait(network(client[0]) if client else "", time.monotonic())
        if wait > 0:
            headers = {"Retry-After": str(math.ceil(wait))}
            refusal = PlainTextResponse("too many requests", HTTPStatus.TOO_MANY_REQUESTS, headers)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def wait(self, address: str, now: float) -> float:
        """Counts a request of `address`; seconds until it may come if it is too early, else 0."""
        limit = get_settings().public_per_minute
        if limit == 0:
            return 0.0
        until = max(now, self._paid_until.pop(address, now)) + WINDOW / limit
        refused = until > now + WINDOW + 1e-6
        self._paid_until[address] = until - WINDOW / limit if refused else until
        if len(self._paid_until) > REMEMBERED:
            del self._paid_until[next(iter(self._paid_until))]
        return until - now - WINDOW if refused else 0.0


def network(address: str) -> str:
    """An IPv4 address, or the network of 64 bits that an IPv6 address is in: its owner has all of them."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))

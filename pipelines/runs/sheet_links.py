"""Links to a contact sheet for somebody without a login: what they show and until when is in the link, and signed.

Nothing is stored. Whoever has the key makes links; a new key ends all of them. A picture of a sheet has a signed name
of its own, which no other sheet takes.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from itsdangerous import BadSignature, Signer, URLSafeSerializer

from pipelines.errors import UsageError

SIGNING = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}


class Forged(UsageError):
    """The link was not made with this key."""


class Expired(UsageError):
    """The link's time is over."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a link shows: the images of a choice that were shown at the time `made` and not taken back since, until the
    time `ends`. Both are seconds since 1970. There were `images` of them then. An empty field of the choice selects
    all."""

    made: float
    ends: int
    images: int
    scene: str = ""
    channel: str = ""
    run: str = ""
    sku: str = ""

    @property
    def until(self) -> datetime:
        """When the link ends."""
        return datetime.fromtimestamp(self.ends, UTC)


def sign(sheet: Sheet, key: str) -> str:
    """The link's last part."""
    return str(_serializer(key).dumps(list(asdict(sheet).values())))


def read(token: str, key: str, now: float) -> Sheet:
    """The sheet of a link. Raises Forged and Expired, each with a sentence for whoever opened it."""
    try:
        sheet = Sheet(*_serializer(key).loads(token))
    except BadSignature:
        raise Forged("This link is not valid: ask whoever sent it for a new one.") from None
    if now >= sheet.ends:
        raise Expired(f"This link ended on {sheet.until:%d %B %Y}: ask whoever sent it for a new one.")
    return sheet


def name_picture(publication: int, token: str, key: str) -> str:
    """The name of an image on one sheet."""
    return _signer(token, key).sign(str(publication)).decode()


def read_picture(name: str, token: str, key: str) -> int:
    """The publication that a picture's name means. Raises Forged for the name of another sheet, or of none."""
    try:
        return int(_signer(token, key).unsign(name))
    except BadSignature:
        raise Forged("This sheet has no such picture.") from None


def _serializer(key: str) -> URLSafeSerializer:
    return URLSafeSerializer(key, salt="packshot contact sheet", signer_kwargs=SIGNING)


def _signer(token: str, key: str) -> Signer:
    return Signer(key, salt=f"packshot picture {token}", digest_method=hashlib.sha256, key_derivation="hmac")

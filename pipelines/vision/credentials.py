"""Content Credentials (C2PA): a signed statement in a published file of what made it, how, and from which photo.

The file is signed with the shop's own key, after everything else is in it. A signature never comes out twice with the
same bytes, so equal images have equal files only through their key in the ledger: what was signed once is found again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from PIL import Image

from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from pipelines.settings import Settings

EDITED = "algorithmicallyEnhanced"
"""The one origin of a file that is the photo itself, edited. Every other one is a new image with the photo in it."""

PHOTO = "photo"
"""Label by which an action names the product photo."""

TRIAL = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
"""Origin that the trial states."""

OFFLINE = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
"""The library's settings: no second picture in the file, and nothing is fetched."""

CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Credentials:
    """A certificate chain, the one that signs first, and where its private key is. The key itself is read by `Signer`,
    so that only what signs needs it."""

    chain: bytes
    key_file: Path

    @cached_property
    def digest(self) -> str:
        """sha256 of the chain, 64 hex digits."""
        return sha256_hex(self.chain)


def find_credentials(settings: Settings) -> Credentials | None:
    """The shop's credentials; None where it has none. Raises UsageError where one setting lacks the other, or where the
    certificates cannot be read. Paths are not told."""
    if settings.c2pa_key is None and settings.c2pa_certificates is None:
        return None
    if settings.c2pa_key is None or settings.c2pa_certificates is None:
        named, lacking = ("KEY", "CERTIFICATES") if settings.c2pa_key else ("CERTIFICATES", "KEY")
        raise UsageError(
            f"PACKSHOT_C2PA_{named} is set and PACKSHOT_C2PA_{lacking} is not: images are signed with both"
        )
    return Credentials(_read(settings.c2pa_certificates, "PACKSHOT_C2PA_CERTIFICATES"), settings.c2pa_key)


class Signer:
    """Signs files with a shop's key. Raises UsageError where it cannot: a small picture is signed at once to know."""

    def __init__(self, credentials: Credentials):
        try:
            import c2pa
        except ImportError as error:
            raise UsageError(
                f"PACKSHOT_C2PA_KEY is set and c2pa-python cannot be used ({error}): install packshot[c2pa]"
            ) from error
        key = _private_key(credentials.key_file)
        _check_certificate(credentials.chain, key)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._c2pa = c2pa
        trial = io.BytesIO()
        Image.new("RGB", (8, 8)).save(trial, "PNG")
        try:
            self._signer = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(_algorithm(key).encode(), credentials.chain, pem, None)
            )
            self.sign(trial.getvalue(), "image/png", statement(TRIAL, "0" * 64, ""))
        except c2pa.C2paError as error:
            wanted = "C2PA wants digitalSignature, with emailProtection or document signing, and the issuers after it"
            raise UsageError(
                f"PACKSHOT_C2PA_CERTIFICATES: nothing can be signed with them ({error}): {wanted}"
            ) from error

    def sign(self, data: bytes, media_type: str, said: Mapping[str, Any]) -> bytes:
        """The file with a signed statement in it: the same pixels, 4 kB and more longer.

        Args:
            data: A JPEG, PNG, WebP or AVIF file.
            media_type: Such as image/jpeg.
            said: What `statement` returns.
        """
        signed = io.BytesIO()
        with self._c2pa.Context.from_dict(OFFLINE) as context, self._c2pa.Builder(json.dumps(said), context) as builder:
            builder.sign(self._signer, media_type, io.BytesIO(data), signed)
        return signed.getvalue()


def statement(source_type: str, photo: str, title: str) -> dict[str, Any]:
    """What a file states, as the library reads it: packshot with its version, the actions, and the product photo.

    Args:
        source_type: The whole address of IPTC's code.
        photo: The photo's sha256.
        title: The file's title, or "".
    """
    edited = source_type.endswith(f"/{EDITED}")
    origin = {"digitalSourceType": source_type}
    of_photo = {"parameters": {"ingredientIds": [PHOTO]}}
    if edited:
        actions = [{"action": "c2pa.opened", **of_photo}, {"action": "c2pa.edited", **origin}]
    else:
        actions = [{"action": "c2pa.created", **origin}, {"action": "c2pa.placed", **of_photo}]
    return {
        "claim_generator_info": [{"name": "packshot", "version": version("packshot")}],
        **({"title": title} if title else {}),
        "ingredients": [
            {
                "label": PHOTO,
                "title": "product photo",
                "instance_id": f"sha256:{photo}",
                "relationship": "parentOf" if edited else "componentOf",
            }
        ],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}, "created": True}],
    }


def _read(file: Path, variable: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{variable}: the file cannot be read ({error.strerror})") from None


def _private_key(file: Path) -> PrivateKeyTypes:
    data = _read(file, "PACKSHOT_C2PA_KEY")
    try:
        return load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError("PACKSHOT_C2PA_KEY: the key is encrypted, and packshot needs one without a password") from None
    except Exception:  # cryptography's words may quote the file
        raise UsageError("PACKSHOT_C2PA_KEY: the file has no private key in PEM that can be read") from None


def _algorithm(key: PrivateKeyTypes) -> str:
    """C2PA's name of the way in which such a key signs."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    raise UsageError("PACKSHOT_C2PA_KEY: C2PA has EC keys (P-256, P-384, P-521), Ed25519 and RSA, and this is another")


def _check_certificate(chain: bytes, key: PrivateKeyTypes) -> None:
    """Raises UsageError unless the chain begins with the key's certificate, which is valid now."""
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise UsageError("PACKSHOT_C2PA_CERTIFICATES: the file has no certificate in PEM that can be read") from None
    how = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*how) != key.public_key().public_bytes(*how):
        raise UsageError("PACKSHOT_C2PA_CERTIFICATES: the first certificate is not the one of PACKSHOT_C2PA_KEY")
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= datetime.now(UTC) <= last:
        raise UsageError(
            f"PACKSHOT_C2PA_CERTIFICATES: the first certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only"
        )

"""A shop's key and certificate chain for Content Credentials, made for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipelines.vision.credentials import Credentials

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


class Files(NamedTuple):
    """Key, chain and the root alone."""

    key: Path
    certificates: Path
    root: Path

    def credentials(self) -> Credentials:
        return Credentials(self.certificates.read_bytes(), self.key)

    def variables(self) -> dict[str, str]:
        return {"PACKSHOT_C2PA_KEY": str(self.key), "PACKSHOT_C2PA_CERTIFICATES": str(self.certificates)}


def write_certificates(
    folder: Path,
    kind: str = "P-256",
    days: int = 30,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    password: bytes | None = None,
    style: PrivateFormat = PrivateFormat.PKCS8,
) -> Files:
    """A root of its own, and a certificate that it issued, valid until in `days`."""
    root_key, key = KEYS["P-256"](), KEYS[kind]()
    root = _certificate("Test root", root_key, "Test root", root_key, 3650, None)
    leaf = _certificate("Test shop", key, "Test root", root_key, days, usage)
    how = BestAvailableEncryption(password) if password else NoEncryption()
    files = Files(*(folder / name for name in ("key.pem", "chain.pem", "root.pem")))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, style, how))
    files.certificates.write_bytes(leaf.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    files.root.write_bytes(root.public_bytes(Encoding.PEM))
    return files


def _certificate(
    subject: str, key: Any, issuer: str, issuer_key: Any, days: int, usage: x509.ObjectIdentifier | None
) -> x509.Certificate:
    def name(common: str) -> x509.Name:
        return x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")]
        )

    now, ca = datetime.now(UTC), usage is None
    built = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if usage is not None:
        built = built.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return built.sign(issuer_key, hashes.SHA256())

"""The credentials of SeaweedFS's own parts: without them its gRPC and volume ports serve every user of the machine.

`weed` reads `security.toml` in its working directory. Master, volume server, filer, S3 gateway and admin show each
other one certificate, on gRPC and HTTP alike, and sign every read and write. All of it is drawn at the first `up`.
"""

from __future__ import annotations

import datetime
import secrets
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipelines.services.installation import LOOPBACK, write_private

FOREVER = datetime.timedelta(days=365 * 50)
"""The certificate's life: its only readers are the parts of one store, and a new folder draws a new one."""

GRPC_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client")
HTTP_PARTS = ("master", "volume", "filer", "admin")


def secure(folder: Path) -> Path:
    """Draw the certificates and `security.toml` in `folder`, mode 0600, unless they are there; return the folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / "security.toml").exists():
        authority, certificate, key = _certificates()
        files = {"ca.pem": authority, "cert.pem": certificate, "key.pem": key}
        for name, text in files.items():
            write_private(folder / name, text)
        write_private(folder / "security.toml", _settings())  # last: with it the folder is whole
    return folder


def _settings() -> str:
    """Text of `security.toml`. Its paths are relative, because `weed` runs in this folder: it may be moved."""
    pair, authority = 'cert = "cert.pem"\nkey = "key.pem"\n', 'ca = "ca.pem"\n'
    signing = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    sections = [f'[{name}]\nkey = "{secrets.token_urlsafe(32)}"\n' for name in signing]
    sections += [f"[grpc]\n{authority}", *(f"[grpc.{part}]\n{pair}" for part in GRPC_PARTS)]
    sections += [f"[https.{part}]\n{pair}{authority}" for part in HTTP_PARTS]
    sections += [f"[https.client]\nenabled = true\n{pair}{authority}"]
    return "\n".join(sections)


def _certificates() -> tuple[str, str, str]:
    """PEM of an authority, of a certificate for the loopback address and of its key. The authority's key is dropped."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        subject, signer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))  # a clock may be set back
            .not_valid_after(now + FOREVER)
        )

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = "packshot store authority"
    authority = (
        build(root, root, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        build("packshot store", root, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return (
        authority.public_bytes(Encoding.PEM).decode(),
        certificate.public_bytes(Encoding.PEM).decode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )

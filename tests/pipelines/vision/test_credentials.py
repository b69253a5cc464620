"""Content Credentials: who may sign, and the one sentence that a wrong key or certificate is told with."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import c2pa
import pytest
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from pipelines.errors import UsageError
from pipelines.settings import Settings
from pipelines.vision.credentials import TRIAL, Signer, find_credentials, statement
from tests.certificates import Files, write_certificates


def picture() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    return data.getvalue()


@pytest.mark.parametrize("kind", ["P-256", "P-384", "Ed25519", "RSA"])
def test_every_kind_of_key_signs(kind: str, tmp_path: Path) -> None:
    files = write_certificates(tmp_path, kind)
    signed = Signer(files.credentials()).sign(picture(), "image/jpeg", statement(TRIAL, "a" * 64, "CUP-1"))
    with c2pa.Context.from_dict({"trust": {"trust_anchors": files.root.read_text()}}) as trusting:
        assert c2pa.Reader("image/jpeg", io.BytesIO(signed), context=trusting).get_validation_state() == "Trusted"


def test_a_key_in_openssls_own_format_signs(tmp_path: Path) -> None:
    Signer(write_certificates(tmp_path, style=PrivateFormat.TraditionalOpenSSL).credentials())


def _foreign(folder: Path) -> Files:
    (folder / "other").mkdir()
    return write_certificates(folder)._replace(key=write_certificates(folder / "other").key)


def _without(folder: Path, name: str) -> Files:
    files = write_certificates(folder)
    getattr(files, name).unlink()
    return files


def _spoilt(folder: Path, name: str) -> Files:
    files = write_certificates(folder)
    getattr(files, name).write_text("-----BEGIN NONSENSE-----\nsecret\n-----END NONSENSE-----\n")
    return files


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_foreign, "CERTIFICATES: the first certificate is not the one of PACKSHOT_C2PA_KEY"),
        (lambda folder: _without(folder, "key"), "KEY: the file cannot be read (No such file or directory)"),
        (lambda folder: _without(folder, "certificates"), "CERTIFICATES: the file cannot be read"),
        (lambda folder: _spoilt(folder, "key"), "KEY: the file has no private key in PEM that can be read"),
        (lambda folder: _spoilt(folder, "certificates"), "CERTIFICATES: the file has no certificate in PEM"),
        (lambda folder: write_certificates(folder, password=b"1234"), "KEY: the key is encrypted"),
        (lambda folder: write_certificates(folder, days=-1), "CERTIFICATES: the first certificate is valid from"),
        (
            lambda folder: write_certificates(folder, usage=ExtendedKeyUsageOID.SERVER_AUTH),
            "CERTIFICATES: nothing can be signed with them",
        ),
    ],
)
def test_what_cannot_sign_is_told_in_one_sentence_without_a_path(
    made: Callable[[Path], Files], said: str, tmp_path: Path
) -> None:
    files = made(tmp_path)
    with pytest.raises(UsageError) as refused:
        Signer(find_credentials(Settings(c2pa_key=files.key, c2pa_certificates=files.certificates)))
    told = str(refused.value)
    assert told.startswith(f"PACKSHOT_C2PA_{said}")
    assert "\n" not in told
    assert str(tmp_path) not in told
    assert "secret" not in told


def test_one_setting_without_the_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="C2PA_KEY is set and PACKSHOT_C2PA_CERTIFICATES is not"):
        find_credentials(Settings(c2pa_key=tmp_path))
    assert find_credentials(Settings()) is None


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UsageError, match=r"c2pa-python cannot be used .*install packshot\[c2pa\]"):
        Signer(write_certificates(tmp_path).credentials())

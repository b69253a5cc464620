"""Fetching from a real server on this machine: whole, cut off half-way, of other bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.errors import IntegrityError, UsageError
from pipelines.models.download import fetch, from_url
from pipelines.models.profile import load_profile
from pipelines.settings import get_settings

BYTES = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(BYTES).hexdigest()


@dataclass
class Shop:
    """A server of one file. `cut` ends an answer after so many bytes; `ranges` False ignores what was asked for."""

    url: str
    content: bytes = BYTES
    cut: int | None = None
    ranges: bool = True
    sent: list[int] = field(default_factory=list)


@pytest.fixture
def shop() -> Iterator[Shop]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "gone" in self.path:
                return self.send_error(404)
            asked = self.headers.get("Range") if served.ranges else None
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if asked and start >= len(served.content):
                return self.send_error(416)
            body = served.content[start:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body if served.cut is None else body[: served.cut]
            served.sent.append(len(sent))  # before the client can have read it
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Shop(f"http://127.0.0.1:{server.server_port}/net.pth")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def test_a_file_comes_whole_and_tells_how_far_it_is(shop: Shop, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    from_url(shop.url, tmp_path / "new" / "net.pth", DIGEST, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "new" / "net.pth").read_bytes() == BYTES
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pth"]


def test_a_transfer_that_was_cut_off_goes_on_where_it_was(shop: Shop, tmp_path: Path):
    shop.cut = 300_000
    with pytest.raises(UsageError, match=r"net\.pth: .*300,000 bytes of it are kept, say it again to go on"):
        from_url(shop.url, tmp_path / "net.pth", DIGEST)
    assert not (tmp_path / "net.pth").exists()
    shop.cut = None
    from_url(shop.url, tmp_path / "net.pth", DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == BYTES
    assert shop.sent == [300_000, len(BYTES) - 300_000]


def test_a_server_that_knows_no_ranges_begins_anew(shop: Shop, tmp_path: Path):
    (tmp_path / "net.pth.part").write_bytes(b"x" * 1000)
    shop.ranges = False
    from_url(shop.url, tmp_path / "net.pth", DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == BYTES


def test_a_part_that_was_already_whole_is_not_sent_again(shop: Shop, tmp_path: Path):
    (tmp_path / "net.pth.part").write_bytes(BYTES)
    from_url(shop.url, tmp_path / "net.pth", DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == BYTES
    assert shop.sent == []


def test_other_bytes_are_refused_and_not_kept(shop: Shop, tmp_path: Path):
    shop.content = BYTES[:-1] + b"!"
    with pytest.raises(IntegrityError, match=rf"net\.pth: expected sha256 {DIGEST[:12]}… .* http.* sent"):
        from_url(shop.url, tmp_path / "net.pth", DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_does_not_answer_is_named(shop: Shop, tmp_path: Path):
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:\d+/gone: 404 Not Found"):
        from_url(shop.url.replace("net.pth", "gone"), tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:1/net: ConnectError"):
        from_url("http://127.0.0.1:1/net", tmp_path / "net.pth")


@pytest.fixture
def models_dir(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A models directory with parts of its own from the server."""
    torch.save({"params_ema": {}}, tmp_path / "net")
    shop.content = (tmp_path / "net").read_bytes()
    entry = {"kind": "rrdb", "revision": "1", "licence": "CC0", "url": shop.url}
    parts = {
        "net": {**entry, "path": "nets/net.pth", "sha256": hashlib.sha256(shop.content).hexdigest()},
        "unknown": {**entry, "path": "nets/unknown.pth", "sha256": "unpinned"},
        "wrong": {**entry, "path": "nets/wrong.pth", "sha256": "0" * 64},
    }
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sd15.yaml").write_text(yaml.safe_dump({"parts": parts}))
    monkeypatch.setenv("PACKSHOT_MODELS_DIR", str(folder))
    get_settings.cache_clear()
    load_profile.cache_clear()
    yield folder
    get_settings.cache_clear()
    load_profile.cache_clear()


def test_the_command_fetches_named_parts_and_says_which_are_not_pinned(models_dir: Path):
    result = CliRunner().invoke(app, ["models", "fetch", "sd15", "net", "unknown"])
    assert result.exit_code == 0, result.output
    assert (models_dir / "nets" / "net.pth").exists()
    assert "unknown" in result.output
    assert "unpinned" in result.output
    load_profile("sd15", models_dir).part("net").check()


def test_what_was_fetched_is_not_fetched_again(models_dir: Path, shop: Shop):
    for _ in range(2):
        assert CliRunner().invoke(app, ["models", "fetch", "sd15", "net"]).exit_code == 0
    assert len(shop.sent) == 1


def test_a_part_of_other_bytes_fails_the_command(models_dir: Path):
    result = CliRunner().invoke(app, ["models", "fetch", "sd15", "wrong", "net"])
    assert isinstance(result.exception, IntegrityError)
    assert "wrong.pth: expected sha256 000000000000" in str(result.exception)


def test_an_unknown_part_is_named_before_anything_is_fetched(models_dir: Path, shop: Shop):
    result = CliRunner().invoke(app, ["models", "fetch", "sd15", "net", "nets"])
    assert isinstance(result.exception, UsageError)
    assert "profile sd15 has no model 'nets'" in str(result.exception)
    assert shop.sent == []


def test_the_bundled_profile_needs_no_fetching(models_dir: Path):
    result = CliRunner().invoke(app, ["models", "fetch", "mini", "--json"])
    assert result.exit_code == 0, result.output


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub of one repository, org/net, on this machine; the requests it got."""
    files = {"config.json": b"{}", "net.pth": BYTES}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            body = files.get(self.path.rsplit("/", 1)[1]) if self.path.startswith("/org/net/resolve/v1/") else None
            asked.append(f"{self.command} {self.path}")
            if body is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield asked
    server.shutdown()
    server.server_close()


def from_the_hub(path: str, files: list[str]) -> dict[str, object]:
    entry = {"kind": "controlnet", "path": path, "hub": "org/net", "revision": "v1", "licence": "CC0"}
    return {**entry, "files": files, "sha256": DIGEST}


def test_a_hubs_files_come_into_the_models_directory(hub: list[str], tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    parts = {"net": from_the_hub("net", ["config.json", "net.pth"]), "one": from_the_hub("mine.pth", ["net.pth"])}
    (folder / "sd15.yaml").write_text(yaml.safe_dump({"parts": parts}))
    profile = load_profile("sd15", folder)
    for name in parts:
        assert fetch(profile.part(name)) == DIGEST
    assert (folder / "net" / "config.json").read_bytes() == b"{}"
    assert (folder / "net" / "net.pth").read_bytes() == (folder / "mine.pth").read_bytes() == BYTES
    before = len(hub)
    fetch(profile.part("net"))
    assert len(hub) == before


def test_the_hub_is_asked_when_a_model_is_loaded_and_keeps_it_in_its_cache(hub: list[str], tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sd15.yaml").write_text(
        yaml.safe_dump({"parts": {"net": from_the_hub("net", ["config.json", "net.pth"])}})
    )
    part = load_profile("sd15", folder).part("net")
    assert hub == []
    located = part.located()
    assert located.path.is_relative_to(tmp_path / "hub")
    assert located.digest() == DIGEST
    assert not (folder / "net").exists()


def test_a_file_that_the_hub_has_not_is_named(hub: list[str], tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sd15.yaml").write_text(yaml.safe_dump({"parts": {"net": from_the_hub("net", ["gone.pth"])}}))
    with pytest.raises(
        UsageError, match=r"org/net/gone\.pth: the hub did not give it \(RemoteEntryNotFoundError"
    ) as one:
        fetch(load_profile("sd15", folder).part("net"))
    assert "\n" not in str(one.value)

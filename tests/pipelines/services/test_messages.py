"""What reaches a webhook and a mail server, and what an error says of them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from pipelines.errors import Unavailable
from pipelines.services.messages import Message, send
from pipelines.settings import Settings
from tests.receivers import mail_server, webhook

REASON = "task publish failed (OSError: no space left on device); mend it, then clear the task"
FAILED = Message("run_failed", "manual__1", "catalog_refresh", "oak", REASON, "https://airflow.example/runs/1")


def to(url: str, **more: object) -> Settings:
    return Settings(webhook_url=SecretStr(url), **more)


def test_a_failure_reaches_the_webhook_and_the_mail_box_with_its_reason() -> None:
    with webhook() as hook, mail_server() as mail:
        mailing = {"mail_to": "ops@shop.example, night@shop.example", "smtp_host": "127.0.0.1", "smtp_port": mail.port}
        send(FAILED, to(hook.url, allow_private_webhook=True, smtp_security="none", **mailing))
    (posted,), (mailed,) = hook.received, mail.received
    assert posted["event"] == "run_failed"
    assert posted["reason"] == REASON
    assert posted["text"] == f"packshot: catalog_refresh failed: {REASON} (https://airflow.example/runs/1)"
    assert mailed["Subject"] == "packshot: catalog_refresh failed"
    assert mailed["To"] == "ops@shop.example, night@shop.example"
    assert "https://airflow.example/runs/1" in mailed.get_payload()


def test_without_a_receiver_nobody_is_notified() -> None:
    send(FAILED, Settings())


@pytest.mark.parametrize(
    ("status", "settings", "said"),
    [
        (204, {}, "127.0.0.1, which is no public address; PACKSHOT_ALLOW_PRIVATE_WEBHOOK"),
        (404, {"allow_private_webhook": True}, "the webhook at 127.0.0.1 answers 404"),
        (302, {"allow_private_webhook": True}, "answers 302"),  # a redirect could lead into this network
        (500, {"allow_private_webhook": True, "mail_to": "a@b.example"}, "answers 500; .* set PACKSHOT_SMTP_HOST"),
    ],
)
def test_what_was_not_taken_is_said_without_the_secret_in_the_address(status: int, settings: dict, said: str) -> None:
    with webhook() as hook:
        hook.status = status
        with pytest.raises(Unavailable, match=said) as error:
            send(FAILED, to(hook.url, **settings))
    assert hook.received == []
    assert "a-secret-token" not in str(error.value)


def test_a_receiver_that_is_away_keeps_no_other_from_its_message_and_causes_no_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with webhook() as hook:
        send(FAILED, to(hook.url, allow_private_webhook=True, mail_to="a@b.example"))
    assert len(hook.received) == 1
    assert "set PACKSHOT_SMTP_HOST" in caplog.text


def test_a_receiver_that_is_not_there_is_said_too() -> None:
    with webhook() as hook:
        pass
    with pytest.raises(Unavailable, match=r"the webhook at 127\.0\.0\.1 does not answer: ConnectError"):
        send(FAILED, to(hook.url, allow_private_webhook=True))
    with pytest.raises(Unavailable, match="no http or https"):
        send(FAILED, to("ftp://example.com/a-secret-token"))

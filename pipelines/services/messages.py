"""Notify people that something went wrong: a JSON POST to a webhook, and mail. Both are off until a setting names them.

The webhook's address often is a secret, so no error and no log line has more of it than its host.
"""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Literal

import httpx

from pipelines.catalogue.links import USER_AGENT, certificates, checked_address
from pipelines.errors import Rejected, Unavailable
from pipelines.settings import Settings

log = logging.getLogger(__name__)

SECONDS = 10.0
"""Time limit of one message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One notification. As JSON it has one more field, `text`, which chat services show.

    `reason` is one line: the failed task and its error, and what to do. `page` is the run's address in Airflow.
    """

    event: Literal["run_failed", "run_late"]
    run: str
    dag_id: str
    scene: str
    reason: str
    page: str

    @property
    def title(self) -> str:
        """The message in a few words."""
        return f"packshot: {self.dag_id} {'failed' if self.event == 'run_failed' else 'is late'}"

    @property
    def text(self) -> str:
        """The message for a person, on one line."""
        return f"{self.title}: {self.reason} ({self.page or self.run})"


def send(message: Message, settings: Settings) -> None:
    """Sends to every receiver of the settings. Raises Unavailable if there are receivers and none took it. A receiver
    that did not take what another took is only logged: a second attempt would reach the other one twice."""
    receivers = [_post] * bool(settings.webhook_url.get_secret_value()) + [_mail] * bool(settings.mail_to)
    problems = []
    for deliver in receivers:
        try:
            deliver(message, settings)
        except Unavailable as error:
            problems.append(str(error))
    if problems and len(problems) == len(receivers):
        raise Unavailable("; ".join(problems))
    for problem in problems:
        log.warning("%s", problem)


def _post(message: Message, settings: Settings) -> None:
    asyncio.run(_post_to(settings.webhook_url.get_secret_value(), message, settings.allow_private_webhook))


async def _post_to(address: str, message: Message, allow_private: bool) -> None:
    """POST. No redirect is followed, and the connection goes to the address that was checked."""
    try:
        url = httpx.URL(address)
        if url.scheme not in ("http", "https") or not url.host:
            raise Unavailable("the webhook has no http or https address: correct PACKSHOT_WEBHOOK_URL")
        port = url.port or (443 if url.scheme == "https" else 80)
        async with asyncio.timeout(SECONDS):
            checked = await checked_address(url.raw_host.decode(), port, allow_private)
            async with httpx.AsyncClient(trust_env=False, verify=certificates()) as client:
                answer = await client.post(
                    url.copy_with(host=checked),
                    json=asdict(message) | {"text": message.text},
                    headers={"Host": url.netloc.decode(), "User-Agent": USER_AGENT},
                    extensions={"sni_hostname": url.raw_host.decode()},
                )
    except Rejected as error:
        raise Unavailable(f"webhook: {error.reason}; PACKSHOT_ALLOW_PRIVATE_WEBHOOK allows a private one") from None
    except (httpx.HTTPError, TimeoutError) as error:
        raise Unavailable(f"the webhook at {url.host} does not answer: {type(error).__name__}") from None
    except (httpx.InvalidURL, UnicodeError):
        raise Unavailable("the webhook's address is none: correct PACKSHOT_WEBHOOK_URL") from None
    if not answer.is_success:
        raise Unavailable(f"the webhook at {url.host} answers {answer.status_code}")


def _mail(message: Message, settings: Settings) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.title, settings.mail_from, settings.mail_to
    mail.set_content(f"{message.reason}\n\nrun    {message.run}\nscene  {message.scene}\npage   {message.page}\n")
    try:
        with _mail_server(settings) as server:
            if settings.smtp_user:
                server.login(settings.smtp_user, settings.smtp_password.get_secret_value())
            server.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        kind = type(error).__name__  # the text of a refused login may have the login in it
        raise Unavailable(f"the mail server at {settings.smtp_host}:{settings.smtp_port}: {kind}") from None


def _mail_server(settings: Settings) -> smtplib.SMTP:
    if not settings.smtp_host:
        raise Unavailable("there is no mail server: set PACKSHOT_SMTP_HOST")
    where, context = (settings.smtp_host, settings.smtp_port), ssl.create_default_context()
    if settings.smtp_security == "tls":
        return smtplib.SMTP_SSL(*where, timeout=SECONDS, context=context)
    server = smtplib.SMTP(*where, timeout=SECONDS)
    if settings.smtp_security == "starttls":
        server.starttls(context=context)
    return server

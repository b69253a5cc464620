"""What can go wrong, and who has to act.

    PackshotError
    ├── Rejected          the input is bad: the shot ends as `rejected` with this reason, the shard goes on
    ├── UsageError        the command or a file it names is wrong: exit code 2 and one line
    ├── IntegrityError    bytes or a record are not what they claim to be: never retried, never published
    ├── Unavailable       something outside does not answer for now: Airflow tries again
    ├── OutOfMemory       the accelerator is full: the batch is halved and tried again
    └── ShotTimeout       one shot ran past its limit: it ends as `failed`, the shard goes on

Anything else (a database that is away, an object store that does not answer) is left as its library
raises it: the task fails and Airflow retries it; a command says it in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PackshotError(Exception):
    """Base of the errors that packshot raises on purpose."""


class Rejected(PackshotError):
    """Bad input. `reason` is a sentence for the person who sent it: what is wrong, and where it helps, the remedy.
    `facts` (JSON) are recorded with the step, such as the limit that the input is over."""

    def __init__(self, reason: str, facts: Mapping[str, Any] | None = None):
        super().__init__(reason)
        self.reason = reason
        self.facts = dict(facts or {})


class UsageError(PackshotError):
    """A wrong command, option or file: one line that names it and says what to do."""


class IntegrityError(PackshotError):
    """Bytes whose digest is not their name, or a record that contradicts another."""


class Unavailable(PackshotError):
    """What is needed from outside cannot be had for now; later it may be."""


class OutOfMemory(PackshotError):
    """The accelerator has no room for this batch."""


class ShotTimeout(PackshotError):
    """One shot used more than its time."""

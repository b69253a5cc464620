"""Policy that the DAGs share: owner, retries, tags, and the fields of their forms.

A field that may be left empty has the type `null` beside its own: without it Airflow's form calls an empty field an
error, marks it with a star, and does not let the run start.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

from airflow.sdk import Param

from operators.base import note_failure
from pipelines.contracts import Reprocess
from pipelines.scenes import scene_titles
from pipelines.scenes.channels import channel_files
from pipelines.settings import get_settings

OWNER = "catalogue-team"

DEFAULT_ARGS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 4,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 5.0,
    "max_retry_delay": timedelta(minutes=10),
    "weight_rule": "absolute",
    "priority_weight": 10,
    "on_failure_callback": note_failure,
}
"""Every task's: five tries over fifteen minutes at least, which a restart of Postgres, the store or a machine takes.
The first retry comes after ten to twenty seconds: that of a killed worker's task waits for nothing else. A retry
repeats nothing that was finished, so retries are cheap. (Errors that no retry can mend fail at once: the operators'
retry policy.) GPU work has a lower priority, so that it does not delay what is ready."""

BESIDE_GPU = 4
"""Tasks of a run that may run besides those in pool `gpu`."""


def most_tasks() -> int:
    """Tasks of one run at the same time (`max_active_tasks`): the slots of pool `gpu`, and a few more. Airflow's
    default of 16 would leave GPUs idle."""
    return get_settings().gpu_slots + BESIDE_GPU


TICK = "Override parameters on existing runs"
"""The box in Airflow's Backfill dialog without which the form's values are not sent, not even for new runs."""

SELDOM = "Seldom needed"
"""A folded section of a form."""


class Tag(StrEnum):
    """Every tag there is."""

    PACKSHOT = "packshot"
    NIGHTLY = "nightly"
    CAMPAIGN = "campaign"
    TRAINING = "training"
    GPU = "gpu"


def scene_param(default: str | None = None, hint: str = "") -> Param:
    """A choice of the scenes that there are, by their titles. Without a default somebody has to choose, and
    `operators.plan` fails where nobody did: a field that must be filled in would open as an error."""
    titles = scene_titles()
    about: dict[str, Any] = {"type": "string", "enum": list(titles), "values_display": titles}
    description = f"The look: prompt, inpainting method, controls, LoRA, placement, channel and checks. {hint}".strip()
    if default is None:
        about = {
            "type": ["null", "string"],
            "enum": [None, *titles],
            "values_display": {"null": "Choose a scene", **titles},
        }
    return Param(default, title="Scene", description=description, **about)


def channels_param(default: Sequence[str] = ()) -> Param:
    """Some of the channels that there are. Empty means the channel that the scene describes."""
    names = list(channel_files())
    return Param(
        [name.strip() for name in default if name.strip()] or None,
        type=["null", "array"],
        items={"type": "string", "enum": names},
        examples=names,  # the choices that the form offers
        title="Channels",
        description="Where the images are published: size, format, limits and background. Empty: the scene's own. "
        "Of several, this run is for the first, and starts another one for each of the others.",
    )


def scenes_param(description: str) -> Param:
    """Some of the scenes that there are, by their titles. Empty means all."""
    titles = scene_titles()
    return Param(
        None,
        type=["null", "array"],
        items={"type": "string", "enum": list(titles)},
        examples=list(titles),  # the choices that the form offers
        values_display=titles,
        title="Scenes",
        description=description,
    )


def names_param(title: str, description: str) -> Param:
    """A list of names, one a line. Empty lines are none (`operators.base.listed`); an empty list means all."""
    return Param(None, type=["null", "array"], items={"type": "string"}, title=title, description=description)


def limit_param() -> Param:
    """For a try: the first few products."""
    return Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit",
        description="At most that many products, in feed order. Empty: no limit.",
        section=SELDOM,
    )


def selection_params() -> dict[str, Param]:
    """Which products, and what to do about steps that are there already."""
    return {
        "categories": names_param(
            "Categories",
            "One a line, as in the feed's product_type; a category holds those below it. Empty: all.",
        ),
        "skus": names_param("SKUs", "One a line. Empty: all."),
        "reprocess": Param(
            Reprocess.MISSING.value,
            type="string",
            enum=[one.value for one in Reprocess],
            title="Reprocess",
            values_display={
                "missing": "missing: walk all, reuse every finished step",
                "failed": "failed: only what failed, was rejected or held, computed anew",
                "all": "all: compute everything anew",
            },
            description="What happens to steps that are in the ledger already.",
        ),
    }

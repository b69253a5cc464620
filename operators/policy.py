"""Policy that the DAGs share: owner, retries, tags, and the fields of their forms."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from airflow.sdk import Param

from pipelines.contracts import Reprocess
from pipelines.scenes import scene_names

OWNER = "catalogue-team"

DEFAULT_ARGS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
}
"""Every task's. A retry repeats nothing that was finished, so retries are cheap. (Errors that no retry can mend fail at
once: the operators' retry policy.)"""


class Tag(StrEnum):
    """Every tag there is."""

    PACKSHOT = "packshot"
    NIGHTLY = "nightly"
    CAMPAIGN = "campaign"
    TRAINING = "training"
    GPU = "gpu"


def scene_param(default: str = "") -> Param:
    """A choice of the scenes that there are. Reads file names only."""
    names = scene_names()
    return Param(
        default or names[0],
        type="string",
        enum=names,
        title="Scene",
        description="The look: prompt, inpainting method, controls, LoRA, placement, channel and checks.",
    )


def selection_params() -> dict[str, Param]:
    """Which products, and what to do about steps that are there already."""
    return {
        "categories": Param(
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            title="Categories",
            description="One a line, as in the feed's product_type; a category holds those below it. Empty: all.",
        ),
        "skus": Param(
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            title="SKUs",
            description="One a line. Empty: all.",
        ),
        "limit": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Limit",
            description="At most that many products, in feed order. Empty: no limit.",
        ),
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
        "triggered_by": Param(
            "",
            type="string",
            title="Asked for by",
            description="Kept with the run.",
            section="Bookkeeping",
        ),
    }

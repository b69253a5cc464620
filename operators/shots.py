"""The mapped task group that both DAGs share: one shard through the stages that need the accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import chain, task_group

from operators.base import GPU_POOL, GPU_QUEUE
from operators.stages import (
    CutoutOperator,
    DescribeOperator,
    GenerateOperator,
    InspectOperator,
    UpscaleOperator,
)

if TYPE_CHECKING:
    from airflow.sdk import TaskGroup, XComArg


def shots_of(shards: XComArg) -> TaskGroup:
    """Maps cutout → describe → generate → upscale → inspect over the shards.

    The pool is in the group's default arguments, which reach every mapped task. A later stage has a higher priority:
    shards that were begun are finished first.
    """

    gpu = {"pool": GPU_POOL, "pool_slots": 1, "queue": GPU_QUEUE}

    @task_group(group_id="shots", default_args=gpu, tooltip="One shard, all its stages")
    def shots(shard: int) -> None:
        chain(
            CutoutOperator(task_id="cutout", shard=shard, priority_weight=1),
            DescribeOperator(task_id="describe", shard=shard, priority_weight=2),
            GenerateOperator(task_id="generate", shard=shard, priority_weight=3),
            UpscaleOperator(task_id="upscale", shard=shard, priority_weight=4),
            InspectOperator(task_id="inspect", shard=shard, priority_weight=5),
        )

    return shots.expand(shard=shards)  # type: ignore[return-value]  # typed as any node

"""Fine-tune BrushNet on the shop's own products, in the paper's two stages; started by hand, never by itself.

`gather` freezes the pictures; `salient` trains stage 1 (salient objects, from a random-mask BrushNet), `instance`
stage 2 (whole e-commerce products by their mattes); `register` paints held-out products with the new weights and with
those in use, and registers a revision with both figures; `promote` puts it to use where mean E⁺ is lower beyond the
95 % interval.

**Pictures.** *ledger*: the newest cutout of every product of which an image was published or approved, all of them or
those of some scenes and categories. *folder*: `images/NAME.jpg` with `masks/NAME.png`, white where the product is, on
the worker that runs `gather`. Every tenth product, by its name, is held out and judges the model. Bad pairs are refused
with a reason in the log of `gather`.

**Stage 1** needs a folder of salient objects, or the bundled models' training pictures beside the checkout. With 0
minutes it is left out and stage 2 begins from the weights in use: that is how to go on with a shop's own pictures.

**Afterwards.** `packshot models revisions` has the figures, `packshot models rollback brushnet` takes a promotion back.
What was promoted is used by tasks that begin later; every product is painted anew with it when it is next refreshed.

**When something is red.** A retry on the same worker goes on at the last checkpoint; clearing a task is safe.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag

from operators.base import GPU_POOL, GPU_QUEUE
from operators.finetune import gather, promote, register, train
from operators.policy import DEFAULT_ARGS, SELDOM, Tag, names_param, scenes_param

MOST_MINUTES = 330
"""A stage's task may take six hours, and encodes its pictures first."""


def minutes_param(title: str, description: str) -> Param:
    """Training time of one stage."""
    return Param(30.0, type="number", minimum=0, maximum=MOST_MINUTES, title=title, description=description)


def steps_param(title: str) -> Param:
    """Training steps instead of minutes."""
    return Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title=title,
        description="Instead of minutes: a killed training then resumes to the bit.",
        section=SELDOM,
    )


@dag(
    dag_id="brushnet_finetune",
    description="BrushNet's two-stage fine-tune on the shop's own cutouts; promoted where it is better beyond chance.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=2),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT, Tag.TRAINING, Tag.GPU],
    params={
        "source": Param(
            "ledger",
            type="string",
            enum=["ledger", "folder", "training"],
            title="Pictures of stage 2",
            values_display={
                "ledger": "ledger: cutouts of products with a published or approved image",
                "folder": "folder: images and masks on the worker",
                "training": "training: the bundled models' own goods",
            },
            description="Where whole products with their masks come from.",
        ),
        "folder": Param(
            None, type=["null", "string"], title="Folder", description="With images/ and masks/; for source folder."
        ),
        "salient_folder": Param(
            None,
            type=["null", "string"],
            title="Folder of stage 1",
            description="Salient objects, likewise. Empty: the bundled models' training pictures.",
        ),
        "scenes": scenes_param("Of the ledger, only these scenes' shots. Empty: all."),
        "categories": names_param("Categories", "Of the ledger, only products in these, one a line. Empty: all."),
        "salient_minutes": minutes_param("Minutes of stage 1", "Salient objects. 0: left out."),
        "minutes": minutes_param("Minutes of stage 2", "E-commerce products."),
        "promote": Param(
            True,
            type="boolean",
            title="Promote",
            description="Use it where it is better beyond its confidence interval. Otherwise it is registered only.",
        ),
        "products": Param(
            24,
            type="integer",
            minimum=1,
            title="Products that judge",
            description="Held-out products, at most so many; below 8 nothing is promoted.",
            section=SELDOM,
        ),
        "seeds": Param(2, type="integer", minimum=1, title="Pictures of each", description="Seeds.", section=SELDOM),
        "evaluate_minutes": Param(
            10.0,
            type="number",
            minimum=0,
            title="Judge every so many minutes",
            description="While it trains, into overcompletion.csv of its work folder. 0: only at the end.",
            section=SELDOM,
        ),
        "salient_steps": steps_param("Steps of stage 1"),
        "steps": steps_param("Steps of stage 2"),
        "side": Param(
            None,
            type=["null", "integer"],
            enum=[None, 64, 128, 256, 512],
            title="Side",
            description="Width and height of the training pictures, px. Empty: the profile's own.",
            section=SELDOM,
        ),
    },
)
def brushnet_finetune() -> None:
    """Gather, train both stages, judge and register, promote."""
    pictures = gather()
    gpu: dict[str, Any] = {"pool": GPU_POOL, "queue": GPU_QUEUE, "priority_weight": 1}
    salient = train.override(task_id="salient", **gpu)("salient", pictures)
    instance = train.override(task_id="instance", **gpu)("instance", pictures, salient)
    promote(register.override(**gpu)(pictures, salient, instance))


brushnet_finetune()

"""What passes between stages: frozen, slotted dataclasses. The step's key is made here.

    key = sha256(stage, its version, input artifact digests, parameters, model revisions, seed)

Two steps with one key are the same step, whoever runs them and when (docs/explanation/keys-and-lineage.md). A forced
recomputation has a key of its own; what it makes supersedes what was found under the key without it (`Job.base`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol


class State(StrEnum):
    """How a step ended."""

    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"


STAGES = ("cutout", "describe", "generate", "upscale", "inspect", "publish")
"""The paper's workflow, in order."""

FINISHED = (State.DONE, State.REJECTED)
"""States of a step that is a result. A failed step is none: it is tried again."""


class ShotState(StrEnum):
    """What became of a shot in a run."""

    PUBLISHED = "published"
    HELD = "held"
    REJECTED = "rejected"
    FAILED = "failed"
    PENDING = "pending"


FURTHER = "channel__"
"""Beginning of the ids of runs that another run started for a further channel. (Airflow reserves other beginnings.)"""


def run_of_channel(first: str, channel: str) -> str:
    """Id of the run for a further channel that the run `first` leads to."""
    return f"{FURTHER}{channel}__{first}"


class Reprocess(StrEnum):
    """Which shots a run selects, and which of their finished steps it computes again."""

    MISSING = "missing"
    """Every shot; every finished step is reused."""
    FAILED = "failed"
    """Only shots that last failed, were rejected or held; all their steps are computed again."""
    ALL = "all"
    """Every shot; every step is computed again."""

    def attempt(self, run: str) -> str:
        """The attempt of the keys of this run's steps: "" for `missing`, so that finished steps are found."""
        return "" if self is Reprocess.MISSING else run


def canonical_json(value: Any) -> str:
    """The one spelling of `value` that keys are made of: sorted, compact, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_hex(data: bytes) -> str:
    """Digest that names an artifact."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model of a profile: `sha256` is of its weight file, or of its files in name order where there are several."""

    name: str
    revision: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """Bytes in the store. `sha256` is digest and object name; `role` says what they are to the step that made them."""

    sha256: str
    role: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """One catalogue row and one of its photos. `photo` is the photo's digest in the store, or None with the reason why
    there is none.

    An additional photo is a product of its own: `photo_of` is the SKU of its row, `photo_number` its place among the
    row's photos from 2 on, and `sku` names the two together (`pipelines.catalogue.additional`). The row's main photo
    has number 1, and `photo_of` is "".
    """

    sku: str
    row: int
    title: str
    category: str
    photo: str | None
    photo_problem: str = ""
    image_link: str = ""
    item_group_id: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    photo_of: str = ""
    photo_number: int = 1

    @property
    def row_sku(self) -> str:
        """The SKU in the feed, which all photos of a row share."""
        return self.photo_of or self.sku


@dataclass(frozen=True, slots=True)
class Shot:
    """One photo of a product in one scene for one channel: the unit of work."""

    product: Product
    scene: str
    channel: str

    @property
    def sku(self) -> str:
        """The product's SKU; of an additional photo, the name of product and photo."""
        return self.product.sku


@dataclass(frozen=True, slots=True)
class Job:
    """A step before it is computed: exactly what its key is made of, and nothing else.

    `inputs` maps a role to an artifact digest. `parameters` is JSON. `attempt` is "" except where a recomputation was
    forced (`reprocess` = `all` or `failed`), when it is what distinguishes the new key.
    """

    stage: str
    version: int
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    models: tuple[ModelRef, ...] = ()
    seed: int | None = None
    attempt: str = ""

    @property
    def key(self) -> str:
        """sha256 over everything above, 64 hex digits."""
        return sha256_hex(
            canonical_json(
                {
                    "stage": self.stage,
                    "version": self.version,
                    "inputs": dict(self.inputs),
                    "parameters": dict(self.parameters),
                    "models": sorted([m.name, m.revision, m.sha256] for m in self.models),
                    "seed": self.seed,
                    "attempt": self.attempt,
                }
            ).encode()
        )

    @property
    def is_by_hand(self) -> bool:
        """Whether a person made the step."""
        return self.attempt.startswith(BY_HAND)

    @property
    def base(self) -> str:
        """The key without the attempt: what the steps that supersede one another have in common."""
        return replace(self, attempt="").key


BY_HAND = "by hand"
"""Beginning of the attempt of a step that a person made. Such a step is kept when steps are forced."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check on one image. `passed` is score ≤ threshold for `at_most` checks, ≥ otherwise; `picture` is the role of
    the output that shows where, or "" where there is nothing to show."""

    check: str
    score: float
    threshold: float
    passed: bool
    reason: str = ""
    picture: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a step made, before the store has them."""

    role: str
    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Made:
    """What a stage returns for one job: outputs to be stored, small facts (JSON) and verdicts."""

    outputs: tuple[Output, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A step as the ledger has it. `reason` is a rejection's reason or a failure's error."""

    key: str
    job: Job
    state: State
    outputs: tuple[Artifact, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    device: str = ""

    def output(self, role: str) -> str:
        """Digest of the output with this role. Raises KeyError where the step made none."""
        for artifact in self.outputs:
            if artifact.role == role:
                return artifact.sha256
        raise KeyError(f"step {self.job.stage} {self.key[:12]} made no {role!r}")


@dataclass(frozen=True, slots=True)
class ShotStep:
    """A step as one run used it for one shot. `chosen` is False for the candidates that were passed over."""

    step: Step
    reused: bool
    chosen: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """How a feed differs from what the ledger knew: numbers of products. `gone` left a whole feed of that name."""

    new: int
    changed: int
    unchanged: int
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Publication:
    """One image about to be shown for one shot. `digest` is of the published file."""

    sku: str
    scene: str
    channel: str
    digest: str


@dataclass(frozen=True, slots=True)
class ShownImage:
    """The image that a channel shows of a product in a scene. `digest` is of the published file.

    `photo_of` is the product's SKU where the image is of an additional photo, which `sku` names.
    """

    sku: str
    scene: str
    digest: str
    photo_of: str = ""

    @property
    def row_sku(self) -> str:
        """The product's SKU in the shop's feed."""
        return self.photo_of or self.sku


class Store(Protocol):
    """Content-addressed bytes: written once, verified when read."""

    def put(self, data: bytes, media_type: str, *, new: bool = False) -> str:
        """Store `data`; when this returns its digest, the object is durable. `new`: it is probably not there yet."""

    def has(self, digest: str) -> bool:
        """Whether an object of this name is there (its bytes are not read)."""

    def get(self, digest: str) -> bytes:
        """The bytes. Raises KeyError where there are none, IntegrityError where they are not what their name says."""


class Ledger(Protocol):
    """What ran. The table of steps is the lineage."""

    def find(self, keys: Sequence[str]) -> dict[str, Step]:
        """Return finished steps (`done` and `rejected`) by requested key.

        A key without an attempt returns the newest step among all its attempts; a key with an attempt returns only
        that one. A `failed` step is no result and is tried again.
        """

    def claim(self, keys: Sequence[str]) -> AbstractContextManager[None]:
        """Hold these keys: whoever else wants one waits. The claim ends with its holder, however it ends."""

    def record(self, step: Step, run: str = "") -> Step:
        """Write a step, computed by `run`, in one transaction. The first result of a key wins and is returned."""

    def use(self, run: str, uses: Sequence[tuple[Shot, Sequence[ShotStep]]]) -> None:
        """Note which steps this run used for these shots (idempotent)."""

    def chosen(
        self, run: str, shots: Sequence[Shot], stages: Sequence[str] | None = None
    ) -> dict[str, dict[str, Step]]:
        """SKU → stage → the chosen step of this run, of these stages or of all."""

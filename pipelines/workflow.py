"""One stage over many shots: find, claim, compute, store, record. Steps are made nowhere else.

Operators call `run_stage` with the Postgres ledger and the S3 store, `packshot shoot` with a ledger in memory and a
folder. A stage does not know which.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from more_itertools import chunked

from pipelines.contracts import Artifact, Job, Ledger, Made, Shot, ShotStep, State, Step, Store
from pipelines.errors import IntegrityError, OutOfMemory, Rejected, ShotTimeout
from pipelines.settings import CPU, MAX_MEGAPIXELS, Compute

if TYPE_CHECKING:
    from pipelines.contracts import ModelRef
    from pipelines.models.profile import Profile
    from pipelines.scenes import Scene
    from pipelines.vision.credentials import Credentials

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything besides the shot that decides the result. It enters the keys through the stages' parameters.

    Published files are signed with `credentials`, where there are some. Text is read by `reader`, where there is one.
    `keep_encoding(photo, model, bytes)` decides nothing: it keeps what HQ-SAM's encoder made of a held photo, by the
    sha256 of photo and weights.
    """

    profile: Profile
    scene: Scene
    path: str = "auto"
    method: str | None = None
    mask_guidance: bool = True
    seed: int | None = None
    attempt: str = ""
    compute: Compute = CPU
    max_megapixels: float = MAX_MEGAPIXELS
    credentials: Credentials | None = None
    reader: ModelRef | None = None
    keep_encoding: Callable[[str, str, bytes], None] | None = None

    @property
    def device(self) -> str:
        """Where the models run."""
        return self.compute.device


@dataclass(frozen=True, slots=True)
class Work:
    """A job and the bytes of its inputs, by role."""

    job: Job
    inputs: Mapping[str, bytes]


BATCH = 4
"""Shots of a batch if neither a setting nor the free memory decides."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the workflow, as functions.

    job(shot, upstream, recipe, candidate) → Job     no pixels: what the key is made of; `upstream`: the stages that it
                                                     `needs` → their steps
    load(recipe) → models                            once a shard, and only when something is to be computed
    compute(works, models, recipe) → [Made|Rejected] same order as `works`
    candidates(recipe) → int                         how many seeds may be tried, one step each
    score(step, recipe) → float                      lower is better; `passes(step, recipe)` stops the search
    holds(step, recipe) → bool               whether a finished step that was found is still a result
    supplies(shot, recipe) → [(bytes, media type)]   inputs of its job that no earlier stage put into the store
    fits(recipe) → int                               shots that fit into one batch, once the models are loaded
    """

    name: str
    version: int
    needs: tuple[str, ...]
    job: Callable[[Shot, Mapping[str, Step], Recipe, int], Job]
    load: Callable[[Recipe], Any]
    compute: Callable[[Sequence[Work], Any, Recipe], Sequence[Made | Rejected]]
    batched: bool = False
    candidates: Callable[[Recipe], int] = lambda recipe: 1
    score: Callable[[Step, Recipe], float] = lambda step, recipe: 0.0
    passes: Callable[[Step, Recipe], bool] = lambda step, recipe: True
    holds: Callable[[Step, Recipe], bool] = lambda step, recipe: True
    supplies: Callable[[Shot, Recipe], Sequence[tuple[bytes, str]]] = lambda shot, recipe: ()
    fits: Callable[[Recipe], int] = lambda recipe: BATCH


@dataclass(slots=True)
class StageSummary:
    """What one stage did to one shard; JSON through `dataclasses.asdict`. `reasons` counts each reason."""

    stage: str
    shots: int = 0
    skipped: int = 0
    computed: int = 0
    reused: int = 0
    rejected: int = 0
    failed: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """Shots computed at once (0: as many as fit into memory), and seconds of computing for one shot; a batch has that
    time for each of its shots."""

    batch_size: int = BATCH
    shot_seconds: float = 300.0


def run_stage(
    stage: Stage,
    run: str,
    shots: Sequence[Shot],
    recipe: Recipe,
    ledger: Ledger,
    store: Store,
    limits: Limits = Limits(),
    progress: Callable[[Shot, Step], None] | None = None,
    hardware: Callable[[], Compute] | None = None,
    models: StageModels | None = None,
) -> StageSummary:
    """Brings every shot of a shard through one stage.

    `hardware` is asked for the device when the first shot is to be computed, because the answer needs torch; without
    it the recipe's device is used. `models` are given by who runs the stage more than once, so that they are loaded
    once.

    A shot whose upstream step is not `done` is skipped. Finished steps are reused. The others are claimed, computed
    and recorded batch by batch, so that a killed task loses one batch at most.

    Bad input ends as a `rejected` step, a bug as a `failed` one. Errors of store and ledger are raised: the task is
    retried.
    """
    summary = StageSummary(stage.name, shots=len(shots))
    upstream = ledger.chosen(run, shots, stage.needs)
    live = [shot for shot in shots if is_ready(stage, upstream.get(shot.sku, {}))]
    summary.skipped = len(shots) - len(live)
    models = models or StageModels(stage, recipe, hardware)
    tried: dict[str, list[ShotStep]] = {shot.sku: [] for shot in live}

    searching = live
    for candidate in range(stage.candidates(recipe)):
        jobs = [(shot, stage.job(shot, upstream.get(shot.sku, {}), recipe, candidate)) for shot in searching]
        for shot, used in _resolve(stage, run, jobs, models, ledger, store, limits):
            tried[shot.sku].append(used)
            _count(summary, used)
            if progress is not None:
                progress(shot, used.step)
        searching = [s for s in searching if not is_settled(stage, tried[s.sku][-1].step, recipe)]
        if not searching:
            break

    ledger.use(run, [(shot, with_choice(stage, tried[shot.sku], recipe)) for shot in live])
    return summary


def is_ready(stage: Stage, upstream: Mapping[str, Step]) -> bool:
    """Every stage that it needs is done."""
    return all(name in upstream and upstream[name].state is State.DONE for name in stage.needs)


def is_settled(stage: Stage, step: Step, recipe: Recipe) -> bool:
    """Whether no further seed can help: the step passed, was rejected or failed."""
    return step.state is not State.DONE or stage.passes(step, recipe)


def choose(stage: Stage, steps: Sequence[Step], recipe: Recipe) -> Step:
    """The first step that passes, else the done step with the best score, else the last step."""
    done = [step for step in steps if step.state is State.DONE]
    if not done:
        return steps[-1]
    return next((s for s in done if stage.passes(s, recipe)), min(done, key=lambda step: stage.score(step, recipe)))


def with_choice(stage: Stage, tried: Sequence[ShotStep], recipe: Recipe) -> list[ShotStep]:
    """What was tried for a shot, with the best of it chosen."""
    best = choose(stage, [used.step for used in tried], recipe)
    return [ShotStep(used.step, used.reused, used.step.key == best.key) for used in tried]


def _count(summary: StageSummary, used: ShotStep) -> None:
    summary.reused += used.reused
    summary.computed += not used.reused
    summary.seconds += 0.0 if used.reused else used.step.seconds
    summary.rejected += used.step.state is State.REJECTED
    summary.failed += used.step.state is State.FAILED
    if used.step.reason:
        summary.reasons[used.step.reason] = summary.reasons.get(used.step.reason, 0) + 1


def _resolve(
    stage: Stage,
    run: str,
    jobs: Sequence[tuple[Shot, Job]],
    models: StageModels,
    ledger: Ledger,
    store: Store,
    limits: Limits,
) -> Iterator[tuple[Shot, ShotStep]]:
    """Reuses finished steps. Claims the others batch by batch, looks them up again, and computes what is missing.

    The second look-up finds steps that another worker finished while this one waited for the claim."""
    jobs, known = find_steps(stage, jobs, models.recipe, ledger)
    for shot, job in jobs:
        if job.key in known:
            yield shot, ShotStep(known[job.key], reused=True)
    missing = [(shot, job) for shot, job in jobs if job.key not in known]
    size = limits.batch_size if stage.batched else 1
    if missing and size == 0:
        # what the loaded models leave free is for the batch
        size = stage.fits(models.get()[0])
    for batch in chunked(missing, size):
        wanted = {job.key: job for _, job in batch}
        with ledger.claim(sorted(wanted)):
            there = ledger.find(sorted(wanted))
            todo = [job for key, job in wanted.items() if key not in there]
            lacking = [shot for shot, job in batch if job.key not in there]
            supplied = {data for shot in lacking for data in stage.supplies(shot, models.recipe)}
            for data, media_type in supplied:
                store.put(data, media_type)
            fresh = {step.key: ledger.record(step, run) for step in _compute(stage, todo, models, store, limits)}
        for shot, job in batch:
            reused = job.key not in fresh
            yield shot, ShotStep(there[job.key] if reused else fresh[job.key], reused)


def find_steps(
    stage: Stage, jobs: Sequence[tuple[Shot, Job]], recipe: Recipe, ledger: Ledger
) -> tuple[list[tuple[Shot, Job]], dict[str, Step]]:
    """The jobs, and their finished steps by key. The job of a step that no longer holds becomes another attempt. A step
    that a person made is found for a forced job too: only another person replaces it."""
    known = ledger.find([job.key for _, job in jobs])
    if forced := {job.key: job.base for _, job in jobs if job.attempt and job.key not in known}:
        newest = ledger.find(sorted(set(forced.values())))
        known |= {key: newest[base] for key, base in forced.items() if base in newest and newest[base].job.is_by_hand}
    over = {key: step for key, step in known.items() if not stage.holds(step, recipe)}
    if not over:
        return list(jobs), known
    again = [
        (shot, replace(job, attempt=f"after {over[job.key].key}") if job.key in over else job) for shot, job in jobs
    ]
    return again, known | ledger.find([job.key for _, job in again])


def _compute(stage: Stage, jobs: Sequence[Job], models: StageModels, store: Store, limits: Limits) -> list[Step]:
    """Computes jobs as one batch; if that fails, as two halves. A single job that fails is a failed step."""
    if not jobs:
        return []
    read = [_read(job, store) for job in jobs]
    works = [work for work in read if isinstance(work, Work)]
    if len(works) < len(jobs):
        lost = [step for step in read if isinstance(step, Step)]
        return lost + _compute(stage, [work.job for work in works], models, store, limits)
    recipe, loaded = models.get()
    started = time.monotonic()
    try:
        with _time_limit(limits.shot_seconds * len(jobs)), _torch_out_of_memory():
            made = stage.compute(works, loaded, recipe)
    except Exception as error:
        if _device_is_lost(error):
            raise  # no photo's fault, and no later one can be computed in this process
        if len(jobs) > 1:
            log.warning("%s: a batch of %d ended with %s; halving it", stage.name, len(jobs), type(error).__name__)
            halves = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
            return [step for half in halves for step in _compute(stage, half, models, store, limits)]
        seconds = time.monotonic() - started
        if isinstance(error, Rejected):
            return [_rejected(jobs[0], error, seconds, recipe.device)]
        log.exception("%s failed on key %s", stage.name, jobs[0].key)
        reason = f"{type(error).__name__}: {error}"
        return [Step(jobs[0].key, jobs[0], State.FAILED, reason=reason, seconds=seconds, device=recipe.device)]
    seconds = (time.monotonic() - started) / len(jobs)
    return [_finish(job, result, store, seconds, recipe.device) for job, result in zip(jobs, made, strict=True)]


def _read(job: Job, store: Store) -> Work | Step:
    """A job with its inputs, or a failed step if an input is damaged or missing: that costs one shot only. If the store
    does not answer at all, its error is raised."""
    inputs = {}
    for role, digest in job.inputs.items():
        try:
            inputs[role] = _get(digest, store)
        except _StoreAway as away:
            raise away.error from None
        except Exception as error:
            what = f"the store has no object {digest}" if isinstance(error, KeyError) else f"object {digest}: {error}"
            log.error("%s: the %s of key %s cannot be used: %s", job.stage, role, job.key, what)
            remedy = "`packshot verify --hash --repair`, then run its catalogue again"
            reason = f"its {role} cannot be used ({what}): {remedy}"
            return Step(job.key, job, State.FAILED, reason=reason)
    return Work(job, inputs)


def _get(digest: str, store: Store) -> bytes:
    """The object. If it cannot be read, it is read again: a fault of the way there is no fault of the object."""
    try:
        return store.get(digest)
    except KeyError:
        raise
    except IntegrityError:
        return store.get(digest)
    except Exception:
        _check_answers(store)  # else it is this object alone that the store cannot read
        return store.get(digest)


class _StoreAway(Exception):
    """The store does not give back what it is given."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


def _check_answers(store: Store) -> None:
    try:
        store.get(store.put(b"packshot asks whether the store answers", "text/plain"))
    except Exception as error:
        raise _StoreAway(error) from error


def _finish(job: Job, result: Made | Rejected, store: Store, seconds: float, device: str) -> Step:
    """Stores the outputs first, so that a recorded step never names a missing object."""
    if isinstance(result, Rejected):
        return _rejected(job, result, seconds, device)
    outputs = tuple(
        Artifact(store.put(out.data, out.media_type), out.role, out.media_type, len(out.data)) for out in result.outputs
    )
    return Step(job.key, job, State.DONE, outputs, result.facts, result.verdicts, seconds=seconds, device=device)


def _rejected(job: Job, rejection: Rejected, seconds: float, device: str) -> Step:
    facts, reason = rejection.facts, rejection.reason
    return Step(job.key, job, State.REJECTED, facts=facts, reason=reason, seconds=seconds, device=device)


class StageModels:
    """A stage's models, loaded at first use: a shard that reuses every step loads none, and asks for no device."""

    def __init__(self, stage: Stage, recipe: Recipe, hardware: Callable[[], Compute] | None = None):
        self.recipe = recipe
        self._stage, self._hardware = stage, hardware
        self._loaded: list[tuple[Recipe, Any]] = []

    def get(self) -> tuple[Recipe, Any]:
        """The recipe with its device, and the models."""
        if not self._loaded:
            recipe = replace(self.recipe, compute=self._hardware()) if self._hardware else self.recipe
            self._loaded.append((recipe, self._stage.load(recipe)))
        return self._loaded[0]


PATIENCE = 10
"""A shot may take this many times its limit by the clock, if it computes for less: a full machine, a slow network."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises ShotTimeout once this thread has computed for `seconds`, or after PATIENCE times as long by the clock.

    Computing is the thread's CPU time. It takes part in all that torch computes and waits for the rest, so on a quiet
    machine its CPU time is about the time by the clock. On a busy machine it waits for a core: that is no fault of the
    shot. A shot that waits for something that never comes ends by the clock. In other threads than the main one there
    is no limit.

    A process has one interval timer, and Airflow's execution_timeout uses it too. Its handler and its remaining time
    are restored; if its time comes first, its handler is called.
    """
    outer = signal.getitimer(signal.ITIMER_REAL)[0]
    if threading.current_thread() is not threading.main_thread() or 0 < outer <= seconds:
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        waited, computed = time.monotonic() - started, time.thread_time() - computed_before
        if 0 < outer <= waited and callable(previous):
            previous(signum, frame)
        if computed >= seconds:
            raise ShotTimeout(f"no result after {computed:.3g} s of computing")
        if waited >= PATIENCE * seconds:
            raise ShotTimeout(f"no result after {waited:.3g} s, {computed:.3g} s of it computing")
        again = min(seconds - computed, PATIENCE * seconds - waited, outer - waited if outer > waited else math.inf)
        signal.setitimer(signal.ITIMER_REAL, max(again, 0.001))

    started, computed_before = time.monotonic(), time.thread_time()
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - started), 0.001))


def _device_is_lost(error: Exception) -> bool:
    """Whether the accelerator's context is broken: then every later call in this process fails."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "AcceleratorError" or str(error).startswith(("CUDA error", "HIP error"))
    )


@contextmanager
def _torch_out_of_memory() -> Iterator[None]:
    """Turns torch's out-of-memory error into OutOfMemory, so that callers need not import torch."""
    try:
        yield
    except RuntimeError as error:
        said = ("out of memory", "ALLOC_FAILED")  # CUDA and its libraries have no error of their own for it
        if type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said):
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        raise

"""The ledger of one process: what `packshot shoot` and tests use instead of Postgres."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipelines.contracts import FINISHED, Shot, ShotStep, State, Step


class MemoryLedger:
    """The ledger of one process: nothing outlives it, threads may share it."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}
        self._newest: dict[str, Step] = {}
        self._chosen: dict[tuple[str, str, str, str], dict[str, Step]] = defaultdict(dict)
        self._claims: dict[str, threading.RLock] = defaultdict(threading.RLock)
        self._lock = threading.Lock()

    def find(self, keys: Sequence[str]) -> dict[str, Step]:
        """Returns finished steps by requested key. A key without an attempt returns the newest step of its attempts."""
        found = {key: self._newest.get(key) or self._steps.get(key) for key in keys}
        return {key: step for key, step in found.items() if step is not None and step.state in FINISHED}

    @contextmanager
    def claim(self, keys: Sequence[str]) -> Iterator[None]:
        """Locks these keys against the other threads of the process."""
        with self._lock:
            locks = [self._claims[key] for key in sorted(set(keys))]
        for lock in locks:
            lock.acquire()
        try:
            yield
        finally:
            for lock in reversed(locks):
                lock.release()

    def record(self, step: Step, run: str = "") -> Step:
        """Stores a step. Returns the first result of its key."""
        with self._lock:
            present = self._steps.get(step.key)
            if present is None or present.state is State.FAILED:
                self._steps[step.key] = step
                if step.state in FINISHED:
                    self._newest[step.job.base] = step
            return self._steps[step.key]

    def use(self, run: str, uses: Sequence[tuple[Shot, Sequence[ShotStep]]]) -> None:
        """Records which steps this run used for these shots."""
        for shot, tried in uses:
            for used in tried:
                if used.chosen:
                    self._chosen[run, shot.sku, shot.scene, shot.channel][used.step.job.stage] = used.step

    def chosen(
        self, run: str, shots: Sequence[Shot], stages: Sequence[str] | None = None
    ) -> dict[str, dict[str, Step]]:
        """SKU → stage → the chosen step of this run, of these stages or of all."""
        found = {shot.sku: self._chosen.get((run, shot.sku, shot.scene, shot.channel)) for shot in shots}
        return {
            sku: {name: step for name, step in steps.items() if stages is None or name in stages}
            for sku, steps in found.items()
            if steps
        }

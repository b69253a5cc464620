"""Which models a profile is made of, where their files are, and whether those are the files they should be.

A profile is `profiles/<name>.yaml`. The weights of a bundled profile lie beside it in `profiles/<name>/<part>/`; those
of the others in a models directory. The digests in the YAML are what keys and lineage carry, so a part is checked
against them before it is loaded.

    python -m pipelines.models lock mini      write the digests of the files that are there into mini.yaml
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.contracts import ModelRef
from pipelines.errors import IntegrityError, PackshotError, UsageError

PROFILES = Path(__file__).parent / "profiles"

_CONFIG_ONLY = frozenset({"scheduler"})
"""Kinds that have no weights: their configuration is what is digested."""


@dataclass(frozen=True, slots=True)
class Part:
    """One model of a profile. `path` is its folder, or its file where it is a single one."""

    name: str
    kind: str
    path: Path
    source: str
    licence: str
    ref: ModelRef

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files that the digest is over, in name order. Raises UsageError where there are none."""
        pattern = "*.json" if self.kind in _CONFIG_ONLY else "*.safetensors"
        files = (self.path,) if self.path.is_file() else tuple(sorted(self.path.glob(pattern)))
        if not files:
            raise UsageError(f"model {self.name}: no {pattern} in {self.path}")
        return files

    def digest(self) -> str:
        """sha256 of the weight file; of all of them, one after the other in name order, where there are several."""
        return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in self.weights))

    def check(self) -> Part:
        """This part, for loading. Raises UsageError where files are missing, IntegrityError where they are others."""
        for file in self.weights:
            if file.suffix == ".safetensors":
                _check_safetensors(file)
        actual = self.digest()
        if actual != self.ref.sha256:
            expected = f"sha256 {self.ref.sha256[:12]}…" if self.ref.sha256 else "a pinned sha256"
            names = ", ".join(str(file) for file in self.weights)
            raise IntegrityError(f"{names}: expected {expected} as the profile says, found {actual[:12]}…")
        return self


@dataclass(frozen=True, slots=True)
class Profile:
    """Every model of the chain.

    `native_size` is the side, in px, that the diffusion model was trained at. A caption whose probability is at least
    `caption_confidence` is trusted; below it title and category carry the prompt. `tag_confidence` is the same for
    CLIP's tags, by kind of word; kinds that are not in it are not asked (both calibrated, see the card of `blip`).
    `models_dir` is where the files of a profile that is not bundled were looked for.
    """

    name: str
    title: str
    native_size: int
    caption_confidence: float
    tag_confidence: Mapping[str, float]
    vocabulary: Path
    parts: tuple[Part, ...]
    models_dir: Path | None = None

    def part(self, name: str) -> Part:
        """The part called `name`. Raises UsageError with the names that there are."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise UsageError(f"profile {self.name} has no model {name!r}; it has {names}")

    def ref(self, name: str) -> ModelRef:
        """What a step's key says about the part called `name`."""
        return self.part(name).ref


@dataclass(frozen=True, slots=True)
class Check:
    """What `verify` found about a part: the digest of the files that are there; `problem` is "" where all is well."""

    part: Part
    sha256: str
    problem: str

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name


def profile_names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


@lru_cache(maxsize=8)
def load_profile(name: str, models_dir: Path | None = None) -> Profile:
    """Read profile `name`. `models_dir` is where the files of a profile that is not bundled are.

    Raises UsageError where there is no such profile, its file is malformed or it needs a models directory.
    """
    file = PROFILES / f"{name}.yaml"
    if name not in profile_names():
        raise UsageError(f"there is no profile {name!r}; there are {', '.join(profile_names())}")
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        root = PROFILES / name if document["bundled"] else models_dir
        if root is None:
            raise UsageError(f"profile {name} is not bundled: set PACKSHOT_MODELS_DIR to the folder of its checkpoints")
        parts = tuple(_read_part(part, entry, root) for part, entry in document["parts"].items())
        return Profile(
            name=name,
            title=document["title"],
            native_size=int(document["native_size"]),
            caption_confidence=float(document["caption_confidence"]),
            tag_confidence={str(kind): float(least) for kind, least in document["tag_confidence"].items()},
            vocabulary=PROFILES / document["vocabulary"],
            parts=parts,
            models_dir=models_dir,
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{file.name}: not a profile ({type(error).__name__}: {error})") from error


def verify(profile: Profile) -> list[Check]:
    """Digest every part's files and compare. Nothing is raised: `packshot models verify` shows all that is wrong."""
    checks = []
    for part in profile.parts:
        sha256, problem = "", ""
        try:
            sha256 = part.digest()
            part.check()
        except PackshotError as error:
            problem = str(error)
        checks.append(Check(part, sha256, problem))
    return checks


def lock(profile: Profile) -> list[str]:
    """Write the digests of the files that are there into a bundled profile's YAML, the rest of it untouched.

    Returns the names of the parts that changed. Parts without files keep what they have. Raises IntegrityError where a
    file is no safetensors file, so that a truncated one is never locked.
    """
    file = PROFILES / f"{profile.name}.yaml"
    actual: dict[str, str] = {}
    for part in profile.parts:
        try:
            files = part.weights
        except UsageError:
            continue
        for weights in files:
            if weights.suffix == ".safetensors":
                _check_safetensors(weights)
        actual[part.name] = part.digest()

    lines, current = [], ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"  (\w+):", line):
            current = heading[1]
        elif current in actual and (field := re.match(r"    (revision|sha256):", line)):
            value = actual[current] if field[1] == "sha256" else actual[current][:12]
            line = f'    {field[1]}: "{value}"'
        lines.append(line)
    temporary = file.with_suffix(f".yaml.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(file)
    load_profile.cache_clear()
    return [part.name for part in profile.parts if actual.get(part.name, part.ref.sha256) != part.ref.sha256]


def _read_part(name: str, entry: dict[str, Any], root: Path) -> Part:
    path = (root / entry["path"]).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{name}: path {entry['path']!r} leaves the profile's folder")
    ref = ModelRef(name, str(entry["revision"]), str(entry["sha256"]))
    return Part(name, entry["kind"], path, entry["source"], entry["licence"], ref)


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Size and modification time are only there to tell a replaced file from the one that was digested before."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_safetensors(file: Path) -> None:
    """Raise IntegrityError where `file` is of another kind or cut short: its header says how long it must be."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        try:
            header: Any = json.loads(stream.read(length)) if 2 <= length <= size - 8 else None
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            pickled = start.startswith((b"PK", b"\x80"))
            found = "a torch or pickle file" if pickled else "a file that is cut short or of another kind"
            raise IntegrityError(f"{file}: expected safetensors, found {found}") from error
    if size != 8 + length + end:
        raise IntegrityError(f"{file}: expected {8 + length + end:,} bytes as its header says, found {size:,}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["lock", name]:
            print("\n".join(lock(load_profile(name))) or "nothing changed")
        case _:
            sys.exit("usage: python -m pipelines.models lock PROFILE")

"""Which models a profile is made of, where their files are, and whether those are the files they should be.

A profile is `profiles/<name>.yaml`. The weights of a bundled profile lie beside it in `profiles/<name>/<part>/`; those
of the others in a models directory or, second, on the hub. The digests in the YAML are what keys and lineage carry, so
a part is checked against them before it is loaded. `<models directory>/<name>.yaml` may replace and add parts of a
profile that is not bundled: a community base, another HQ-SAM, a LoRA. Over all of them go promoted revisions, trained
on the shop's own pictures: `pipelines.revisions.registry` keeps them in the state directory.

    python -m pipelines.models.profile lock mini      write the digests of the files that are there into mini.yaml
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.contracts import ModelRef
from pipelines.errors import IntegrityError, PackshotError, UsageError
from pipelines.models.files import LEGACY_SUFFIXES, WEIGHT_SUFFIXES, check_whole, sha256_of
from pipelines.models.hub import from_hub
from pipelines.settings import get_settings

PROFILES = Path(__file__).resolve().parents[1] / "profiles"

_CONFIG_ONLY = frozenset({"scheduler"})
"""Kinds that have no weights: their configuration is what is digested."""


UNPINNED = "unpinned"
"""What a profile says in a sha256's place where none is published."""


BASE_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""The folders of a diffusers base that weights are read from, in name order. A safety checker's are not."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One model of a profile. `path` is its folder, or its file where it is a single one.

    Where it is fetched from: `files` of the hub's repository `hub` at `ref.revision`, or `url`. `config` is a folder of
    diffusers configurations for a single file, which has none in it. An `optional` part is fetched only when named.
    """

    name: str
    kind: str
    path: Path
    source: str
    licence: str
    ref: ModelRef
    profile: str = ""
    hub: str = ""
    url: str = ""
    files: tuple[str, ...] = ()
    config: Path | None = None
    optional: bool = False

    @property
    def single_file(self) -> bool:
        """Whether the part is one file and not a folder, as its path says: it need not be there."""
        return self.path.suffix in WEIGHT_SUFFIXES

    def local(self, file: str) -> Path:
        """Where `file` of `files` belongs."""
        return self.path if self.single_file else self.path / file

    @property
    def weights(self) -> tuple[Path, ...]:
        """The weight files that are loaded, in name order, so what the digest is over: all that the profile lists.

        Where it lists none, each folder's safetensors or, in a folder that has none, its torch files. Raises UsageError
        where one is missing.
        """
        if self.path.is_file():
            return (self.path,)
        if self.kind in _CONFIG_ONLY:
            return self._found(self.path, ".json")
        if self.files:
            listed = sorted(self.path / name for name in self.files if Path(name).suffix in WEIGHT_SUFFIXES)
            if not listed:
                raise UsageError(f"model {self.name}: the profile lists no weight file among its files")
            if missing := [file for file in listed if not file.is_file()]:
                raise UsageError(f"model {self.name}: {missing[0]} is not there{self._remedy}")
            return tuple(listed)
        across = BASE_MODELS if self.kind == "base" else ()
        folders = [folder for name in across if (folder := self.path / name).is_dir()] or [self.path]
        return tuple(file for folder in folders for file in self._found(folder, ".safetensors", ".bin"))

    def _found(self, folder: Path, *suffixes: str) -> tuple[Path, ...]:
        """The files in `folder` with the first of these suffixes that any has."""
        for suffix in suffixes:
            if files := tuple(sorted(folder.glob(f"*{suffix}"))):
                return files
        raise UsageError(f"model {self.name}: no *{suffixes[0]} in {folder}{self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"; fetch it with: packshot models fetch {self.profile} {self.name}" if self.hub or self.url else ""

    @property
    def pinned(self) -> bool:
        """Whether the profile names the bytes."""
        return bool(self.ref.sha256)

    def digest(self) -> str:
        """sha256 of the weight file; of all of them, one after the other in name order, where there are several."""
        return sha256_of(*self.weights)

    def located(self, download: bool = True) -> ModelPart:
        """This part with the path where it is: in the models directory, or else in the hub's cache on this machine.

        Where it is in neither, the hub is asked, unless `download` is False. Raises UsageError naming the file and the
        command that fetches it where it cannot be had.
        """
        if not (self.hub or self.url) or all(self.local(file).exists() for file in self.files or ("",)):
            return self
        if self.hub:
            try:
                first = from_hub(self.hub, self.ref.revision, self.files, download)
                return replace(self, path=first if self.single_file else first.parents[self.files[0].count("/")])
            except OSError as error:  # huggingface_hub's and its client's errors, offline mode among them, are OSErrors
                if not download:
                    raise UsageError(f"{self.local(self.files[0])}: not there{self._remedy}") from error
                why = f"the hub could not be asked ({type(error).__name__})"
                raise UsageError(f"{self.local(self.files[0])}: not there, and {why}{self._remedy}") from error
        raise UsageError(f"{self.path}: not there{self._remedy}")

    def check(self, download: bool = True) -> ModelPart:
        """This part, for loading: located, whole, and of the bytes that the profile names.

        Without such a name a part is loaded only where PACKSHOT_TRUST_UNPINNED says so, and a legacy torch file only
        where PACKSHOT_TRUST_PICKLE does. Raises UsageError where files are missing, IntegrityError where they are
        others or not trusted.
        """
        part = self.located(download)
        for file in part.weights:
            check_whole(file)
        actual = part.digest()
        names = ", ".join(str(file) for file in part.weights)
        if part.pinned and actual != part.ref.sha256:
            raise IntegrityError(
                f"{names}: expected sha256 {part.ref.sha256[:12]}… as the profile says, found {actual[:12]}…"
            )
        if not part.pinned:
            _check_trusted(part, names, actual)
        return part


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
    parts: tuple[ModelPart, ...]
    models_dir: Path | None = None

    def part(self, name: str) -> ModelPart:
        """The part called `name`. Raises UsageError with the names that there are."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise UsageError(f"profile {self.name} has no model {name!r}; it has {names}")

    def has(self, name: str) -> bool:
        """Whether there is a part called `name`."""
        return any(part.name == name for part in self.parts)

    @property
    def sampler_parts(self) -> tuple[str, ...]:
        """The parts that every inpainting method is made of: a whole `base`, or its pieces."""
        return tuple(name for name in ("base", "autoencoder", "clip", "unet", "scheduler") if self.has(name))

    def ref(self, name: str) -> ModelRef:
        """What a step's key says about the part called `name`: its digest, also where the profile does not name it."""
        part = self.part(name)
        if part.pinned or not get_settings().trust_unpinned:
            return part.ref
        return replace(part.ref, sha256=part.located().digest())


@dataclass(frozen=True, slots=True)
class Check:
    """What `verify` found about a part: the digest of the files that are there; `problem` is "" where all is well.

    Both are "" for an optional part that was not fetched.
    """

    part: ModelPart
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
def load_profile(name: str, models_dir: Path | None = None, promoted: bool = True) -> Profile:
    """Read profile `name`. `models_dir` is where the files of a profile that is not bundled are.

    Promoted revisions take the place of the parts that they are of, unless `promoted` is False. A process sees those of
    when it first asked, so that its keys and its weights are of one revision.

    Raises UsageError where there is no such profile, its file is malformed or it needs a models directory.
    """
    file = PROFILES / f"{name}.yaml"
    if name not in profile_names():
        raise UsageError(f"there is no profile {name!r}; there are {', '.join(profile_names())}")
    document = _read_yaml(file)
    try:
        root = PROFILES / name if document["bundled"] else models_dir
        if root is None:
            raise UsageError(f"profile {name} is not bundled: set PACKSHOT_MODELS_DIR to the folder of its checkpoints")
        entries = dict(document["parts"])
        if not document["bundled"] and (own := root / f"{name}.yaml").is_file():
            file = own
            entries |= _read_yaml(own)["parts"]
        parts = tuple(_read_part(name, part, entries, root) for part in entries)
        return Profile(
            name=name,
            title=document["title"],
            native_size=int(document["native_size"]),
            caption_confidence=float(document["caption_confidence"]),
            tag_confidence={str(kind): float(least) for kind, least in document["tag_confidence"].items()},
            vocabulary=PROFILES / document["vocabulary"],
            parts=_with_promoted(name, parts) if promoted else parts,
            models_dir=models_dir,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{file.name}: not a profile ({type(error).__name__}: {error})") from error


def promoted_file(state_dir: Path, profile: str) -> Path:
    """What says which revisions of this profile's parts were promoted: part to sha256, as JSON."""
    return state_dir / "revisions" / f"{profile}.json"


def revision_folder(state_dir: Path, profile: str, part: str, sha256: str) -> Path:
    """Where the files of a revision are kept on this machine."""
    return state_dir / "revisions" / profile / part / sha256[:12]


def _with_promoted(profile: str, parts: tuple[ModelPart, ...]) -> tuple[ModelPart, ...]:
    state_dir = get_settings().state_dir
    file = promoted_file(state_dir, profile)
    if not file.is_file():
        return parts
    promoted: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))

    def revised(part: ModelPart, sha256: str) -> ModelPart:
        folder = revision_folder(state_dir, profile, part.name, sha256)
        ref = ModelRef(part.name, sha256[:12], sha256)
        return replace(part, path=folder, ref=ref, source="a promoted revision", hub="", url="", files=(), config=None)

    return tuple(revised(part, promoted[part.name]) if part.name in promoted else part for part in parts)


def verify(profile: Profile) -> list[Check]:
    """Digest every part's files and compare. Nothing is raised: `packshot models verify` shows all that is wrong."""
    checks = []
    for part in profile.parts:
        sha256, problem = "", ""
        try:
            try:
                sha256 = part.located(download=False).digest()
            except UsageError:
                if not part.optional:
                    raise
            else:
                part.check(download=False)
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
    if not _read_yaml(file)["bundled"]:
        raise UsageError(f"{file.name}: only a bundled profile is locked; the digests of the others are their sources'")
    actual: dict[str, str] = {}
    for part in profile.parts:
        try:
            files = part.weights
        except UsageError:
            continue
        for weights in files:
            check_whole(weights)
        actual[part.name] = part.digest()

    temporary = file.with_suffix(f".yaml.{os.getpid()}")
    temporary.write_text(with_digests(file.read_text(encoding="utf-8"), actual), encoding="utf-8")
    temporary.replace(file)
    load_profile.cache_clear()
    return [part.name for part in profile.parts if actual.get(part.name, part.ref.sha256) != part.ref.sha256]


def with_digests(text: str, digests: Mapping[str, str]) -> str:
    """A profile's YAML with these parts' revisions and digests, the rest of it untouched."""
    lines, current = [], ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"  (\w+):(?: +#.*)?", line):
            current = heading[1]
        elif current in digests and (field := re.match(r"    (revision|sha256):", line)):
            value = digests[current] if field[1] == "sha256" else digests[current][:12]
            line = f'    {field[1]}: "{value}"'
        lines.append(line)
    return "\n".join(lines) + "\n"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{file.name}: not a profile ({type(error).__name__}: {first})") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file.name}: not a profile (no mapping)")
    return document


def _read_part(profile: str, name: str, entries: Mapping[str, dict[str, Any]], root: Path) -> ModelPart:
    """The part called `name`; `like: other` is that part under this name, `like: profile/other` another profile's."""
    entry = entries[name]
    if "like" in entry:
        where, _, other = entry["like"].rpartition("/")
        if (other == name and not where) or ("like" in entries.get(other, {}) and not where):
            raise ValueError(f"{name}: like {entry['like']!r} leads nowhere")
        part = (
            load_profile(where, root, promoted=False).part(other)
            if where
            else _read_part(profile, other, entries, root)
        )
        return replace(part, name=name, ref=replace(part.ref, name=name), optional=False)
    # by name alone: links that lead out of a models directory are its owner's
    path = Path(os.path.normpath(root.absolute() / entry["path"]))
    if not path.is_relative_to(os.path.normpath(root.absolute())):
        raise ValueError(f"{name}: path {entry['path']!r} leaves the profile's folder")
    sha256 = "" if entry["sha256"] == UNPINNED else str(entry["sha256"])
    hub, url = entry.get("hub", ""), entry.get("url", "")
    return ModelPart(
        name=name,
        kind=entry["kind"],
        path=path,
        source=entry.get("source") or url or f"hub: {hub}",
        licence=entry["licence"],
        ref=ModelRef(name, str(entry["revision"]), sha256),
        profile=profile,
        hub=hub,
        url=url,
        files=tuple(entry.get("files", ())),
        config=PROFILES / entry["config"] if "config" in entry else None,
        optional=bool(entry.get("optional", False)),
    )


def _check_trusted(part: ModelPart, names: str, actual: str) -> None:
    """Raise IntegrityError where nobody vouches for the bytes of a part that is not pinned."""
    settings = get_settings()
    trust = "to load it all the same, `packshot --trust …` or"
    if any(file.suffix in LEGACY_SUFFIXES for file in part.weights) and not settings.trust_pickle:
        raise IntegrityError(
            f"{names}: expected safetensors or a pinned sha256, found an unpinned torch file, which is a pickle; "
            f"{trust} PACKSHOT_TRUST_PICKLE=1"
        )
    if not settings.trust_unpinned:
        raise IntegrityError(
            f"{names}: expected a pinned sha256 as the profile says, found {actual[:12]}…; "
            f"{trust} PACKSHOT_TRUST_UNPINNED=1"
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["lock", name]:
            print("\n".join(lock(load_profile(name, promoted=False))) or "nothing changed")
        case _:
            sys.exit("usage: python -m pipelines.models.profile lock PROFILE")

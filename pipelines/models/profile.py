"""Which models a profile consists of, where their files are, and whether these are the right files.

A profile is `profiles/<name>.yaml`. A bundled profile's weights are in `profiles/<name>/<part>/`. Other profiles'
weights are in a models directory or in the hub's cache. Keys and lineage carry the digests of the YAML, so each part is
checked against its digest before it is loaded. `locked` has the digests of configurations and tokenizers, which are
checked too and are in no key. `<models directory>/<name>.yaml` may replace and add parts of a profile
that is not bundled: a community base, another HQ-SAM, a LoRA. Promoted revisions, trained on the shop's own pictures,
take precedence. `pipelines.revisions.registry` keeps them in the state directory.

    python -m pipelines.models.profile lock mini      write the digests of the existing files to mini.yaml
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.contracts import ModelRef
from pipelines.errors import IntegrityError, PackshotError, UsageError
from pipelines.models.arguments import check_arguments
from pipelines.models.files import LEGACY_SUFFIXES, WEIGHT_SUFFIXES, check_file_complete, sha256_of
from pipelines.models.hub import from_hub
from pipelines.models.painters import PAINTER, PAINTERS, painter_class
from pipelines.settings import get_settings

PROFILES = Path(__file__).resolve().parents[1] / "profiles"

_CONFIG_ONLY = frozenset({"scheduler"})
"""Kinds without weights: the digest is that of their configuration."""


BUNDLED_NET = "salient"
"""Kind of a net for salient objects in the bundled format. The check of overcompletion is fitted to the bundled one."""

FOREGROUND = "foreground"
"""Part that finds the product in a photo without plain paper. A profile without it uses its part `salient`."""

FOREGROUND_NETS = (BUNDLED_NET, "u2net", "isnet", "birefnet")
"""Kinds that this part may have."""

UNPINNED = "unpinned"
"""A profile's entry for sha256 if none is published."""


_CONFIGURATION_SUFFIXES = frozenset({".jinja", ".json", ".model", ".py", ".txt"})
"""Files that the libraries read beside weights, if they find them: configurations and tokenizers."""

_REDIRECTING = ("*.index.json", "adapter_config.json", "adapter_model.*")
"""Files that make the libraries load other weights than those of the usual names."""

BASE_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""Folders of a diffusers base that hold weights, in name order, without the safety checker's."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One model of a profile. `path` is its folder, or its file if it is a single one.

    Its source is `files` of the hub repository `hub` at `ref.revision`, or `url`. `config` is a folder of diffusers
    configurations for a single file, which contains none. An `optional` part is fetched only by name. `locked` maps the
    configurations in its folder to their sha256; if it is None, their content is not checked. `pipeline` is a painter's
    class, a key of `PAINTERS`. `arguments` are what the profile sets beside files; see `pipelines.models.arguments`.
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
    locked: Mapping[str, str] | None = field(default=None, hash=False)
    pipeline: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def single_file(self) -> bool:
        """Whether the part is one file and not a folder. Its path decides; the file need not exist."""
        return self.path.suffix in WEIGHT_SUFFIXES

    def local(self, file: str) -> Path:
        """Return the local path of `file` of `files`."""
        return self.path if self.single_file else self.path / file

    @property
    def weights(self) -> tuple[Path, ...]:
        """The weight files to load, in name order: all that the profile lists. The digest covers them.

        Without a list it is each folder's safetensors files, or its torch files if it has none. A painter has no torch
        files. Raises UsageError if one is missing.
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
        if self.kind == PAINTER:
            modules = sorted(PAINTERS[self.pipeline].weights)
            return tuple(file for name in modules for file in self._found(self.path / name, ".safetensors"))
        across = BASE_MODELS if self.kind == "base" else ()
        folders = [folder for name in across if (folder := self.path / name).is_dir()] or [self.path]
        return tuple(file for folder in folders for file in self._found(folder, ".safetensors", ".bin"))

    def _found(self, folder: Path, *suffixes: str) -> tuple[Path, ...]:
        """Return the files in `folder` with the first of these suffixes that occurs."""
        for suffix in suffixes:
            if files := tuple(sorted(folder.glob(f"*{suffix}"))):
                return files
        raise UsageError(f"model {self.name}: no *{suffixes[0]} in {folder}{self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"; fetch it with: packshot models fetch {self.profile} {self.name}" if self.hub or self.url else ""

    @property
    def pinned(self) -> bool:
        """Whether the profile gives a digest."""
        return bool(self.ref.sha256)

    def digest(self) -> str:
        """Return the sha256 of the weight files, one after the other in name order."""
        return sha256_of(*self.weights)

    def configurations(self) -> dict[str, Path]:
        """Return the files in the part's folder that the libraries read beside the weights, by their path in it.

        A single file has none: `config` is part of packshot.
        """
        if self.path.is_file():
            return {}
        weights = set(self.weights)
        files = (file for file in _inside(self.path) if _is_configuration(file.name) and file not in weights)
        return {file.relative_to(self.path).as_posix(): file for file in files}

    def configuration_digests(self) -> dict[str, str]:
        """Return the sha256 of each of `configurations`, by its path."""
        return {name: sha256_of(path) for name, path in self.configurations().items()}

    def located(self, download: bool = True) -> ModelPart:
        """Return this part with its actual path: in the models directory, or else in the hub's cache on this machine.

        If it is in neither, it is downloaded from the hub, unless `download` is False. Raises UsageError, which names
        the file and the command that fetches it.
        """
        if not (self.hub or self.url) or all(self.local(file).exists() for file in self.files or ("",)):
            return self
        if self.hub:
            try:
                first = from_hub(self.hub, self.ref.revision, self.files, download)
                return replace(self, path=first if self.single_file else first.parents[self.files[0].count("/")])
            except OSError as error:  # huggingface_hub's errors, offline mode too
                if not download:
                    raise UsageError(f"{self.local(self.files[0])}: not there{self._remedy}") from error
                why = f"the hub could not be asked ({type(error).__name__})"
                raise UsageError(f"{self.local(self.files[0])}: not there, and {why}{self._remedy}") from error
        raise UsageError(f"{self.path}: not there{self._remedy}")

    def check(self, download: bool = True) -> ModelPart:
        """Return this part for loading: located, complete, with the profile's digest and nothing unexpected beside it.

        A part without a digest is loaded only with PACKSHOT_TRUST_UNPINNED; a legacy torch file without one needs
        PACKSHOT_TRUST_PICKLE too. Raises UsageError if files are missing, IntegrityError if they are wrong or not
        trusted.
        """
        part = self.located(download)
        for file in part.weights:
            check_file_complete(file)
        actual = part.digest()
        names = ", ".join(str(file) for file in part.weights)
        if part.pinned and actual != part.ref.sha256:
            raise IntegrityError(
                f"{names}: expected sha256 {part.ref.sha256[:12]}… as the profile says, found {actual[:12]}…"
            )
        if not part.pinned:
            _check_trusted(part, names, actual)
        _check_configurations(part)
        return part


@dataclass(frozen=True, slots=True)
class Profile:
    """All models of the pipeline.

    `native_size` is the side, px, that the diffusion model was trained at. A caption is used from the probability
    `caption_confidence`; below it the prompt uses title and category. `tag_confidence` is the same for CLIP's tags, by
    kind of word; other kinds are not used (both are calibrated, see the card of `blip`). `models_dir` is the folder of
    the files of a profile that is not bundled.
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
        """Return the part called `name`. Raises UsageError, which lists the known names."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise UsageError(f"profile {self.name} has no model {name!r}; it has {names}")

    def has(self, name: str) -> bool:
        """Return whether there is a part called `name`."""
        return any(part.name == name for part in self.parts)

    @property
    def cutout_parts(self) -> tuple[str, ...]:
        """The parts that cut a product out of its photo."""
        return ("hqsam", "salient", *([FOREGROUND] if self.has(FOREGROUND) else []))

    @property
    def sampler_parts(self) -> tuple[str, ...]:
        """The parts that every inpainting method needs: a whole `base`, or its pieces."""
        return tuple(name for name in ("base", "autoencoder", "clip", "unet", "scheduler") if self.has(name))

    def ref(self, name: str) -> ModelRef:
        """Return what a step's key contains about a part: its digest, even if the profile gives none."""
        part = self.part(name)
        if part.pinned or not get_settings().trust_unpinned:
            return part.ref
        return replace(part.ref, sha256=part.located().digest())


@dataclass(frozen=True, slots=True)
class Check:
    """Result of `verify` for a part: `sha256` of its files, and `problem`, "" if there is none.

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
    """Return the names of all profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


@lru_cache(maxsize=8)
def load_profile(name: str, models_dir: Path | None = None, promoted: bool = True) -> Profile:
    """Read profile `name`. `models_dir` holds the files of a profile that is not bundled.

    Promoted revisions replace their parts, unless `promoted` is False. The result is cached, so a process uses the same
    revision for keys and weights.

    Raises UsageError if the profile does not exist, is malformed or needs a models directory.
    """
    file = _file_of(name)
    document = _read_yaml(file)
    try:
        root = _folder_of(name, document, models_dir)
        if not document["bundled"] and (own := root / file.name).is_file():
            file = own
        entries = _entries_of(name, document, root)
        parts = tuple(_read_part(name, part, entries, root) for part in entries)
        for part in parts:
            _check_net(part)
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


def _file_of(name: str) -> Path:
    if name not in profile_names():
        raise UsageError(f"there is no profile {name!r}; there are {', '.join(profile_names())}")
    return PROFILES / f"{name}.yaml"


def active_profile() -> Profile:
    """The profile that the settings name, with its promoted revisions. Raises UsageError as `load_profile` does."""
    settings = get_settings()
    return load_profile(settings.profile, settings.models_dir)


def promoted_file(state_dir: Path, profile: str) -> Path:
    """Return the path of the JSON file of a profile's promoted revisions.

    It maps a part to `sha256` of the revision's weights and `files`, the sha256 of each file by name.
    """
    return state_dir / "revisions" / f"{profile}.json"


def revision_folder(state_dir: Path, profile: str, part: str, sha256: str) -> Path:
    """Return the folder of a revision's files on this machine."""
    return state_dir / "revisions" / profile / part / sha256[:12]


def _with_promoted(profile: str, parts: tuple[ModelPart, ...]) -> tuple[ModelPart, ...]:
    state_dir = get_settings().state_dir
    file = promoted_file(state_dir, profile)
    if not file.is_file():
        return parts
    promoted: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    if not all(isinstance(revision, dict) for revision in promoted.values()):
        raise UsageError(f"{file}: written by an earlier version; delete it, and the next run writes it anew")

    def revised(part: ModelPart, revision: dict[str, Any]) -> ModelPart:
        sha256: str = revision["sha256"]
        locked = {name: digest for name, digest in revision["files"].items() if _is_configuration(name)}
        return replace(
            part,
            path=revision_folder(state_dir, profile, part.name, sha256),
            ref=ModelRef(part.name, sha256[:12], sha256),
            source="a promoted revision",
            hub="",
            url="",
            files=(),
            config=None,
            locked=locked,
        )

    return tuple(revised(part, promoted[part.name]) if part.name in promoted else part for part in parts)


def verify(profile: Profile) -> list[Check]:
    """Check the digests of every part's files. It raises nothing, so `packshot models verify` shows all problems."""
    checks = []
    for part in profile.parts:
        sha256, problem = "", ""
        try:
            sha256 = part.located(download=False).digest()
            part.check(download=False)
        except PackshotError as error:
            absent = isinstance(error, UsageError) and not sha256
            problem = "" if part.optional and absent else str(error)
        checks.append(Check(part, sha256, problem))
    return checks


def lock(profile: Profile) -> list[str]:
    """Write the digests of the existing files to a bundled profile's YAML, and change nothing else in it.

    `sha256` is of the weights and is in keys, `locked` is of each configuration and is in no key.

    Returns the names of the changed parts. Parts without files keep their digest. Raises IntegrityError for an invalid
    safetensors file, so a truncated one is never locked.
    """
    file = PROFILES / f"{profile.name}.yaml"
    if not _read_yaml(file)["bundled"]:
        raise UsageError(f"{file.name}: only a bundled profile is locked; the digests of the others are their sources'")
    actual: dict[str, str] = {}
    locked: dict[str, dict[str, str]] = {}
    for part in profile.parts:
        try:
            files = part.weights
        except UsageError:
            continue
        for weights in files:
            check_file_complete(weights)
        actual[part.name] = part.digest()
        locked[part.name] = part.configuration_digests()

    temporary = file.with_suffix(f".yaml.{os.getpid()}")
    temporary.write_text(with_digests(file.read_text(encoding="utf-8"), actual, locked), encoding="utf-8")
    temporary.replace(file)
    load_profile.cache_clear()
    return [
        part.name
        for part in profile.parts
        if part.name in actual and (actual[part.name], locked[part.name]) != (part.ref.sha256, part.locked)
    ]


def _inside(folder: Path) -> list[Path]:
    """Return the files in a part's folder, as deep as the libraries read; links are followed."""
    return sorted(file for levels in ("*", "*/*", "*/*/*") for file in folder.glob(levels) if file.is_file())


def _is_configuration(name: str) -> bool:
    return Path(name).suffix in _CONFIGURATION_SUFFIXES


def _check_configurations(part: ModelPart) -> None:
    """Raise IntegrityError if a library would read something in the part's folder that the profile does not name."""
    if part.path.is_file():
        return
    listed = {*part.files, *(part.locked or ())}
    for pattern in _REDIRECTING:
        for file in (file for file in _inside(part.path) if file.match(pattern)):
            named = part.kind == PAINTER and file.match("*.index.json")  # its shards are the part's weights, see below
            if file.relative_to(part.path).as_posix() not in listed and file not in part.weights and not named:
                raise IntegrityError(
                    f"{file}: expected only files that the profile lists, found one that makes other weights load; "
                    "remove it, or list it under `files`"
                )
            _check_shards(part, file)
    if part.locked is None:
        return
    found = part.configurations()
    for name in sorted(found.keys() | part.locked):
        if name not in part.locked:
            raise IntegrityError(f"{part.path / name}: expected only files that the profile locks; remove it")
        if name not in found:
            raise IntegrityError(f"{part.path / name}: expected it, as the profile locks it, found none")
        if (actual := sha256_of(found[name])) != part.locked[name]:
            expected = part.locked[name][:12]
            raise IntegrityError(
                f"{found[name]}: expected sha256 {expected}… as the profile says, found {actual[:12]}…"
            )


def _check_shards(part: ModelPart, index: Path) -> None:
    """Raise IntegrityError if an index names a file whose digest the part does not cover."""
    if not index.name.endswith(".index.json"):
        return
    try:
        shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{index}: expected an index of weight files ({type(error).__name__}: {error})") from error
    for shard in sorted(shards):
        if index.parent / shard not in part.weights:
            raise IntegrityError(f"{index}: expected only weight files that the profile lists, found {shard!r}")


def with_digests(text: str, digests: Mapping[str, str], locked: Mapping[str, Mapping[str, str]]) -> str:
    """A profile's YAML with these parts' revisions, digests and locked configurations, the rest of it untouched."""
    lines, current = [], ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"  (\w+):(?: +#.*)?", line):
            current = heading[1]
        elif current in digests and (entry := re.match(r"    (revision|sha256):", line)):
            value = digests[current] if entry[1] == "sha256" else digests[current][:12]
            line = f'    {entry[1]}: "{value}"'
        elif current in digests and re.match(r"    locked:|      ", line):
            continue
        lines.append(line)
        if current in digests and line.startswith("    sha256:"):
            configurations = [f'      {name}: "{digest}"' for name, digest in locked[current].items()]
            lines += ["    locked:", *configurations] if configurations else ["    locked: {}"]
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


def _folder_of(name: str, document: Mapping[str, Any], models_dir: Path | None) -> Path:
    """The folder that holds a profile's files. Raises UsageError if it needs a models directory and there is none."""
    if document["bundled"]:
        return PROFILES / name
    if models_dir is None:
        raise UsageError(f"profile {name} is not bundled: set PACKSHOT_MODELS_DIR to the folder of its checkpoints")
    return models_dir


def _entries_of(name: str, document: Mapping[str, Any], root: Path) -> dict[str, dict[str, Any]]:
    """A profile's parts as its YAML has them, with those that the models directory replaces or adds. All
    configurations of a bundled profile are locked."""
    if document["bundled"]:
        return {part: {"locked": {}} | entry for part, entry in document["parts"].items()}
    own = root / f"{name}.yaml"
    return dict(document["parts"]) | (_read_yaml(own)["parts"] if own.is_file() else {})


def _read_part(
    profile: str, name: str, entries: Mapping[str, dict[str, Any]], root: Path, followed: tuple[str, ...] = ()
) -> ModelPart:
    """Read the part called `name`. `like: other` copies a part under this name, `like: profile/other` another
    profile's. `followed` are the parts that led here."""
    entry = entries[name]
    if "like" in entry:
        where, _, other = entry["like"].rpartition("/")
        followed = (*followed, f"{profile}/{name}")
        if f"{where or profile}/{other}" in followed:
            raise ValueError(f"{name}: like {entry['like']!r} leads back to itself")
        if where and where != profile:
            document = _read_yaml(_file_of(where))
            home = _folder_of(where, document, root)
            part = _read_part(where, other, _entries_of(where, document, home), home, followed)
        else:
            part = _read_part(profile, other, entries, root, followed)
        return replace(part, name=name, ref=replace(part.ref, name=name), optional=False)
    # checks the name alone: the owner of a models directory may use links
    path = Path(os.path.normpath(root.absolute() / entry["path"]))
    if not path.is_relative_to(os.path.normpath(root.absolute())):
        raise ValueError(f"{name}: path {entry['path']!r} leaves the profile's folder")
    if PAINTER in (name, entry["kind"]):
        _check_painter(name, entry)
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
        locked={str(file): str(digest) for file, digest in entry["locked"].items()} if "locked" in entry else None,
        pipeline=entry.get("pipeline", ""),
        arguments=check_arguments(name, entry["kind"], entry.get("arguments", {})),
    )


def _check_net(part: ModelPart) -> None:
    """Raise ValueError if a part that finds products is of a kind that cannot take its place."""
    if part.name == "salient" and part.kind != BUNDLED_NET:
        raise ValueError(
            f"salient: its kind must be {BUNDLED_NET}, not {part.kind!r}, as the check of overcompletion is fitted to "
            f"that net; name the other one {FOREGROUND}"
        )
    if part.name == FOREGROUND and part.kind not in FOREGROUND_NETS:
        raise ValueError(f"{FOREGROUND}: its kind must be one of {', '.join(FOREGROUND_NETS)}, not {part.kind!r}")


def _check_painter(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry is no painter: an unknown pipeline, a single file, or files that may hold code."""
    if entry["kind"] != PAINTER:
        raise ValueError(f"{name}: its kind must be {PAINTER}, not {entry['kind']!r}")
    try:
        painter_class(entry.get("pipeline", ""))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    unsafe = [file for file in entry.get("files", ()) if Path(file).suffix in {*LEGACY_SUFFIXES, ".py"}]
    unsafe += [entry["path"]] if Path(entry["path"]).suffix in WEIGHT_SUFFIXES else []
    if unsafe:
        raise ValueError(f"{name}: {unsafe[0]}: a painter is a folder of safetensors and configurations")


def _check_trusted(part: ModelPart, names: str, actual: str) -> None:
    """Raise IntegrityError if a part without a digest is not trusted."""
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

"""YAML that means what it looks like: no repeated keys, and no scalar that YAML 1.1 reads in a way of its own.

YAML 1.1 reads `020` as 16, `17:04` as 1024, `no` as false and `2026-05-01` as a date. YAML 1.2 does not. Such a scalar
is refused and not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipelines.errors import UsageError


def checked_name(name: str) -> str:
    """`name`, which is a file's too. Raises ValueError for one that is not."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise ValueError(f"{name!r} is no name: use a-z, 0-9, - and _, 63 characters at most")
    return name


Name = Annotated[str, AfterValidator(checked_name)]


class Part(BaseModel):
    """Keys of a file. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(Part):
    """All keys of a file."""

    name: str


Described = TypeVar("Described", bound=Named)

_PLAIN = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(r"[-+]?([0-9]+\.?|[0-9]*\.[0-9]+)([eE][-+]?[0-9]+)?"),
    "tag:yaml.org,2002:bool": re.compile(r"true|false|True|False|TRUE|FALSE"),
    "tag:yaml.org,2002:timestamp": None,
}
"""How a plain scalar of each type may be written; None: not at all."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses repeated keys and ambiguous scalars."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises ConstructorError for a key that occurs twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value. Raises ConstructorError for a plain scalar that YAML 1.1 and 1.2 read differently."""
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in _PLAIN:
            plain = _PLAIN[node.tag]
            if plain is None or not plain.fullmatch(node.value):
                value = super().construct_object(node, deep)
                problem = f"{node.value} would be read as {value!r}; write a plain number, true or false, or quote it"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_object(node, deep)


def yaml_files(folders: Iterable[Path]) -> dict[str, Path]:
    """Name → file of what ends in `.yaml` or `.yml`, by name; a later folder replaces what an earlier one has.

    Reads file names only. Raises UsageError for two files of one name in a folder.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        own: dict[str, Path] = {}
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            if path.stem in own:
                raise UsageError(f"{folder}: {own[path.stem].name} and {path.name} have one name: remove one of them")
            own[path.stem] = path
        found |= own
    return dict(sorted(found.items()))


def read_yaml(text: str) -> Any:
    """The document. Raises yaml.YAMLError, which names the line, for one that is not valid or not plain."""
    return yaml.load(text, _StrictLoader)  # noqa: S506  # it is a SafeLoader


def read_model(path: Path, model: type[Described], what: str) -> Described:
    """Read and validate a file that describes one thing, a `what`, which is named as the file is.

    Raises UsageError with one line that names file, field and what was expected.
    """
    try:
        data = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: give a {what}'s YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise UsageError(f"{path}: expected the keys of a {what}, found {found}")
    try:
        described = model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or what
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{path}: {where}: {_said(first)}{more}") from error
    if described.name != path.stem:
        raise UsageError(f"{path}: name: {described.name!r} must be the file's name, {path.stem!r}")
    return described


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, in words for whoever wrote the file."""
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "extra_forbidden":
        wrong = str(error["loc"][-1])
        near = [key for key in get_close_matches(wrong, set(_keys(Part)), n=2) if key != wrong]
        return f"there is no such key here{f', perhaps {near[0]}' if near else ''}"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys(part: type[Part]) -> Iterator[str]:
    """Every key that such a file or a part of it may have."""
    yield from part.model_fields
    for kind in part.__subclasses__():
        yield from _keys(kind)

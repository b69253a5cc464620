"""The layout that the pages describe: few entries, no import circle, one meaning for each name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = ("pipelines/contracts.py", "pipelines/scenes/__init__.py")
CODE = ("pipelines", "operators", "plugins", "dags")


def classes(file: Path) -> Iterator[str]:
    """Names of all classes that a file defines, nested ones too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name


def test_no_contract_name_is_defined_twice():
    owner = {name: path for path in CONTRACTS for name in classes(ROOT / path) if not name.startswith("_")}
    assert {"Product", "Shot", "Scene", "Control"} <= set(owner)
    twice = [
        f"{name}: {owner[name]} and {path}"
        for folder in CODE
        for file in sorted((ROOT / folder).rglob("*.py"))
        for name in classes(file)
        if name in owner and (path := file.relative_to(ROOT).as_posix()) != owner[name]
    ]
    assert twice == []


def test_pipelines_has_at_most_24_entries():
    entries = [one.name for one in (ROOT / "pipelines").iterdir() if not one.name.startswith(("__pycache__", "."))]
    assert len(entries) <= 24, sorted(entries)


def test_no_modules_import_one_another_in_a_circle():
    """Imports at the top of modules, those for type checkers too; not those inside functions."""
    graph = grimp.build_graph("pipelines", cache_dir=None)
    importing = {
        module: {name for name in graph.find_modules_directly_imported_by(module) if is_at_the_top(graph, module, name)}
        for module in graph.modules
    }
    finished: set[str] = set()
    for module in sorted(importing):
        assert not (circle := find_circle(module, importing, [], finished)), " → ".join(circle)


def is_at_the_top(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    """Whether one of a module's imports of another stands outside of functions."""
    file = ROOT / importer.replace(".", "/")
    tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lines = {line for node in functions for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    details = graph.get_import_details(importer=importer, imported=imported)
    return any(one["line_number"] not in lines for one in details)


def find_circle(module: str, importing: dict[str, set[str]], path: list[str], finished: set[str]) -> list[str]:
    """A path of imports that returns to its first module, empty where there is none."""
    if module in path:
        return [*path[path.index(module) :], module]
    if module in finished:
        return []
    for imported in sorted(importing[module]):
        if circle := find_circle(imported, importing, [*path, module], finished):
            return circle
    finished.add(module)
    return []

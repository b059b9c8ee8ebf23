"""One file, one line: whatever stands in a folder of instances is used by the literal table beside it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _methods() -> Iterable[str]:
    from discovery.methods import METHODS

    return [line.module for line in METHODS.values()]


def _imports_of_the_table(table: str) -> Callable[[], Iterable[str]]:
    """Modules whose names a file imports and then uses inside its upper-case literal table."""

    def modules() -> Iterable[str]:
        tree = ast.parse((ROOT / table).read_text(encoding="utf-8"))
        origin: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    is_file = (ROOT / (whole.replace(".", "/") + ".py")).exists()
                    origin[alias.asname or alias.name] = whole if is_file else node.module
        used: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                if any(isinstance(t, ast.Name) and t.id.isupper() for t in targets) and node.value is not None:
                    used |= {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
                    used |= {
                        n.value
                        for n in ast.walk(node.value)
                        if isinstance(n, ast.Constant) and isinstance(n.value, str)
                    }
        return [origin.get(name, name).partition(":")[0] for name in used]

    return modules


# folder of instances -> (modules that its table names, files there that are no instances)
FOLDERS: dict[str, tuple[Callable[[], Iterable[str]], set[str]]] = {
    "discovery/methods": (_methods, set()),
    "discovery/tasks": (
        _imports_of_the_table("discovery/tasks/table.py"),
        {"generator", "people", "places", "slots", "table"},
    ),
    "discovery/task_formats": (_imports_of_the_table("discovery/task_formats/table.py"), {"row", "spans", "table"}),
    "discovery/transcoder_formats": (
        _imports_of_the_table("discovery/transcoder_formats/table.py"),
        {"format", "hooks", "hub", "table", "weights", "writing"},
    ),
    "discovery/architectures": (_imports_of_the_table("discovery/architectures/__init__.py"), set()),
    "graphs/exporters": (_imports_of_the_table("graphs/exporters/__init__.py"), {"heatmap"}),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_has_its_line(folder: str) -> None:
    modules, no_instances = FOLDERS[folder]
    package = folder.replace("/", ".")
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"} - no_instances
    named = {module.removeprefix(package + ".") for module in modules() if module.startswith(package + ".")}
    assert files, f"{folder} is empty"
    assert files - named == set(), f"add a line to the table of {folder}"
    assert no_instances <= {path.stem for path in (ROOT / folder).glob("*.py")}

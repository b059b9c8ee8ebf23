"""The architecture page's table of who may import what, checked on every import statement of the four packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("graphs", "discovery", "labelers", "pipelines")
MAY_IMPORT = {
    "graphs": {"graphs"},
    "discovery": {"discovery", "graphs"},
    "labelers": {"labelers", "graphs"},
    "pipelines": set(OURS),
}
# Each heavy package has one home; what is not named here may be imported anywhere.
HOMES = {
    "torch": {"discovery"},
    "transformers": {"discovery"},
    "tokenizers": {"discovery"},
    "datasets": {"discovery"},
    "pyarrow": {"discovery"},
    "accelerate": {"discovery"},
    "huggingface_hub": {"discovery"},
    "yaml": {"discovery"},
    "networkx": {"graphs"},
    "graphviz": {"graphs"},
    "openai": {"labelers"},
    "optuna": {"pipelines"},
}
ANYWHERE = {"numpy", "scipy", "safetensors", "tqdm", "jaxtyping"}
FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str, file: str = "<test>") -> set[tuple[str, int]]:
    """First part of every imported module's name, with its line; imports in functions and by importlib count."""
    found = set()
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            found |= {(alias.name.partition(".")[0], node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            found.add(((node.module or "").partition(".")[0], node.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    found.add((str(argument.value).partition(".")[0], node.lineno))
    return found


def offences(package: str, modules: set[tuple[str, int]]) -> list[str]:
    """What the table does not allow `package` to import."""
    bad = []
    for name, line in sorted(modules, key=lambda item: item[1]):
        if name in OURS:
            allowed = name in MAY_IMPORT[package]
        elif name in HOMES:
            allowed = package in HOMES[name]
        else:
            allowed = name in ANYWHERE or name in sys.stdlib_module_names
        if not allowed:
            bad.append(f"line {line}: {package} may not import {name}")
    return bad


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_follow_the_table(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert offences(package, imported(path.read_text(encoding="utf-8"), str(path))) == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("graphs", "import torch"),
        ("graphs", "from discovery.batch import Batch"),
        ("discovery", "def f():\n    import labelers.prompt"),
        ("labelers", "from discovery import task"),
        ("discovery", "import networkx as nx"),
        ("pipelines", "import torch.nn"),
        ("pipelines", "import importlib\nimportlib.import_module('openai.types')"),
        ("graphs", "import pandas"),
    ],
)
def test_the_check_sees_what_is_forbidden(package: str, line: str) -> None:
    assert len(offences(package, imported(line))) == 1


# What a first look at the project may not cost.
HEAVY = ("torch", "transformers", "networkx", "optuna", "openai", "datasets", "numpy")


@pytest.mark.parametrize("module", ["pipelines.cli", "discovery", "graphs", "labelers", "pipelines"])
def test_importing_is_cheap_and_silent(module: str) -> None:
    program = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert done.stdout.startswith("usage: edgewise")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "pipelines" in loaded
    assert not loaded & set(HEAVY)
    assert seconds < 5  # 0.2 s on an idle machine; tests share theirs

"""Every command and every program that the README and the pages in docs/ show can be typed and works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.demo import model_directory
from pipelines.cli import main
from pipelines.flags import flag_settings
from pipelines.parser import make_parser
from pipelines.settings import build, resolve
from pipelines.tune_config import read_tune

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The `edgewise ...` lines of indented or fenced blocks and of the text, as arguments."""
    lines = re.findall(r"^ {4}edgewise (.+)$", text, re.MULTILINE) + re.findall(r"`edgewise ([^`]+)`", text)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_command_can_be_typed(page: Path) -> None:
    for arguments in commands(page.read_text(encoding="utf-8")):
        if len(arguments) == 1 or any(word.isupper() or word.startswith("models|") for word in arguments):
            continue  # a command's name alone, or one with a placeholder
        options = make_parser().parse_args(arguments)
        if options.command == "discover":
            build(flag_settings(options))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_settings_in_the_pages_are_settings() -> None:
    import tomllib

    blocks = [block for page in PAGES for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    assert blocks
    for block in blocks:
        table = tomllib.loads(block)
        read_tune([("page", table.pop("tune", {}))])
        build(resolve(table, "page"))


@pytest.mark.skipif(not model_directory().is_dir(), reason="the embedded model is not in this checkout")
def test_the_program_in_the_readme_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(not model_directory().is_dir(), reason="the embedded model is not in this checkout")
def test_the_tour_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    tour = commands(README[README.index("## A five-minute tour") : README.index("## What it has")])
    shown = [arguments for arguments in tour if len(arguments) > 1 and arguments[-1] != "my.toml"]
    assert len(shown) >= 6
    for arguments in shown:
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)

"""`edgewise check-transcoders` from the command line, on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from discovery.demo import model_directory
from discovery.loading import load_model
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from pipelines.cli import main
from tests.discovery.tiny_transcoders import tiny_transcoders


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("set")
    write_circuit_tracer(tiny_transcoders(load_model(model_directory(), device="cpu"), "topk"), place)
    return place


def test_table_and_json(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["check-transcoders", str(directory), "--device", "cpu", "--tokens", "60"]
    assert main([*common, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert "transcoders from mlp-in to mlp-out of the embedded model" in printed
    assert f"on {found['tokens']} tokens" in printed and 60 <= found["tokens"] < 200
    for one in found["layers"]:
        assert f"{one['fvu']:.3f}" in printed and one["features"] == 13 and one["spliced_loss"] > 0
        assert f"! {one['diagnosis']}" in printed
    assert main([*common, "--no-losses", "--layers", "1", "--prompts", "Ann came to the park.", "--json", "-"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [one["layer"] for one in alone["layers"]] == [1] and alone["clean_loss"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reads", "hook_mlp_in"], "there is no such site"),
        (["--layers", "a"], "--layers a"),
        (["--tokens", "0"], "--tokens must be at least 2"),
        (["--corpus", "x.txt", "--prompts", "y"], "give one of them"),
        (["--corpus", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--model", "some/model"], "which text?"),
    ],
)
def test_mistakes_are_one_line(
    directory: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-transcoders", str(directory), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

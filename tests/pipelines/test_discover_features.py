"""`edgewise discover --transcoders` from scores to pictures, in this process, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from discovery.component_model import ComponentModel
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from graphs.exporters.circuit_json import read_circuit
from pipelines.cli import main
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

QUICK = ("--bootstrap", "20", "--rivals", "2", "--random-circuits", "1", "--sizes", "0.05,0.3,1", "--edges", "60")


@pytest.fixture(scope="module")
def transcoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JumpReLU transcoders of 40 features for every layer of the tiny model."""
    directory = tmp_path_factory.mktemp("transcoders")
    write_circuit_tracer(tiny_transcoders(ComponentModel(tiny_model("llama")), "jumprelu", features=40), directory)
    return directory


@pytest.fixture
def command(model_directory: Path, task_file: Path, transcoders: Path, tmp_path: Path) -> list[str]:
    """A run of 12 features."""
    named = {"--model": model_directory, "--task": task_file, "--transcoders": transcoders, "--out": tmp_path / "run"}
    return ["discover", *(str(part) for pair in named.items() for part in pair), "--features", "12", *QUICK]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "no heads"])
def test_a_run_over_features(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], heads: bool
) -> None:
    more = [] if heads else ["--no-heads", "--size", "0.3"]
    command = command if heads else [part for part in command if part not in ("--edges", "60")]
    assert main([*command, *more]) == 0
    shown, run = capsys.readouterr().out, tmp_path / "run"
    choice, record, evaluation = (read(run / name) for name in ("features.json", "run.json", "evaluation.json"))
    assert len(choice["features"]) == 12
    assert record["features"] == {"chosen": 12, "live": choice["live"], "share": choice["share"], "heads": heads}
    assert set(record["inputs"]["transcoders"]) >= {"config.yaml", "layer_0.safetensors"}
    assert record["gates"]["checked"] == (2 if heads else 1) * (12 + 3)
    assert {"features", "gates", "scores"} <= set(record["seconds"])
    assert "12 of " in shown
    assert "error nodes" in shown
    assert str(run / "features.json") in shown
    topology = read_circuit((run / "circuit.json").read_bytes()).topology
    assert {str(node) for node in topology.sources if node.kind == "feature"} == set(choice["features"])
    assert any(node.kind == "head" for node in topology.sources) == heads
    values = load_file(run / "scores.safetensors")["values"]
    assert values.shape == topology.possible.shape
    np.testing.assert_array_equal(np.isfinite(values), topology.possible)
    assert evaluation["curve"][-1]["faithfulness"] == pytest.approx(1, abs=1e-4)
    assert all(0 <= point["error_share"] <= 1 for point in evaluation["curve"])
    assert evaluation["circuit"]["error_share"] > 0
    assert evaluation["without_errors"]["edges"] < evaluation["circuit"]["edges"]
    assert {path.suffix for path in (run / "exports").iterdir()} == {".svg", ".dot", ".json", ".graphml"}


def test_a_run_is_resumed_with_the_features_that_it_chose(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(command) == 0
    before = {name: (run / name).read_bytes() for name in ("features.json", "circuit.json", "evaluation.json")}
    (run / "scores.safetensors").unlink()
    record = read(run / "run.json")
    record["finished"] = ["features"]
    # Were features chosen anew, they would be others than these, which only the stored choice names.
    stored = read(run / "features.json")
    kept = dict(list(stored["features"].items())[:5])
    (run / "features.json").write_text(json.dumps({**stored, "features": kept}), encoding="utf-8")
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(command) == 0
    names = {str(n) for n in read_circuit((run / "circuit.json").read_bytes()).topology.sources if n.kind == "feature"}
    assert names == set(kept)
    assert main([*command, "--overwrite"]) == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    assert main(["evaluate", str(run), "--ablation", "mean", "--bootstrap", "0", "--rivals", "0"]) == 0
    assert main(["export", str(run), "--format", "svg"]) == 0
    assert "mean ablation" in capsys.readouterr().out


def test_methods_that_run_the_model_need_no_second_look(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--method", "exact", "--set", "transcoders.load.layers=[1]"]) == 0
    record = read(tmp_path / "run" / "run.json")
    assert "gates" not in record
    names = read_circuit((tmp_path / "run" / "circuit.json").read_bytes()).topology.source_names
    assert {"m0", "e1", "m2"} <= set(names)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--transcoders", "."], "transcoder"),
        (["--features", "0"], "transcoders.features must lie between 1"),
        (["--edges", "100000"], "selection.edges is 100,000, but the graph has"),
        (["--set", "transcoders.load.colour=red"], "colour"),
        (["--metric", "accuracy"], "accuracy"),
        (["--set", "transcoders.load.layers=[7]"], "no dictionary is left"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(
    command: list[str], change: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*command, *change]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("edgewise: ")
    assert says in said[-1]
    assert "Traceback" not in "".join(said)

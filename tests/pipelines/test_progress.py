"""`edgewise progress` over tiny checkpoints: between two random models lie the others, as between two steps of training."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import PreTrainedModel

from discovery.component_model import ComponentModel
from graphs.compare import jaccard
from graphs.exporters.circuit_json import read_circuit
from pipelines.checkpoints import folder_checkpoints, hub_checkpoints, step_of
from pipelines.cli import main
from pipelines.settings import ConfigError
from tests.discovery.hub_cache import write_hub_cache
from tests.discovery.tiny_models import tiny_model

FLAGS = "--method eap --edges 90 --sizes 1 --resamples 0 --bootstrap 50 --formats json".split()
SHARES = {"step1": 0.0, "step2": 0.5, "step10": 1.0}


def between(share: float) -> PreTrainedModel:
    """A model on the line between two random ones."""
    first, second = tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    with torch.no_grad():
        for name, weight in first.named_parameters():
            weight.lerp_(second.get_parameter(name), share)
    return first


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    for name, share in SHARES.items():
        between(share).save_pretrained(folder / name)
    (folder / "step3.log").write_text("not a checkpoint")
    return folder


def progress(models: Path | str, task: Path, out: Path, *more: str) -> int:
    return main(["progress", "--models", f"{models}/step*", "--task", str(task), "--out", str(out), *FLAGS, *more])


@pytest.fixture(scope="module")
def done(checkpoints: Path, task_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("progress")
    assert progress(checkpoints, task_file, out) == 0
    return out


def result(out: Path) -> dict:
    return json.loads((out / "progress.json").read_text())


def circuit(out: Path, name: str):
    return read_circuit((out / name / "circuit.json").read_bytes())


def test_every_step_is_an_ordinary_run_in_order(done: Path) -> None:
    found = result(done)
    assert (found["format"], found["version"], found["failed"]) == ("edgewise-progress", 1, [])
    assert [row["step"] for row in found["steps"]] == [1, 2, 10]
    assert [row["checkpoint"] for row in found["steps"]] == ["step1", "step2", "step10"]
    for row in found["steps"]:
        evaluation = json.loads((done / row["checkpoint"] / "evaluation.json").read_text())
        for side in ("full", "empty"):
            assert row[side]["metric"] == pytest.approx(evaluation[side], rel=1e-5, abs=1e-6)
        assert row["known"] == pytest.approx(evaluation["known"])
        assert row["own"]["edges"] == circuit(done, row["checkpoint"]).edge_count
    last, own = found["steps"][-1], json.loads((done / "step10" / "evaluation.json").read_text())["circuit"]
    assert last["circuit"]["faithfulness"] == pytest.approx(own["faithfulness"], rel=1e-4)
    assert last["rest"]["faithfulness"] == pytest.approx(own["completeness"], rel=1e-4, abs=1e-5)
    assert last["circuit"]["low"] <= last["circuit"]["faithfulness"] <= last["circuit"]["high"]


def test_overlaps_are_those_of_the_runs_circuits(done: Path) -> None:
    rows, own = result(done)["steps"], [circuit(done, name) for name in SHARES]
    assert rows[0]["overlap_previous"] is None and rows[-1]["overlap_last"]["jaccard"] == 1
    for place in (1, 2):
        assert rows[place]["overlap_previous"]["jaccard"] == jaccard(own[place], own[place - 1])
        assert 0 < rows[place]["overlap_previous"]["chance"] < 1
    assert rows[-1]["spearman_last"] == pytest.approx(1)


def test_edges_have_their_stored_scores_and_appear_at_half_of_the_last(done: Path) -> None:
    edges = result(done)["edges"]
    last = circuit(done, "step10")
    assert {edge["edge"] for edge in edges} == {str(edge) for edge, _ in last.edges}
    scores = [load_file(done / name / "scores.safetensors")["values"] for name in SHARES]
    for edge, _ in last.edges:
        (course,) = [one for one in edges if one["edge"] == str(edge)]
        own = [values[last.topology.locate(edge)] for values in scores]
        assert course["scores"] == pytest.approx(own)
        holds = [value / own[-1] >= 0.5 for value in own]
        assert course["appears"] == [1, 2, 10][holds.index(True)]
        assert course["settles"] == next(step for i, step in enumerate([1, 2, 10]) if all(holds[i:]))
    assert [edge["appears"] for edge in edges] == sorted(edge["appears"] for edge in edges)


def test_losses_are_those_of_the_untouched_model_on_clean_and_corrupt_prompts(
    done: Path, checkpoints: Path, task_file: Path
) -> None:
    held_out = _held_out(task_file)
    for row in result(done)["steps"]:
        model = between(SHARES[row["checkpoint"]])
        for side, prompts in (("full", "clean"), ("empty", "corrupt")):
            losses = []
            for pair in held_out:
                with torch.inference_mode():
                    logits = model(torch.tensor([getattr(pair, prompts)])).logits[0, -1].double()
                losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(pair.answers[0][0]))))
            assert row[side]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def _held_out(task_file: Path):
    from discovery.task import split
    from discovery.task_source import load_task

    return split(load_task(str(task_file)), 0.3, 0)[1].pairs


def test_all_edges_are_the_model_and_what_is_left_is_nothing(done: Path, checkpoints: Path, task_file: Path) -> None:
    topology = ComponentModel(tiny_model("llama")).topology
    rows, columns = np.nonzero(topology.possible)
    names = [str(topology.edge(int(row), int(column))) for row, column in zip(rows, columns)]
    file = done / "all.json"
    file.write_text(json.dumps(names))
    before = result(done)
    assert progress(checkpoints, task_file, done, "--circuit", str(file)) == 0
    found = result(done)
    assert len(found["edges"]) == len(names) == found["circuit"]["edges"] == found["circuit"]["possible"]
    for row in found["steps"]:
        assert row["circuit"]["faithfulness"] == pytest.approx(1, abs=1e-4)
        assert row["rest"]["faithfulness"] == pytest.approx(0, abs=1e-4)
        for one, other in (("circuit", "full"), ("rest", "empty")):
            for name in ("metric", "loss", "accuracy"):
                assert row[one][name] == pytest.approx(row[other][name], rel=1e-4, abs=1e-5)
    assert progress(checkpoints, task_file, done) == 0
    assert result(done) == before


def test_each_steps_own_circuit(done: Path, checkpoints: Path, task_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    shutil.copytree(done, out)
    assert progress(checkpoints, task_file, out, "--circuit", "own") == 0
    for row in result(out)["steps"]:
        own = json.loads((out / row["checkpoint"] / "evaluation.json").read_text())["circuit"]
        assert row["circuit"]["faithfulness"] == pytest.approx(own["faithfulness"], rel=1e-4)


def test_nothing_is_computed_twice_and_other_settings_are_refused(
    done: Path, checkpoints: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / "progress.json").read_bytes()
    with monkeypatch.context() as patch:
        for place in ("pipelines.inputs.load", "pipelines.discover.score", "discovery.restricted_loss.measure_all"):
            patch.setattr(place, lambda *_, **__: pytest.fail("computed again"))
        assert progress(checkpoints, task_file, done) == 0
    assert (done / "progress.json").read_bytes() == before
    capsys.readouterr()
    assert progress(checkpoints, task_file, done, "--ablation", "zero") == 2
    assert 'another config.ablation ("counterfactual", now "zero")' in capsys.readouterr().err
    assert (done / "progress.json").read_bytes() == before


def test_bad_checkpoints_are_named_and_the_others_go_on(
    checkpoints: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(checkpoints, models)
    (models / "step4").mkdir()
    (models / "step5").mkdir()
    (models / "step5" / "config.json").write_text('{"model_type": "llama", "vocab_size": 41}')
    shutil.copytree(models / "step2", models / "step6")
    (models / "step6" / "model.safetensors").write_bytes((models / "step2" / "model.safetensors").read_bytes()[:5000])
    tiny_model("gpt2").save_pretrained(models / "step7")
    flat = between(0.2)
    with torch.no_grad():
        flat.get_parameter("lm_head.weight").zero_()  # every answer as likely as any other: nothing to tell apart
    flat.save_pretrained(models / "step8")
    assert progress(models, task_file, tmp_path / "out") == 2
    printed = capsys.readouterr()
    found = result(tmp_path / "out")
    assert [row["step"] for row in found["steps"]] == [1, 2, 8, 10]
    assert {one["checkpoint"] for one in found["failed"]} == {"step4", "step5", "step6", "step7"}
    assert "4 checkpoints left out" in printed.err and "another one than the last checkpoint's" in printed.err
    assert len(printed.err.strip().splitlines()[-1]) > 40 and "Traceback" not in printed.err
    row = found["steps"][2]
    assert not row["told"] and row["circuit"]["faithfulness"] is None and row["gap"] == pytest.approx(0, abs=1e-6)
    assert row["full"]["loss"] == pytest.approx(np.log(41), rel=1e-5)
    ET.fromstring((tmp_path / "out" / "progress.svg").read_bytes())
    untold = sum(not row["told"] for row in found["steps"])
    assert f"in brackets ({untold} steps)" in printed.out

    # Without a size the circuit is chosen by its faithfulness, which is 0/0 there: the step has scores and no circuit.
    two, out = [str(models / name) for name in ("step8", "step10")], str(tmp_path / "two")
    flags = ["--method", "eap", "--sizes", "1", "--resamples", "0", "--bootstrap", "0"]
    assert main(["progress", "--models", *two, "--task", str(task_file), "--out", out, *flags]) == 0
    row = result(tmp_path / "two")["steps"][0]
    assert row["own"] is None and row["overlap_last"] is None and row["full"]["loss"] == pytest.approx(np.log(41))

    shutil.rmtree(models)
    (models / "step4").mkdir(parents=True)
    assert progress(models, task_file, tmp_path / "none") == 2
    assert "no checkpoint can be used: step4:" in capsys.readouterr().err


def test_revisions_of_a_hub_model(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commits = write_hub_cache(tmp_path / "hub", "lab/tiny", {"step9": between(0), "step10": between(1)})
    place = ["--task", str(task_file), "--out", str(tmp_path / "out"), *FLAGS]
    assert main(["progress", "--model", "lab/tiny", "--revisions", "step10,step9", *place]) == 0
    found = result(tmp_path / "out")
    assert [row["revision"] for row in found["steps"]] == ["step9", "step10"] and found["title"].endswith("lab/tiny")
    for name, commit in commits.items():
        run = json.loads((tmp_path / "out" / name / "run.json").read_text())
        assert run["inputs"]["model"] == {"commit": commit}
        assert run["config"]["model"]["revision"] == name
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which checkpoints?"),
        (["--models", "nowhere/step*"], "no directory is called so"),
        (["--models", "nowhere"], "there is no such directory"),
        (["--models", "STEP1", "--model", "gpt2"], "leave out --model"),
        (["--model", "gpt2", "--revision", "x", "--revisions", "step1"], "unrecognized"),
        (["--models", "STEP1", "--circuit", "nowhere.json"], "--circuit nowhere.json: there is no"),
        (["--models", "STEP1", "--set", "transcoders.name=x"], "leave out features"),
        (["--models", "STEP1", "--metric", "beauty"], "no metric 'beauty'"),
        (["--models", "STEP1", "--method", "magic"], "'magic'"),
    ],
)
def test_mistakes_are_said_at_once(
    arguments: list[str], says: str, checkpoints: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [str(checkpoints / "step1") if word == "STEP1" else word for word in arguments]
    try:
        code = main(["progress", *given, "--task", str(task_file), "--out", str(tmp_path / "out")])
    except SystemExit as stop:  # argparse's own refusals
        code = stop.code
    assert code == 2 and not (tmp_path / "out").exists()
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step123", 123),
        ("checkpoint-1000", 1000),
        ("123M", 123_000_000),
        ("1.5B", 1_500_000_000),
        ("stage1-step10000-tokens42B", 10_000),
        ("pythia-160m-step0", 0),
        ("model_7b_epoch12", 12),
        ("step2k", 2000),
        ("000300", 300),
        ("12kilo", 12),
    ],
)
def test_the_step_in_a_name(name: str, step: int) -> None:
    assert step_of(name) == step


def test_checkpoints_are_sorted_by_number_and_named_by_what_differs(tmp_path: Path) -> None:
    for name in ("100", "20", "3"):
        (tmp_path / "run2" / name / "hf").mkdir(parents=True)
    found = folder_checkpoints([f"{tmp_path}/run2/*/hf"])
    assert [(one.name, one.step) for one in found] == [("3", 3), ("20", 20), ("100", 100)]
    again = folder_checkpoints([*(one.model for one in found), f"{tmp_path}/run2/3/../3/hf"])
    assert again == found
    (tmp_path / "run2" / "0020" / "hf").mkdir(parents=True)
    with pytest.raises(ConfigError, match="both of step 20"):
        folder_checkpoints([f"{tmp_path}/run2/*/hf"])
    (tmp_path / "final").mkdir()
    with pytest.raises(ConfigError, match="'final' has no number"):
        folder_checkpoints([str(tmp_path / "final")])
    assert [one.revision for one in hub_checkpoints("a/b", "step20, step3")] == ["step3", "step20"]
    with pytest.raises(ConfigError, match="is a directory"):
        hub_checkpoints(str(tmp_path), "step1")

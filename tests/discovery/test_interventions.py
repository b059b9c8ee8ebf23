"""Interventions as text, values from donors and means, directions, generation, and reports of all of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.direction import difference_of_means, direction_bytes, direction_edits, read_directions
from discovery.intervened_generation import generate
from discovery.intervened_run import intervened_pass, untouched_pass
from discovery.intervention import BadIntervention, Edit, prompts_of, prompts_of_batch
from discovery.intervention_report import Plan, batched_prompts, prompt_report, task_report
from discovery.intervention_text import BadInterventionText, Place, parse_interventions
from discovery.metrics import METRICS
from discovery.node_values import Resolver, mean_values, node_values
from discovery.single_prompt import BadPrompt, prompt_or_file, read_prompts
from graphs.node import NodeId
from tests.discovery.tiny_models import tiny_batch, tiny_model
from tests.discovery.tiny_transcoders import random_tokens, tiny_transcoders


@pytest.fixture(scope="module")
def model() -> ComponentModel:
    return ComponentModel(tiny_model("llama"))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=3e-5, rtol=1e-4)


def edits_of(model, texts, prompts, donors=None, means=None, transcoders=None):
    return Resolver(model, transcoders, parse_interventions(texts), donors or {}, means or {}).edits(prompts)


def test_every_part_of_the_grammar() -> None:
    one, clamp, add, wild, swap = parse_interventions(
        ["f0.31@4,f2.7@-1=0", "f1.2 = 1.5e-1", "f1.2@3+=-2", "f0.**=2", "a0.h*@4=swap@-2:Is 1=2: yes?"]
    )
    assert one.places == (Place("feature", 0, 31, 4), Place("feature", 2, 7, -1))
    assert (one.act, one.amount) == ("set", 0)
    assert (clamp.act, clamp.amount, clamp.places[0].position) == ("set", 0.15, None)
    assert (add.act, add.amount) == ("add", -2)
    assert (wild.act, wild.amount, wild.places) == ("scale", 2, (Place("feature", 0, None, None),))
    assert (swap.act, swap.donor, swap.donor_position) == ("swap", "Is 1=2: yes?", -2)
    everything = parse_interventions(["f0.*=0"])[0]
    assert (everything.act, everything.places[0].index) == ("set", None)
    plain = parse_interventions(["m2=mean", "e1@0*=0.5", "a3.h1=swap", "a3.h1=swap:x"])
    assert [each.act for each in plain] == ["mean", "scale", "swap", "swap"]
    assert [each.donor for each in plain] == [None, None, None, "x"]
    for place in (Place("head", 3, None, -1), Place("error", 1, None, None), Place("feature", 0, 5, 2)):
        assert parse_interventions([f"{place}=0"])[0].places == (place,)


@pytest.mark.parametrize(
    "text",
    ["", "f0.1", "f0.1==0", "f0.1=nan", "f0.1=inf", "m1=2", "a0.h1+=1", "f0=0", "a0.1=0", "t3=0", "f0.1@x=0", "f0.1,=0",
     "f0.1=swap:", "f0.1=swap@2", "f0.1*=mean", "f-1.2=0", "f0.1@--1=0"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(BadInterventionText) as raised:
        parse_interventions(["f0.1=0", text])
    assert repr(text) in str(raised.value)


def test_a_whole_swap_is_the_donors_run(model: ComponentModel) -> None:
    """All heads and MLPs of every layer from the donor: what is left of the prompt is its own embedding."""
    own, donor = (random_tokens(model, seed=seed)[0].tolist() for seed in (1, 2))
    own[-1] = donor[-1]
    prompts = prompts_of([own])
    everything = ",".join(f"a{layer}.h*,m{layer}" for layer in range(3))
    edits = edits_of(model, [f"{everything}=swap"], prompts, {None: prompts_of([donor])})
    swapped = intervened_pass(model, None, prompts, edits)
    with torch.no_grad():
        assert close(swapped.logits[0], model.hf(torch.tensor([donor])).logits[0, -1])
        assert not close(swapped.logits[0], model.hf(torch.tensor([own])).logits[0, -1])


def test_swaps_take_the_named_position(model: ComponentModel) -> None:
    """Prompts of several lengths, padded; a donor for each, or one for all."""
    transcoders = tiny_transcoders(model, "jumprelu")
    rows = [random_tokens(model, seed=3)[row].tolist()[: 12 - 3 * row] for row in range(3)]
    others = [random_tokens(model, seed=4)[row].tolist()[: 7 + row] for row in range(3)]
    prompts = prompts_of(rows)
    donors = {None: prompts_of(others), "one": prompts_of(others[:1])}
    texts = ["f1.*@4=swap", "f1.3@-1=swap@2:one", "e2@1=swap@-2", "f0.*=swap", "a1.h2=swap"]
    edits = edits_of(model, texts, prompts, donors, transcoders=transcoders)
    seen = [untouched_pass(model, prompts_of([row])) for row in others]

    def value(row: int, place: Place) -> Tensor:
        return node_values(model, transcoders, seen[row], place)[0]

    for row, tokens in enumerate(rows):
        first, length = 12 - len(tokens), min(len(tokens), len(others[row]))
        for edit in edits:
            assert edit.cells is not None
            assert not edit.cells[row, :first].any()
        assert isinstance(edits[0].value, Tensor) and isinstance(edits[1].value, Tensor)
        assert close(edits[0].value[row, first + 4], value(row, Place("feature", 1, None, None))[4])
        assert close(edits[1].value[row, 11], value(0, Place("feature", 1, 3, None))[2])
        assert isinstance(edits[2].value, Tensor) and isinstance(edits[3].value, Tensor)
        assert close(edits[2].value[row, first + 1], value(row, Place("error", 2, None, None))[-2])
        assert edits[3].cells is not None and int(edits[3].cells[row].sum()) == length
        whole = value(row, Place("feature", 0, None, None))
        assert close(edits[3].value[row, first : first + length], whole[:length])
        assert [int(edit.cells[row].sum()) for edit in edits[:3] if edit.cells is not None] == [1, 1, 1]


def test_means_over_real_tokens(model: ComponentModel) -> None:
    rows = [random_tokens(model, seed=5)[row].tolist()[: 12 - 2 * row] for row in range(4)]
    transcoders = tiny_transcoders(model, "relu")
    places = [Place("feature", 1, 2, 4), Place("head", 0, 1, None), Place("mlp", 2, None, -1)]
    means = mean_values(model, transcoders, places, batched_prompts([tuple(row) for row in rows]))
    for place in places:
        anywhere = Place(place.kind, place.layer, place.index, None)
        values = [node_values(model, transcoders, untouched_pass(model, prompts_of([row])), place)[0] for row in rows]
        assert close(means[anywhere].float(), torch.cat(values).mean(0))
    edit = edits_of(model, ["f1.2@4=mean"], prompts_of(rows), means=means, transcoders=transcoders)[0]
    assert edit.value is means[Place("feature", 1, 2, None)]
    with pytest.raises(BadIntervention, match="prompts to take it over"):
        mean_values(model, transcoders, places, [])


def test_resolving_says_what_is_missing(model: ComponentModel) -> None:
    prompts = prompts_of([[3, 4, 5]])
    with pytest.raises(BadIntervention, match=r"a0\.h1=swap.*no donor"):
        edits_of(model, ["a0.h1=swap"], prompts)
    with pytest.raises(BadIntervention, match=r"m0@7=0.*no position 7"):
        edits_of(model, ["m0@7=0"], prompts)
    with pytest.raises(BadIntervention, match="need transcoders"):
        edits_of(model, ["f0.1=0"], prompts)
    with pytest.raises(BadIntervention, match="2 donor prompts cannot serve 1"):
        edits_of(model, ["a0.h1=swap"], prompts, {None: prompts_of([[3], [4]])})


def test_difference_of_means_and_its_file(model: ComponentModel, tmp_path: Path) -> None:
    sides = [[tuple(random_tokens(model, seed=seed)[row].tolist()[: 9 + row]) for row in range(3)] for seed in (6, 7)]
    positive, negative = map(batched_prompts, sides)
    found = difference_of_means(model, positive, negative)
    ends = [
        torch.stack([intervened_pass(model, None, prompts_of([row]), streams=True).streams[2][0, -1] for row in rows])
        for rows in sides
    ]
    assert close(found[2], ends[0].mean(0) - ends[1].mean(0))
    path = tmp_path / "direction.safetensors"
    path.write_bytes(direction_bytes(found))
    vectors = read_directions(path)
    assert sorted(key for key in vectors if key is not None) == [0, 1, 2, 3]
    assert [edit.streams for edit in direction_edits(model, vectors)] == [(0,), (1,), (2,), (3,)]
    assert [edit.streams for edit in direction_edits(model, vectors, streams=(2,))] == [(2,)]
    alone = direction_edits(model, read_directions(path, "r2"), add=2.0, position=-1)
    assert len(alone) == 1 and alone[0].streams is None and torch.equal(alone[0].vector, found[2])
    save_file({"v": found[1].clone(), "other": found}, path)
    with pytest.raises(BadIntervention, match="--vector"):
        read_directions(path)
    assert list(read_directions(path, "v")) == [None]
    assert list(read_directions(path, "other")) == [0, 1, 2, 3]
    save_file({"v": torch.ones(5)}, path)
    with pytest.raises(BadIntervention, match="5 dimensions"):
        direction_edits(model, read_directions(path))
    with pytest.raises(BadIntervention, match="no residual stream r4"):
        direction_edits(model, vectors, streams=(4,))
    with pytest.raises(BadIntervention, match="not a safetensors file"):
        read_directions(__file__)


@pytest.mark.parametrize("freeze", ["none", "attention"])
def test_generation_is_greedy_under_the_same_interventions(model: ComponentModel, freeze) -> None:
    rows = [random_tokens(model, seed=8)[0].tolist(), random_tokens(model, seed=9)[0].tolist()[:7]]
    edits = parse_interventions(["a1.h1@-1=0", "m1*=2"])
    resolver = Resolver(model, None, edits, {}, {})
    found = generate(model, None, prompts_of(rows), resolver, freeze=freeze, steps=5)
    plain = generate(model, None, prompts_of(rows), None, steps=5)
    for row, tokens in enumerate(rows):
        for step, token in enumerate(found[row]):
            grown = torch.tensor(tokens + found[row][:step])
            by_hand = [
                Edit.of(NodeId.parse(f"a1.h1@{len(tokens) - 1}")),
                Edit("mlp", 1, operation="scale", value=2.0),
            ]
            assert int(intervened_pass(model, None, grown, by_hand, freeze=freeze).logits.argmax()) == token
        with torch.no_grad():
            for step, token in enumerate(plain[row]):
                grown = torch.tensor([tokens + plain[row][:step]])
                assert int(model.hf(grown).logits[0, -1].argmax()) == token
    assert found != plain


def test_a_prompts_report(model: ComponentModel) -> None:
    transcoders = tiny_transcoders(model, "topk")
    tokens = tuple(random_tokens(model, seed=10)[0].tolist())
    plan = Plan(parse_interventions(["f0.1@3=4", "f0.*@2=0"]), generate=3, top=4, freezes=("attention", "none"))
    report = prompt_report(model, transcoders, tokens, plan)
    assert len(report["tokens"]) == 12
    assert [node["node"] for node in report["nodes"]] == ["f0.1@3", "f0.*@2"]
    assert 4 <= len(report["next"]) <= 12
    before = [token["before"]["probability"] for token in report["next"]]
    assert before == sorted(before, reverse=True)
    with torch.no_grad():
        logits = model.hf(torch.tensor([tokens])).logits[0, -1]
    for token in report["next"]:
        assert token["before"]["logit"] == pytest.approx(float(logits[token["token"]]), abs=1e-4)
        assert token["before"]["rank"] == int((logits > logits[token["token"]]).sum()) + 1
    assert set(report["divergence"]) == {"attention", "none"}
    assert all(value > 0 for value in report["divergence"].values())
    assert set(report["generated"]) == {"before", "attention", "none"}


def test_a_tasks_report(model: ComponentModel) -> None:
    """Nothing done: no change. Every node swapped: the metric of the corrupt prompts."""
    batches = [tiny_batch(seed=0, pairs=3), tiny_batch(seed=1, pairs=2)]
    batches[1] = _with_indices(batches[1], (3, 4))
    metric = METRICS["logit-diff"]
    nothing = task_report(model, None, batches, metric, Plan(parse_interventions(["a0.h1*=1"])), bootstrap=50)
    for name in ("attention", "none"):
        assert nothing["runs"][name]["change"] == pytest.approx(0, abs=1e-5)
        assert nothing["per_pair"][name] == pytest.approx(nothing["per_pair"]["before"], abs=1e-4)
    everything = ",".join(f"a{layer}.h*,m{layer}" for layer in range(3))
    plan = Plan(parse_interventions([f"{everything}=swap"]), freezes=("none",), generate=2)
    swapped = task_report(model, None, batches, metric, plan, bootstrap=50)
    corrupt = []
    for batch in batches:
        prompts = prompts_of_batch(batch, corrupt=True)
        logits = intervened_pass(model, None, prompts, reads=(batch.read_row, batch.read_column)).logits
        corrupt += metric.compute(logits, batch, None).tolist()
    assert swapped["per_pair"]["none"] == pytest.approx(corrupt, abs=1e-4)
    run = swapped["runs"]["none"]
    assert run["low"] <= run["mean"] <= run["high"]
    assert run["change"] == pytest.approx(run["mean"] - swapped["runs"]["before"]["mean"])
    assert len(swapped["generated"]) == 5


def _with_indices(batch, indices):
    from dataclasses import replace

    return replace(batch, indices=indices)


def test_prompts_from_files(tmp_path: Path) -> None:
    ids = tmp_path / "prompt.json"
    ids.write_text('{"tokens": [4, 5, 6], "targets": [3]}')
    assert prompt_or_file(str(ids), None) == (4, 5, 6)
    for content in ('{"tokens": [1.5]}', '{"tokens": []}', "[true]", '"x"', "{"):
        ids.write_text(content)
        with pytest.raises(BadPrompt, match=r"prompt\.json"):
            prompt_or_file(str(ids), None)
    with pytest.raises(BadPrompt, match="no tokenizer"):
        prompt_or_file("some text", None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"tokens": [1, 2]}\n{"tokens": [3]}\n')
    assert read_prompts(rows, None) == [(1, 2), (3,)]


def test_text_prompts_start_with_a_special_token() -> None:
    from transformers import AutoTokenizer

    from discovery.demo import model_directory

    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    auto, never = (prompt_or_file("Tom gave", tokenizer, bos) for bos in ("auto", "never"))
    assert auto[0] in tokenizer.all_special_ids
    assert auto[1:] == never
    assert list(itertools.chain(never)) == tokenizer("Tom gave", add_special_tokens=False)["input_ids"]

"""Settings: files, flags and --set agree; what is not known is refused by name."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from pipelines.config import EvaluationConfig, MethodConfig, ModelConfig, RunConfig, SelectionConfig, TaskConfig
from pipelines.flags import FLAGS, flag_settings
from pipelines.parser import make_parser
from pipelines.settings import ConfigError, build, from_assignments, from_file, known_paths, resolve
from pipelines.toml_text import to_toml

WILD = RunConfig(
    model=ModelConfig(name='a "quoted"\\ name\x7f\n', dtype="bfloat16", kv_heads="query", trust_remote_code=True),
    task=TaskConfig(
        source="x.jsonl", limit=7, columns={"clean": "a b", "corrupt": "ü"}, options={"kind": [1, 2.5, "x"]}
    ),
    method=MethodConfig("eap-ig", {"steps": 20, "rule": "midpoint", "deep": {"a": True}}),
    selection=SelectionConfig(size=0.05, by="signed", rule="greedy"),
    evaluation=EvaluationConfig(
        holdout=0.0, sizes=(1e-05, 0.5), faithfulness_only=True, bootstrap=0, ground_truth="t.json"
    ),
    ablation="mean",
    batch_size=3,
    seed=2**40,
    out="run dir",
)


@pytest.mark.parametrize("config", [RunConfig(), WILD, RunConfig(selection=SelectionConfig(threshold=-0.5))])
def test_a_written_file_reads_back_as_the_same_configuration(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert build(from_file(path)) == config


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    free = {
        ("task", "options"),
        ("method", "options"),
        ("transcoders", "load"),
    }  # these are given by --set and in the file
    assert {flag.path for flag in FLAGS} == set(known_paths()) - free
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


def test_the_page_of_settings_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    for path in known_paths():
        assert f"| `{'.'.join(path)}` |" in page
    for flag in FLAGS:
        assert f"| `{flag.name}` |" in page


def _example(kind: Any, rng: random.Random) -> tuple[str, Any]:
    """A value of a setting's type: as typed on the command line, and as TOML holds it."""
    if type(None) in get_args(kind):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if kind is str:
        return "abc", "abc"
    if kind is int or int in get_args(kind):
        number = rng.randint(1, 9)
        return str(number), number
    if kind is float:
        return "0.25", 0.25
    if get_origin(kind) is tuple:
        return ("0.5,1", [0.5, 1.0]) if get_args(kind)[0] is float else ("svg,dot", ["svg", "dot"])
    if get_origin(kind) is dict:
        return "clean=a,corrupt=b", {"clean": "a", "corrupt": "b"}
    choice = rng.choice(get_args(kind))
    return choice, choice


@pytest.mark.parametrize("flag", FLAGS, ids=[flag.name for flag in FLAGS])
def test_a_flag_its_name_in_the_file_its_section_and_set_say_the_same(flag: Any) -> None:
    kind = known_paths()[flag.path]
    if kind is bool:
        typed, value = [flag.name], True
    else:
        text, value = _example(kind, random.Random(flag.name))
        typed = [flag.name, text]
    by_flag = build(flag_settings(make_parser().parse_args(["discover", *typed])))
    name = flag.name.removeprefix("--")
    nested: Any = value
    for key in reversed(flag.path):
        nested = {key: nested}
    assert by_flag == build({flag.path: tuple(value) if isinstance(value, list) else value})
    assert build(resolve({name: value}, "file")) == by_flag
    assert build(resolve({name.replace("-", "_"): value}, "file")) == by_flag
    assert build(resolve(nested, "file")) == by_flag
    if not isinstance(value, dict):
        written = str(value).lower() if isinstance(value, bool) else repr(value)
        assert build(from_assignments([f"{'.'.join(flag.path)}={written}"])) == by_flag


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults() -> None:
    file = resolve({"seed": 3, "task": "greater-than", "method": {"name": "eap-ig", "steps": 7, "rule": "right"}}, "f")
    line = flag_settings(make_parser().parse_args(["discover", "--seed", "4", "--set", "method.steps=9"]))
    config = build(file, line)
    assert (config.seed, config.task.source, config.ablation) == (4, "greater-than", "counterfactual")
    assert config.method == MethodConfig("eap-ig", {"steps": 9, "rule": "right"})


def test_a_size_on_the_command_line_replaces_the_files_and_two_in_one_place_are_refused() -> None:
    config = build(resolve({"selection": {"edges": 10}}, "f"), flag_settings(_parse("--size", "0.1")))
    assert (config.selection.edges, config.selection.size) == (None, 0.1)
    with pytest.raises(ConfigError, match=r"selection\.edges and selection\.size exclude each other"):
        flag_settings(_parse("--size", "0.1", "--edges", "5"))


def test_another_method_does_not_inherit_the_options_of_the_files_method() -> None:
    file = resolve({"method": {"name": "eap-ig", "steps": 7}}, "f")
    assert build(file, flag_settings(_parse("--method", "eap"))).method == MethodConfig("eap", {})
    assert build(file, flag_settings(_parse("--method", "eap-ig"))).method.options == {"steps": 7}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sede": 1}, ["sede", "seed"]),
        ({"selection": {"egdes": 5}}, ["selection.egdes", "selection.edges"]),
        ({"evaluation": {"hold-out": 0.2}}, ["evaluation.hold_out", "evaluation.holdout"]),
        ({"modle": {"name": "x"}}, ["modle", "model"]),
        ({"zzzzzz": 1}, ["zzzzzz", "known are"]),
        ({"model": 5}, ["model must be a table"]),
        ({"edges": 0}, ["selection.edges", "between"]),
        ({"edges": 1.5}, ["selection.edges", "whole number"]),
        ({"edges": True}, ["selection.edges", "whole number"]),
        ({"holdout": 1.0}, ["evaluation.holdout", "between"]),
        ({"size": float("nan")}, ["selection.size", "between"]),
        ({"sizes": [0.1, 2]}, ["evaluation.sizes", "2"]),
        ({"sizes": "all"}, ["evaluation.sizes", "list"]),
        ({"batch_size": "big"}, ["batch_size", "auto"]),
        ({"kv_heads": "both"}, ["model.kv_heads", "native or query"]),
        ({"chat_template": "yes"}, ["task.chat_template", "true or false"]),
        ({"kv_heads": "query", "model": {"kv_heads": "query"}}, ["model.kv_heads", "twice"]),
    ],
)
def test_what_cannot_be_used_is_named(table: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(table, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["seed", "=5", "a..b=1", "seed.x=1"])
def test_bad_assignments_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_assignments([text])


def test_a_flag_and_set_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        flag_settings(_parse("--seed", "1", "--set", "seed=2"))


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "\x00"])
def test_a_file_that_is_not_toml_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        from_file(path)


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


def _parse(*arguments: str) -> Any:
    return make_parser().parse_args(["discover", *arguments])

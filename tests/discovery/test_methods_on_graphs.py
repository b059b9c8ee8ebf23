"""Every method of the table on every kind of graph: components, spans, features with and without heads."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.feature_model import FeatureModel
from discovery.methods import METHODS
from discovery.workload import Workload
from graphs.node_scores import NodeScores
from tests.discovery.method_conformance import QUICK, universe
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.test_span_methods import smaller
from tests.discovery.test_span_model import with_spans
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

GRAPHS = ("components", "spans", "features", "features alone")
"""As the columns of the table in docs/methods.md."""
SCORES_NODES = ("atp", "conditional")


@cache
def model_of(graph: str) -> ComponentModel:
    """Small models of the kinds of graphs; no test changes them."""
    if graph == "spans":
        return smaller("llama")
    plain = ComponentModel(tiny_model("llama", smaller=True))
    if graph == "components":
        return plain
    return FeatureModel(plain, tiny_transcoders(plain, "relu"), {0: (1, 4), 1: (0, 2, 7)}, heads=graph == "features")


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_works_on_every_graph(name: str, graph: str) -> None:
    model = model_of(graph)
    batch = token_batch([5, 4, 6], 41, seed=2, first=2)
    batch = with_spans(batch, smaller("llama")) if graph == "spans" else batch
    work = Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    line = METHODS[name]
    scores = line.load().score(model, work, line.options(QUICK.get(name, {})))
    assert scores.topology is model.topology
    assert isinstance(scores, NodeScores) == (name in SCORES_NODES)
    values = scores.values[universe(scores)]
    assert np.isfinite(values).all() and np.abs(values).max() > 0


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_every_method_shows_how_far_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars on stderr that end where they said they would."""
    bars: list[tqdm] = []
    make, line = tqdm.__init__, METHODS[name]

    def kept(self: tqdm, *arguments: Any, **options: Any) -> None:
        bars.append(self)
        assert options["desc"] and options.get("file") in (None, sys.stderr)
        make(self, *arguments, **{**options, "disable": False})

    monkeypatch.setattr(tqdm, "__init__", kept)
    batches = (token_batch([5, 4, 6], 41, seed=2, first=2), token_batch([4], 41, seed=3, first=2))
    work = Workload(batches, LOGIT_DIFFERENCE, COUNTERFACTUAL)
    line.load().score(model_of("components"), work, line.options(QUICK.get(name, {})))
    assert bars
    assert all(bar.total and bar.n == bar.total for bar in bars)


def test_the_page_has_a_line_for_every_method(root: Path) -> None:
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.split("## Which graphs\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines() if row.startswith("| ")
    ]
    assert rows[0] == ["method", "scores", *GRAPHS]
    table = {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert list(table) == list(METHODS)
    for name, (scores, *cells) in table.items():
        assert ("nodes" in scores) == (name in (*SCORES_NODES, "atp-star"))
        assert cells == ["yes"] * len(GRAPHS)

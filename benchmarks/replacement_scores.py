"""Replacement and completeness scores of traced story prompts, as a table.

    python benchmarks/replacement_scores.py --transcoders DIR [--model DIR] [--corpus FILE] [--prompts 10] [--tokens 24]

DIR: what `benchmarks/transcoders.py` (or `edgewise train-transcoders`) made for the model. Prompts are the first tokens of
stories that this training holds out. Beside the scores stand the number of active
features, what pruning leaves, closure, and how the effects of the most influential features, predicted by the graph, agree
with those measured in the model itself with everything live.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import numpy as np

from discovery.attribution import attribution_graph
from discovery.closure import check_closure
from discovery.corpus_files import read_corpus
from discovery.graph_validation import validate_graph
from discovery.loading import load_model
from discovery.replacement import LocalReplacement
from discovery.targets import likely_targets
from discovery.transcoder_source import load_transcoders
from graphs.influence import graph_scores, measure, prune
from pipelines.train_transcoders import Corpus, split_windows

COLUMNS = (
    "prompt",
    "features",
    "nodes",
    "edges",
    "replacement",
    "completeness",
    "strict",
    "closure",
    "signs",
    "correlation",
)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcoders", required=True, metavar="DIR")
    parser.add_argument("--model", default="../shared/models/stories260K", metavar="DIR")
    parser.add_argument("--corpus", default="../shared/corpora/tinystories_1000.json", metavar="FILE")
    parser.add_argument("--prompts", type=int, default=10, metavar="N")
    parser.add_argument("--tokens", type=int, default=24, metavar="N")
    options = parser.parse_args()
    model, transcoders = load_model(options.model, device="cpu"), load_transcoders(options.transcoders)
    corpus = Corpus((options.corpus,), options.tokens, 0.1)
    windows = split_windows(model, read_corpus([options.corpus]), corpus, 0)[1]
    firsts = {window.document: window for window in reversed(windows)}
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    rows = []
    for window in list(firsts.values())[::-1][: options.prompts]:
        replacement = LocalReplacement(model, transcoders, list(window.tokens))
        targets = likely_targets(model, replacement.frozen)
        graph = attribution_graph(replacement, targets)
        influence = measure(graph)
        scores, pruned = graph_scores(graph, influence), prune(graph, influence=influence)
        found = validate_graph(model, transcoders, graph, edges=0, features=20).agreements()["features"]["none"]
        numbers = (
            len(replacement.features), len(pruned.nodes), len(pruned.edges), scores.replacement, scores.completeness,
            scores.completeness_strict, check_closure(replacement, targets), found.signs, found.pearson,
        )  # fmt: skip
        rows.append(numbers)
        assert model.tokenizer is not None
        text = str(model.tokenizer.decode(list(window.tokens)[1:])).replace("|", "/").replace("\n", " ")
        _show(text[:40], numbers)
    _show("mean", tuple(np.mean(rows, axis=0).tolist()))
    return 0


def _show(name: str, numbers: tuple[float, ...]) -> None:
    cells = [f"{n:.0f}" if i < 3 else f"{n:.0e}" if i == 6 else f"{n:.2f}" for i, n in enumerate(numbers)]
    print("| " + " | ".join((name, *cells)) + " |")


if __name__ == "__main__":
    sys.exit(main())

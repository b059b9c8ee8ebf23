"""Are names any good? Features of the embedded model, named and tested on documents that did not explain them.

    python benchmarks/labels.py [--documents 4000] [--features N] [--llm NAME --base-url URL] [--threads 2]

Names every feature of the embedded model's transcoders that fires in at least 20 windows by rules, applies each rule to the
*text* of held-out windows (10 that fire over the quantiles of their peaks, 10 that do not, half of those like the active
ones), and prints coverage, balanced accuracy with unclear features counted as 0.5, the same with the labels shuffled among
the features, and seconds per label. With --llm some features (--features, default 50) are named and judged by that model
too, with tokens per label.

The bar, for rules: balanced accuracy of at least 0.80, at least 60 % of the features named, shuffled labels within 0.03 of 0.5.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphs.evidence import Evidence
    from graphs.label import Label
    from graphs.node import NodeId
    from labelers.openai_settings import OpenAISettings

BARS = {"balanced accuracy": 0.80, "coverage": 0.60, "shuffled": 0.03}
LEAST_WINDOWS = 20
_SEED = 2**20 + 9  # text that the embedded model was not trained on in this order


def main() -> int:
    """Collects, names, tests, prints; gives 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4000, help="generated documents to look at features on")
    parser.add_argument("--features", type=int, help="only so many, drawn (default: all; 50 for a language model)")
    parser.add_argument("--llm", help="a model of an OpenAI-compatible endpoint")
    parser.add_argument("--base-url", help="the endpoint")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    start = time.perf_counter()
    evidence = collected(options.documents, options.threads)
    print(
        f"{len(evidence)} features fire in {LEAST_WINDOWS} windows or more; evidence {time.perf_counter() - start:.0f} s"
    )
    missed = _rules(_some(evidence, options.features))
    if options.llm:
        from labelers.openai_settings import OpenAISettings

        _language_model(_some(evidence, options.features or 50), OpenAISettings(options.llm, options.base_url))
    return int(missed)


def collected(documents: int, threads: int) -> dict[NodeId, Evidence]:
    """Evidence of all features that fire often enough."""
    import torch

    from discovery.corpus_files import Document
    from discovery.demo import corpus, model_directory, transcoder_directory
    from discovery.evidence import EvidenceSource, collect_evidence
    from discovery.loading import load_model
    from discovery.transcoder_source import load_transcoders
    from graphs.node import NodeId

    torch.set_num_threads(threads)
    transcoders = load_transcoders(transcoder_directory())
    texts = [Document(text, f"text {n}") for n, text in enumerate(islice(corpus.documents(_SEED), documents))]
    source = EvidenceSource(load_model(str(model_directory())), texts, transcoders)
    nodes = [NodeId("feature", one.layer, number) for one in transcoders for number in range(one.features)]
    return {item.node: item for item in collect_evidence(source, nodes) if item.windows >= LEAST_WINDOWS}


def _some(evidence: Mapping[NodeId, Evidence], count: int | None) -> dict[NodeId, Evidence]:
    nodes = list(evidence)
    chosen = nodes if count is None or count >= len(nodes) else random.Random(0).sample(nodes, count)
    return {node: evidence[node] for node in chosen}


def _rules(evidence: Mapping[NodeId, Evidence]) -> bool:
    from labelers.labeler import label_all
    from labelers.rule_judge import RuleJudge
    from labelers.rule_labeler import RuleLabeler
    from labelers.scoring import score_labels

    start = time.perf_counter()
    labels = label_all(RuleLabeler(), evidence.values()).labels
    seconds = time.perf_counter() - start
    accuracy, coverage, shuffled = _report("rules", score_labels(labels, evidence, RuleJudge()), seconds, {})
    okay = accuracy >= BARS["balanced accuracy"] and coverage >= BARS["coverage"]
    okay = okay and abs(shuffled - 0.5) <= BARS["shuffled"]
    print(
        f"bar: balanced accuracy {BARS['balanced accuracy']}, coverage {BARS['coverage']}: {'met' if okay else 'MISSED'}"
    )
    return not okay


def _language_model(evidence: Mapping[NodeId, Evidence], settings: OpenAISettings) -> None:
    from labelers.judge import LLMJudge
    from labelers.openai_labeler import label_nodes
    from labelers.rule_labeler import RuleLabeler
    from labelers.scoring import score_labels

    start = time.perf_counter()
    found = label_nodes(evidence, settings, fallback=RuleLabeler())
    seconds = time.perf_counter() - start
    print(f"{settings.model}: {len(found.failures)} of {len(evidence)} failed and are counted with the rules' label")
    _report(settings.model, score_labels(found.labels, evidence, LLMJudge(settings)), seconds, found.usage)


def _report(
    name: str, labels: Mapping[NodeId, Label], seconds: float, usage: Mapping[str, float]
) -> tuple[float, float, float]:
    """Prints a block; gives accuracy (unclear as 0.5), coverage and the shuffled labels' accuracy."""
    named = [label for label in labels.values() if not label.abstain]
    coverage = len(named) / max(1, len(labels))
    tokens = usage.get("tokens_in", 0) + usage.get("tokens_out", 0)
    print(
        f"\n{name}: {coverage:.1%} named, {1000 * seconds / len(labels):.1f} ms and {tokens / len(labels):.0f} tokens a label"
    )
    accuracy = shuffled = 0.5
    for test, chance in (("detection", 0.5), ("fuzzing", 0.5), ("intruder", 0.2)):
        scores = [label.scores[test] for label in named if test in label.scores]
        values = [label.scores[test].value if test in label.scores else chance for label in labels.values()]
        bases = [score.baseline for score in scores if score.baseline is not None]
        mean, base = sum(values) / len(values), sum(bases) / max(1, len(bases))
        alone = sum(score.value for score in scores) / max(1, len(scores))
        print(
            f"  {test:9}  {mean:.3f} (named alone {alone:.3f}, shuffled {base:.3f}, unparsed {sum(s.unparsed for s in scores)})"
        )
        if test == "detection":
            accuracy, shuffled = mean, base
    return accuracy, coverage, shuffled


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())

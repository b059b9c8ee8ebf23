"""Does tracing find the step between a city and its country's capital, and is that step what the answer depends on?

    python benchmarks/two_hop.py [--train N] [--features K] [--prompts N] [--json FILE]

The embedded model reads "The city of Lyon is in the country whose capital is" (`two-hop`, wordings in which the relation
stands last) and says Paris. Country features are chosen on training prompts alone: for every country the K features at the
city's position whose total effect on the answer, summed over the traced graphs of its cities, is largest; all countries'
together. On held-out prompts (cities that no training text brings together with the capital) only these features are set,
at the city's position, to what they are in the donor prompt (the same sentence about another country's city): in the model
itself with everything live, nothing scaled. Counted: how often the donor's capital becomes the likeliest next token;
beside it the same with as many random features among those active at that position in either prompt, and with all of those.

Bars: 80 % with the country's features, under 20 % with random ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import torch

from discovery.attribution import attribution_graph
from discovery.component_model import ComponentModel
from discovery.demo import model_directory, transcoder_directory
from discovery.intervened_run import Untouched, intervened_pass, untouched_pass
from discovery.intervention import Edit, prompts_of
from discovery.loading import load_model
from discovery.replacement import LocalReplacement
from discovery.targets import parse_targets
from discovery.task import PromptPair
from discovery.tasks.places import CITIES, COUNTRY_OF
from discovery.tasks.two_hop import generate
from discovery.tokenisation import TokenPair, tokenise
from discovery.transcoder import TranscoderSet
from discovery.transcoder_source import load_transcoders
from graphs.influence import prune
from graphs.total_effect import total_effects

Feature = tuple[int, int]
"""Layer and number."""
BARS = {"country": 0.8, "random": 0.2}


def city_of(prompt: str) -> str:
    """The city that a prompt names."""
    return next(city for city in CITIES if f" {city}" in prompt)


def country_effects(
    model: ComponentModel, transcoders: TranscoderSet, pair: TokenPair
) -> tuple[dict[Feature, float], set[Feature]]:
    """Total effects of the features at the city's position on answer - wrong answer; and which of them pruning keeps."""
    replacement = LocalReplacement(model, transcoders, torch.tensor(pair.clean))
    targets = parse_targets(model, replacement.frozen, [f"logit({pair.right[0][0]}) - logit({pair.wrong[0][0]})"])
    graph = attribution_graph(replacement, targets, share=1.0)
    effects = total_effects(graph, graph.targets)[0]
    there = {
        (node.layer, node.index): float(effects[place])
        for place, node in enumerate(graph.nodes)
        if node.kind == "feature" and node.position == pair.first_difference
    }
    kept = {(node.layer, node.index) for node in prune(graph).nodes if node.kind == "feature"}
    return there, {feature for feature in there if feature in kept}  # type: ignore[return-value]


def choose(
    model: ComponentModel, transcoders: TranscoderSet, texts: list[PromptPair], pairs: list[TokenPair], count: int
) -> dict[str, list[Feature]]:
    """The features of every country: largest mean total effect over its training prompts."""
    sums: dict[str, Counter[Feature]] = defaultdict(Counter)
    for text, pair in zip(texts, pairs, strict=True):
        for feature, effect in country_effects(model, transcoders, pair)[0].items():
            sums[COUNTRY_OF[city_of(str(text.clean))].name][feature] += effect
    return {country: [f for f, effect in found.most_common(count) if effect > 0] for country, found in sums.items()}


def values_at(
    untouched: Untouched, model: ComponentModel, transcoders: TranscoderSet, position: int
) -> dict[Feature, float]:
    """Activations of the features that are active at one position."""
    outcome = intervened_pass(model, transcoders, untouched.prompts, untouched=untouched)
    found = {}
    for transcoder in transcoders:
        row = outcome.activations(transcoder.layer)[0, position]
        found |= {(transcoder.layer, int(i)): float(row[i]) for i in row.nonzero().squeeze(1)}
    return found


def answer(model: ComponentModel, transcoders: TranscoderSet, pair: TokenPair, values: dict[Feature, float]) -> int:
    """The likeliest next token when some features at the city's position have these activations."""
    where = torch.arange(len(pair.clean)) == pair.first_difference
    edits = [
        Edit("feature", layer, index, operation="set", value=v, cells=where[None])
        for (layer, index), v in values.items()
    ]
    return int(intervened_pass(model, transcoders, prompts_of([pair.clean]), edits).logits[0].argmax())


def measure(train: int, count: int, prompts: int, seed: int = 0) -> dict[str, object]:
    """All figures."""
    model, transcoders = load_model(model_directory(), device="cpu"), load_transcoders(transcoder_directory())
    texts = generate(train, seed, "train", order="relation_last")
    chosen = choose(model, transcoders, texts, list(tokenise(texts, model.tokenizer)), count)
    country_features = {feature for found in chosen.values() for feature in found}
    held_out = generate(prompts, seed, "held-out", order="relation_last")
    rng, counts, on_path = random.Random(seed), Counter(), 0
    for text, pair in zip(held_out, tokenise(held_out, model.tokenizer), strict=True):
        position = pair.first_difference
        donor = values_at(untouched_pass(model, prompts_of([pair.corrupt])), model, transcoders, position)
        own = values_at(untouched_pass(model, prompts_of([pair.clean])), model, transcoders, position)
        countries = [COUNTRY_OF[city_of(str(prompt))].name for prompt in (text.clean, text.corrupt)]
        features = country_features & {*own, *donor}
        drawn = set(rng.sample(sorted({*own, *donor}), len(features)))
        everything = {*own, *donor}
        for name, some in (("country", features), ("random", drawn), ("all", everything), ("none", set[Feature]())):
            said = answer(model, transcoders, pair, {feature: donor.get(feature, 0.0) for feature in some})
            counts[name, "donor"] += said == pair.wrong[0][0]
            counts[name, "own"] += said == pair.right[0][0]
        counts["features", "set"] += len(features)
        counts["features", "active"] += len(everything)
        on_path += bool(country_effects(model, transcoders, pair)[1] & set(chosen.get(countries[0], ())))
    total = len(held_out)
    sets = ("none", "country", "random", "all")
    shares = {f"{name}_{side}": counts[name, side] / total for name in sets for side in ("donor", "own")}
    return {
        "held_out_prompts": total,
        "features_a_country": count,
        "country_features": len(country_features),
        "country_features_on_the_path": on_path / total,
        "features_set": counts["features", "set"] / total,
        "features_active_there": counts["features", "active"] / total,
        **shares,
        "layers_of_the_features": dict(Counter(layer for found in chosen.values() for layer, _ in found)),
    }  # fmt: skip


def main() -> int:
    """Prints the figures; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=int, default=400, metavar="N", help="training prompts that features are chosen on"
    )
    parser.add_argument("--features", type=int, default=6, metavar="K", help="features of each country")
    parser.add_argument("--prompts", type=int, default=128, metavar="N", help="held-out prompts")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found = measure(options.train, options.features, options.prompts)
    print(json.dumps(found, indent=1))
    if options.json is not None:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["country_donor"] >= BARS["country"] and found["random_donor"] < BARS["random"] else 1  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())

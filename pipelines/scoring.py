"""The scores of a run, and those that other draws of the pairs or other seeds would have given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.config import RunConfig
from pipelines.default_method import AUTO, CANDIDATES
from pipelines.inputs import Inputs
from pipelines.store import UNFINISHED, UNFINISHED_RERUNS, RunStore
from pipelines.stored_journal import StoredJournal
from pipelines.stored_pieces import StoredPieces

if TYPE_CHECKING:
    from discovery.bootstrap import Resamples
    from discovery.methods import Method
    from discovery.scoring import OnBatch
    from graphs.node_scores import NodeScores
    from graphs.scores import EdgeScores


def score(
    config: RunConfig, inputs: Inputs, store: RunStore, watch: OnBatch | None = None
) -> tuple[EdgeScores | NodeScores, dict[str, np.ndarray]]:
    """The scores, and tables by what was drawn: `resamples` of the pairs and `seeds`, where there are any.

    A table is [draw edge] over the possible edges, or [draw node] where the method scores nodes. watch: also called after
    each batch by a method (no ensemble) that gives the scores of single pairs; what it raises ends the scoring.
    """
    from discovery.foreign_scores import read_scores

    if config.method.file is not None:
        with inputs.clock.time("scores"):
            return read_scores(Path(config.method.file), inputs.model.topology), {}
    lines = methods_of(config)
    if len(lines) == 1:
        return _score(config, *lines[0], inputs, store, watch)
    return _ensemble([_score(config, *each, inputs, store) for each in lines])


def methods_of(config: RunConfig) -> list[tuple[Method, Any]]:
    """The configured method with its options; several where their names are joined by +. An option goes to all that have it.

    Of the default whose choice is open (`AUTO`), the first that it may be. Raises ValueError for unknown names and
    options, and for methods that cannot be part of an ensemble.
    """
    from discovery.methods import method

    if config.method.name == AUTO:
        return [(line, line.options(config.method.options)) for line in map(method, CANDIDATES)][:1]
    lines = [method(name) for name in config.method.name.split("+")]
    if len(lines) == 1:
        return [(lines[0], lines[0].options(config.method.options))]
    owned = [{field.name for field in dataclasses.fields(line.load().Options)} for line in lines]
    for name in config.method.options:
        if not any(name in own for own in owned):
            lines[0].options({name: None})  # says which options it has
    for line in lines:
        if line.learned or line.resumes or line.name == "atp":
            raise ValueError(
                f"method {line.name!r} cannot be part of an ensemble: join methods that score edges in one go"
            )
    given = [{name: value for name, value in config.method.options.items() if name in own} for own in owned]
    return [(line, line.options(some)) for line, some in zip(lines, given, strict=True)]


def rule_of(config: RunConfig) -> Literal["top", "greedy"]:
    """How circuits are cut out of scores: by the settings, else as the method asks for (an ensemble for nothing)."""
    from discovery.methods import METHODS

    if config.selection.rule != "auto":
        return config.selection.rule
    own = METHODS.get(config.method.name) if config.method.file is None else None
    return "top" if own is None else own.selection


def _ensemble(
    parts: list[tuple[EdgeScores | NodeScores, dict[str, np.ndarray]]],
) -> tuple[EdgeScores, dict[str, np.ndarray]]:
    """The mean ranks of several methods' scores; where all have draws of a kind, of each draw alike."""
    from discovery.stability import spread
    from graphs.ensemble import combined, mean_rank
    from graphs.scores import EdgeScores

    tables = [scores for scores, _ in parts if isinstance(scores, EdgeScores)]
    if len(tables) < len(parts):
        raise ValueError("an ensemble ranks edges, and one of its methods was told to score nodes")
    scores, draws = mean_rank(tables), {}
    for kind in ("resamples", "seeds"):
        if all(kind in drawn for _, drawn in parts):
            together = zip(*(drawn[kind] for _, drawn in parts), strict=True)
            draws[kind] = np.stack([combined(rows) for rows in together])
    if "resamples" in draws:
        scores = dataclasses.replace(scores, stderr=spread(draws["resamples"], scores.topology))
    return scores, draws


def _score(
    config: RunConfig,
    line: Method,
    options: Any,
    inputs: Inputs,
    store: RunStore,
    watch: OnBatch | None = None,
) -> tuple[EdgeScores | NodeScores, dict[str, np.ndarray]]:
    """Of one method."""
    from discovery.bootstrap import Resamples
    from discovery.resumed_model import ResumedModel
    from graphs.scores import EdgeScores

    wanted, topology, draws = config.selection, inputs.model.topology, {}
    in_one_go = wanted.resamples >= 2 and wanted.reruns < 2
    resamples = Resamples(topology, inputs.train, wanted.resamples, config.seed) if in_one_go else None
    with inputs.clock.time("scores"):
        on_batch = _both(resamples, watch)
        if line.learned:
            scores = _learn(line, options, inputs, store)
        else:
            extra: dict[str, Any] = {"journal": StoredJournal(store, UNFINISHED)} if line.resumes else {}
            model = inputs.model if line.resumes else ResumedModel(inputs.model, StoredPieces(store))
            scores = line.load().score(model, inputs.train, options, on_batch, **extra)
        if wanted.seeds >= 2 and hasattr(options, "seed"):
            draws["seeds"] = _other_seeds(line, options, inputs, scores, wanted.seeds)
        if wanted.reruns >= 2 and line.name != "random":
            draws["resamples"] = _reruns(config, line, options, inputs, store)
    tables = None if resamples is None else resamples.tables()
    if isinstance(scores, EdgeScores) and line.gradients and config.transcoders.recheck:
        scores, tables = _recheck(config, inputs, store, scores, tables)
    if tables is not None:
        draws["resamples"] = tables
    return scores, draws


def _learn(line: Method, options: Any, inputs: Inputs, store: RunStore) -> EdgeScores:
    """The scores of a method that learns masks; constants that were learned with the masks are stored."""
    journal = StoredJournal(store, UNFINISHED)
    learned = line.load_learning().learn(inputs.model, inputs.train, options, journal)
    if learned.ablation is not inputs.train.ablation:
        journal.clear()  # first: a second learning must not begin at both, these constants and what was unfinished
        inputs.replace_ablation(learned.ablation)
        store.write_constants(learned.ablation)
    return learned.scores


def _both(resamples: Resamples | None, watch: OnBatch | None) -> OnBatch | None:
    """What a method calls after each batch."""
    if resamples is None or watch is None:
        return watch if resamples is None else resamples.add
    add, see = resamples.add, watch

    def both(number: int, scores: Any) -> None:
        add(number, scores)
        see(number, scores)

    return both


def _other_seeds(line: Method, options: Any, inputs: Inputs, scores: EdgeScores | NodeScores, seeds: int) -> np.ndarray:
    """The scores of the method with its own seed and with the next ones: [seed place]."""
    module, tables = line.load(), [_flat(scores)]
    known: dict[str, Any] = {"known": scores} if line.reuses else {}
    for step in range(1, seeds):
        other = dataclasses.replace(options, seed=options.seed + step)
        tables.append(_flat(module.score(inputs.model, inputs.train, other, **known)))
    return np.stack(tables)


def _reruns(config: RunConfig, line: Method, options: Any, inputs: Inputs, store: RunStore) -> np.ndarray:
    """The scores of the method on resamples of the pairs: [resample place]. A stopped run goes on with the next one."""
    from tqdm import tqdm

    from discovery.bootstrap import resampled
    from discovery.journal import ArrayJournal
    from discovery.statistics import resample_counts

    count, work = config.selection.reruns, inputs.train
    journal = ArrayJournal(StoredJournal(store, UNFINISHED_RERUNS))
    kept = journal.read()  # of several methods, each under its name
    tables = list(kept.get(line.name, ()))
    drawn = resample_counts(work.pair_count, count, config.seed)[len(tables) :]
    for counts in tqdm(drawn, desc="reruns", unit="run", initial=len(tables), total=count, leave=False):
        again = resampled(work, counts)
        if line.learned:
            scores = line.load_learning().learn(inputs.model, again, options).scores
        else:
            scores = line.load().score(inputs.model, again, options)
        tables.append(_flat(scores))
        journal.write({**kept, line.name: np.stack(tables)})
    return np.stack(tables)


def _flat(scores: EdgeScores | NodeScores) -> np.ndarray:
    """By what edges (the possible ones) or nodes are selected."""
    from graphs.scores import EdgeScores

    return scores.ranking[~np.isnan(scores.values)] if isinstance(scores, EdgeScores) else scores.values


def _recheck(
    config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores, tables: np.ndarray | None
) -> tuple[EdgeScores, np.ndarray | None]:
    """On a feature graph, the scores with the edges of nodes that gradients misjudge scored by real runs."""
    from discovery.bootstrap import Resamples
    from discovery.feature_model import FeatureModel
    from discovery.gate_check import recheck

    model = inputs.model
    if not isinstance(model, FeatureModel):
        return scores, tables
    resamples, on_batch = None, None
    if tables is not None:
        resamples = Resamples(model.topology, inputs.train, config.selection.resamples, config.seed)
        on_batch: OnBatch | None = resamples.add
    with inputs.clock.time("gates"):
        exact, report = recheck(model, inputs.train, scores, config.transcoders.tolerance, on_batch=on_batch)
    store.note(inputs.clock.seconds, gates=report.to_json())
    again = None if resamples is None else resamples.tables()
    if tables is not None and again is not None:
        changed = (exact.values != scores.values)[model.topology.possible]
        tables = np.where(changed[None, :], again, tables)
    return exact, tables

"""`edgewise trace` over a task: both prompts of every pair traced, one graph of all, and how the two sides differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import RunConfig
from pipelines.discover import settings_of
from pipelines.fingerprint import edgewise_version, hash_pairs, hash_settings, versions
from pipelines.inputs import read_task
from pipelines.model_source import hash_model, load, model_title
from pipelines.settings import ConfigError
from pipelines.store import CONTRAST, EXPORTS, TASK_GRAPH, RunStore
from pipelines.toml_text import to_toml
from pipelines.trace import TraceSettings, check_tokens
from pipelines.transcoders import hash_transcoders, read_transcoders, transcoders_place

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.tokenisation import TokenPair
    from discovery.transcoder import TranscoderSet
    from graphs.pruned import PrunedGraph
    from graphs.task_graph import TaskGraph

Alignment = Literal["auto", "position", "end", "changed"]
PAIRS = 20
"""Pairs that are traced where no limit is given."""
SIDES = ("clean", "corrupt")


def trace_task(
    config: RunConfig, settings: TraceSettings, alignment: Alignment, least: float, overwrite: bool = False
) -> tuple[RunStore, TaskGraph, TaskGraph]:
    """Traces a task's pairs into a run directory; gives the graph of the clean prompts and the contrast of clean and corrupt.

    What is explained is each pair's right answer less its wrong one (their first tokens), on both sides. least: share of the
    prompts in which an edge must be to stay. Traced prompts stay on disk, so that a rerun goes on where it stopped.
    """
    from graphs.alignment import Prompts, align, contrast

    if settings.targets:
        raise ConfigError("--targets belongs to a prompt: of a task the right answer less the wrong one is explained")
    if not 0 <= least <= 1:
        raise ConfigError(f"--least-frequency {least}: a share, from 0 to 1")
    clock = Clock()
    limited = dataclasses.replace(config.task, limit=PAIRS if config.task.limit is None else config.task.limit)
    config = dataclasses.replace(config, task=limited)
    task = read_task(config)
    place = transcoders_place(settings.transcoders.name, settings.model)
    described = {"command": "trace", "settings": settings_of(config), "trace": dataclasses.asdict(settings)}
    inputs = {
        "model": hash_model(settings.model), "transcoders": hash_transcoders(place), "task": hash_pairs(task.pairs)
    }  # fmt: skip
    store = RunStore(config.out or Path("runs") / f"trace-{task.name}-{hash_settings(described)}")
    store.open({"edgewise": edgewise_version(), "config": described, "inputs": inputs}, to_toml(config), overwrite)
    with clock.time("model"):
        model = load(settings.model)
    pairs = _pairs(config, model, task.pairs)
    sides = _traced(store, model, place, pairs, settings, clock)
    spans = {side: _spans(pairs, side, alignment) for side in SIDES}
    prompts = {side: Prompts(sides[side], spans[side]) for side in SIDES}
    title = f"{task.name} in {model_title(config.model)}"
    together = align(prompts["clean"], least_frequency=least, title=f"{title}: {len(pairs)} prompts")
    differing = contrast(
        prompts["clean"],
        prompts["corrupt"],
        least_frequency=least,
        title=f"{title}: clean less corrupt, {len(pairs)} pairs",
    )
    _write(store, together, differing)
    store.finish("task graph", None)
    store.note(clock.seconds, versions=versions(), peak_memory_bytes=peak_memory_bytes())
    return store, together, differing


def _write(store: RunStore, together: TaskGraph, differing: TaskGraph) -> None:
    from graphs.exporters import TASK_GRAPH_EXPORTERS

    for name, graph in ((TASK_GRAPH, together), (CONTRAST, differing)):
        store.write_bytes(name, TASK_GRAPH_EXPORTERS["json"](graph))
    export_traced_task(store, ("svg",))


def export_traced_task(store: RunStore, formats: Sequence[str]) -> list[Path]:
    """Writes both stored graphs of a traced task in some formats, with the names that the run has. Raises ConfigError naming a
    format that does not exist."""
    from graphs.exporters import TASK_GRAPH_EXPORTERS
    from graphs.task_graph_json import read_task_graph
    from pipelines.label import label_texts, named_labels

    for name in formats:
        if name not in TASK_GRAPH_EXPORTERS:
            known = ", ".join(TASK_GRAPH_EXPORTERS)
            raise ConfigError(f"there is no exporter {name!r} of graphs of many prompts (exporters: {known})")
    texts, named, written = label_texts(store), named_labels(store), []
    for file in (TASK_GRAPH, CONTRAST):
        graph = read_task_graph(store.path(file).read_bytes())
        graph = dataclasses.replace(graph, labels={**texts, **graph.labels}, named=named)
        for name in formats:
            line = TASK_GRAPH_EXPORTERS[name]
            written.append(store.write_bytes(f"{EXPORTS}/{Path(file).stem}{line.suffix}", line(graph)))
    return written


def _pairs(config: RunConfig, model: ComponentModel, pairs: Sequence[object]) -> tuple[TokenPair, ...]:
    from discovery.tokenisation import tokenise

    found = tokenise(pairs, model.tokenizer, config.task.bos, config.task.chat_template)  # type: ignore[arg-type]
    for pair in found:
        check_tokens((*pair.clean, *pair.right[0]), model)
        check_tokens(pair.corrupt, model)
        if not pair.wrong:
            raise ConfigError(f"row {pair.row}: a pair without a wrong answer has no difference to explain")
        if pair.right[0][0] == pair.wrong[0][0]:
            raise ConfigError(f"row {pair.row}: right and wrong answer begin with the same token")
    return found


def _traced(
    store: RunStore,
    model: ComponentModel,
    place: str,
    pairs: Sequence[TokenPair],
    settings: TraceSettings,
    clock: Clock,
) -> dict[str, list[PrunedGraph]]:
    """Pruned graphs of both sides: those on disk, and the others traced."""
    from graphs.attribution_json import export_json, read_graph

    transcoders: TranscoderSet | None = None
    sides: dict[str, list[PrunedGraph]] = {side: [] for side in SIDES}
    with (
        clock.time("attribution"),
        tqdm(total=2 * len(pairs), desc="trace", unit="prompt", delay=1, leave=False) as bar,
    ):
        for number, pair in enumerate(pairs):
            for side in SIDES:
                name = f"prompts/{number:04}-{side}.json"
                if store.path(name).exists():
                    graph = read_graph(store.path(name).read_bytes())
                else:
                    transcoders = transcoders or read_transcoders(place, settings.transcoders)
                    graph = _trace(model, transcoders, pair, pair.clean if side == "clean" else pair.corrupt, settings)
                    store.write_bytes(name, export_json(graph))
                sides[side].append(graph)
                bar.update()
    return sides


def _trace(
    model: ComponentModel, transcoders: TranscoderSet, pair: TokenPair, tokens: Sequence[int], settings: TraceSettings
) -> PrunedGraph:
    from discovery.attribution import attribution_graph
    from discovery.closure import check_closure
    from discovery.replacement import LocalReplacement
    from discovery.targets import parse_targets
    from discovery.token_text import token_texts
    from graphs.influence import prune

    replacement = LocalReplacement(model, transcoders, tokens, fixed_prefix=settings.fixed_prefix)
    wanted = f"logit({pair.right[0][0]}) - logit({pair.wrong[0][0]})"
    targets = parse_targets(model, replacement.frozen, [wanted])
    closure = check_closure(replacement, targets)
    graph = attribution_graph(
        replacement,
        targets,
        share=settings.keep,
        max_features=settings.max_features,
        tokens=token_texts(tokens, model.tokenizer),
        facts={"closure": closure, "active_features": len(replacement.features), "row": pair.row},
    )
    return prune(graph, settings.node_threshold, settings.edge_threshold)


def _spans(pairs: Sequence[TokenPair], side: str, alignment: Alignment) -> list[Mapping[int, str]] | None:
    """How positions of different prompts are matched; None leaves it to their numbers, or their distance from the end."""
    lengths = {len(tokens) for pair in pairs for tokens in (pair.clean, pair.corrupt)}
    if alignment == "end" or (alignment in ("auto", "position") and len(lengths) == 1):
        return None if len(lengths) > 1 or alignment != "end" else [_from_end(pair, side) for pair in pairs]
    if alignment == "position":
        return [{position: f"p{position}" for position in range(len(getattr(pair, side)))} for pair in pairs]
    return [changed_spans(pair.clean, pair.corrupt, side) for pair in pairs]


def _from_end(pair: TokenPair, side: str) -> dict[int, str]:
    width = len(getattr(pair, side))
    return {position: "last" if position == width - 1 else f"last_{width - 1 - position}" for position in range(width)}


def changed_spans(clean: Sequence[int], corrupt: Sequence[int], side: str) -> dict[int, str]:
    """Spans by what the pair changes: first, before, changed (changed_2, ... with between, ... in front), after, last.

    Prompts of different lengths have one changed span: what is left when the tokens that both begin and end with are
    taken away.
    """
    tokens = clean if side == "clean" else corrupt
    if len(clean) == len(corrupt):
        differs = [one != other for one, other in zip(clean, corrupt)]
    else:
        shorter = min(len(clean), len(corrupt))
        begin = next((i for i in range(shorter) if clean[i] != corrupt[i]), shorter)
        end = next((i for i in range(shorter - begin) if clean[-1 - i] != corrupt[-1 - i]), shorter - begin)
        differs = [begin <= position < len(tokens) - end for position in range(len(tokens))]
    names: dict[int, str] = {}
    runs, total = 0, sum(now and not before for now, before in zip(differs, [False, *differs]))
    for position, now in enumerate(differs):
        if now:
            runs += position == 0 or not differs[position - 1]
            names[position] = "changed" if runs == 1 else f"changed_{runs}"
        elif position == len(differs) - 1:
            names[position] = "last"
        elif runs == 0:
            names[position] = "first" if position == 0 else "before"
        elif runs == total:
            names[position] = "after"
        else:
            names[position] = "between" if runs == 1 else f"between_{runs}"
    return names

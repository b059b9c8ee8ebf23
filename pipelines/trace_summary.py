"""What `edgewise trace` says when it is done, as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.summary import number, table

if TYPE_CHECKING:
    from graphs.pruned import PrunedGraph
    from graphs.task_graph import TaskGraph


def trace_summary(graph: PrunedGraph) -> str:
    """The table of `edgewise trace`."""
    facts, scores = graph.facts, graph.scores
    nodes, edges = graph.whole or (0, 0)
    lines = [
        graph.heading,
        "",
        f"active        {facts.get('active_features', 0):,} features; {nodes:,} nodes and {edges:,} edges stored",
        f"pruned        {len(graph.nodes):,} nodes, {len(graph.edges):,} edges",
    ]
    if scores is not None:
        lines += [
            f"replacement   {number(scores.replacement)}  (share of the influence that starts at tokens, not errors)",
            f"completeness  {number(scores.completeness)}  (strict: {number(scores.completeness_strict)})",
        ]
    if "closure" in facts:
        lines.append(f"closure       {facts['closure']:.0e}  (rows with every constant against the model's own values)")
    validation = facts.get("validation")
    if validation is not None:
        exact = validation["exactness"]
        lines.append(f"exactness     {exact['within']} of {exact['edges']} strongest edges, everything frozen")
        for name, title in (("attention", "attention held"), ("none", "all live")):
            found = validation["agreement"]["features"][name]
            lines.append(
                f"interventions {number(found['signs'])} signs agree, correlation {number(found['pearson'])} "
                f"({found['count']} effects of features, {title})"
            )
    if facts.get("head_flow"):
        heads = [f"{head} {share:.2f}" for head, share in list(facts["head_flow"].items())[:6]]
        lines.append(f"heads         {', '.join(heads)}  (influence on the targets that sources send through them)")
    return "\n".join([*lines, "", *_strongest_lines(graph), ""])


def task_trace_summary(together: TaskGraph, differing: TaskGraph) -> str:
    """The tables of `edgewise trace` over a task."""
    from graphs.task_graph import wilson

    rows = [("edge", "prompts", "95 %", "share", "weight")]
    low, high = wilson(together.edge_counts, together.prompts)
    order = sorted(range(len(together.edges)), key=lambda i: -abs(float(together.shares[0, i])))
    for place in order[:10]:
        rows.append(
            (
                together.edge_names[place],
                f"{int(together.edge_counts[0, place])}/{together.prompts}",
                f"[{low[0, place]:.2f}, {high[0, place]:.2f}]",
                number(float(together.shares[0, place]), 3),
                number(float(together.weights[0, place]), 3),
            )
        )
    return "\n".join([together.title, "", *table(rows, left=1), "", *_contrast_lines(differing), ""])


def _contrast_lines(graph: TaskGraph, most: int = 10) -> list[str]:
    rows: list[tuple[str, ...]] = [("edge", "clean", "corrupt", "difference", "error", "same sign")]
    for place in sorted(range(len(graph.edges)), key=lambda i: -abs(float(graph.effect[i])))[:most]:
        rows.append(
            (
                graph.edge_names[place],
                *(f"{int(count)}/{graph.prompts}" for count in graph.edge_counts[:, place]),
                number(float(graph.effect[place]), 3),
                number(float(graph.stderr[place]), 3),
                number(float(graph.agreement[place])),
            )
        )
    return [graph.title, "", *table(rows, left=1)]


def _strongest_lines(graph: PrunedGraph, most: int = 10) -> list[str]:
    """The most influential features and errors, and what is explained."""
    rows = [("node", "influence", "activation", "label")]
    for place in graph.targets.tolist():
        rows.append((str(graph.nodes[place]), "target", number(float(graph.activations[place])), _label(graph, place)))
    inner = [i for i, node in enumerate(graph.nodes) if node.kind in ("feature", "error") and i not in graph.targets]
    for place in sorted(inner, key=lambda i: -graph.influence[i])[:most]:
        active = graph.nodes[place].kind == "feature"
        value = number(float(graph.activations[place])) if active else "-"
        rows.append((str(graph.nodes[place]), number(float(graph.influence[place]), 3), value, _label(graph, place)))
    return table(rows, left=1)


def _label(graph: PrunedGraph, place: int) -> str:
    return repr(graph.label(graph.nodes[place])) if graph.label(graph.nodes[place]) else "-"

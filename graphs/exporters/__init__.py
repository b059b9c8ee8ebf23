"""Exporters, and the tables that name them. `EXPORTERS["svg"](view)` gives bytes; nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from graphs.pruned import PrunedGraph
    from graphs.task_graph import TaskGraph
    from graphs.view import CircuitView

Exported = TypeVar("Exported")


@dataclass(frozen=True)
class Exporter(Generic[Exported]):
    """One format of one kind of graph. Its module is imported when it is first called."""

    module: str
    """Where it lives."""
    function: str
    """Its name there: a function that takes what is exported and gives bytes."""
    suffix: str
    """File name ending, with the dot."""
    description: str
    """One line for lists."""

    def __call__(self, view: Exported) -> bytes:
        """The file's content. Raises ExporterUnavailable where the machine lacks what the format needs."""
        return getattr(import_module(self.module), self.function)(view)


EXPORTERS: dict[str, Exporter[CircuitView]] = {
    "json": Exporter("graphs.exporters.circuit_json", "export_json", ".json", "lossless; read back by edgewise"),
    "svg": Exporter("graphs.exporters.svg", "export_svg", ".svg", "picture, drawn without further programs"),
    "dot": Exporter("graphs.exporters.dot", "export_dot", ".dot", "Graphviz source"),
    "graphml": Exporter(
        "graphs.exporters.graphml", "export_graphml", ".graphml", "for yEd, Gephi, Cytoscape, networkx"
    ),
    "eap-ig": Exporter(
        "graphs.exporters.eap_ig", "export_eap_ig", ".eap-ig.json", "graph file of EAP-IG and MIB; read back"
    ),
    "png": Exporter(
        "graphs.exporters.graphviz_image", "export_png", ".png", "picture laid out by Graphviz (needs dot)"
    ),
    "pdf": Exporter(
        "graphs.exporters.graphviz_image", "export_pdf", ".pdf", "picture laid out by Graphviz (needs dot)"
    ),
    "dot-svg": Exporter(
        "graphs.exporters.graphviz_image", "export_svg", ".dot.svg", "picture laid out by Graphviz (needs dot)"
    ),
}
"""Formats of a circuit, by the names that users type."""
ATTRIBUTION_EXPORTERS: dict[str, Exporter[PrunedGraph]] = {
    "json": Exporter("graphs.attribution_json", "export_json", ".json", "lossless; read back by edgewise"),
    "svg": Exporter("graphs.exporters.attribution_svg", "export_svg", ".svg", "picture, tokens below, outputs on top"),
    "dot": Exporter("graphs.exporters.attribution_networks", "export_dot", ".dot", "Graphviz source"),
    "graphml": Exporter(
        "graphs.exporters.attribution_networks", "export_graphml", ".graphml", "for yEd, Gephi, Cytoscape, networkx"
    ),
    "neuronpedia": Exporter(
        "graphs.exporters.neuronpedia", "export_neuronpedia", ".neuronpedia.json", "for neuronpedia.org; read back"
    ),
}
"""Formats of a pruned attribution graph."""
TASK_GRAPH_EXPORTERS: dict[str, Exporter[TaskGraph]] = {
    "json": Exporter("graphs.task_graph_json", "export_json", ".json", "lossless; read back by edgewise"),
    "svg": Exporter(
        "graphs.exporters.attribution_svg", "export_task_svg", ".svg", "picture, spans below, outputs on top"
    ),
}
"""Formats of a graph of many prompts."""
FIGURES: dict[str, str] = {"heatmap": "graphs.exporters.heatmap"}
"""Modules that draw something else than a circuit, with arguments of their own."""

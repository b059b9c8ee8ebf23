"""GraphML, for graph programs."""

from __future__ import annotations

from io import BytesIO

import networkx as nx

from graphs.escape import clean
from graphs.named import clean_attributes
from graphs.view import CircuitView


def export_graphml(view: CircuitView) -> bytes:
    """The circuit as a directed multigraph. Nodes: kind, layer, index, label, and of labels
    what `graphs.named.clean_attributes` gives. Edges: port, score, abs_score, edge
    (its name).

    Dead ends are kept. The graph's attributes hold the title, the numbers of the evaluation and the method.
    """
    source = view.circuit.to_networkx()
    graph = nx.MultiDiGraph(title=clean(view.title), summary=clean(view.summary), metric=clean(view.metric))
    if view.circuit.scores is not None:
        graph.graph["method"] = clean(view.circuit.scores.method)
    for name, attributes in source.nodes(data=True):
        known = {key: value for key, value in attributes.items() if value is not None}
        if "position" in known:
            known["position"] = str(known["position"])
        if name in view.named:
            known |= clean_attributes(view.named[name])
        graph.add_node(name, label=clean(view.texts.get(str(name), str(name))), **known)
    for start, end, port, attributes in source.edges(keys=True, data=True):
        known = {key: value for key, value in attributes.items() if value is not None}
        if "score" in known:
            known["abs_score"] = abs(known["score"])
        graph.add_edge(start, end, key=f"{attributes['edge']} {end}" if port else attributes["edge"], **known)
    stream = BytesIO()
    nx.write_graphml_xml(graph, stream, encoding="utf-8", prettyprint=True)
    return stream.getvalue()

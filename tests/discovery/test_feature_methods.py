"""Node scores, the fixes of AtP* and information flow on feature graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.component_model import ComponentModel
from discovery.feature_model import FeatureModel
from discovery.model import Point
from discovery.node_effects import Fixes
from discovery.recording_hooks import attention_writer, mlp_writer
from discovery.rules import RELEVANCE
from discovery.transcoder import Site
from tests.discovery.residual_model import LOGIT_DIFFERENCE as METRIC
from tests.discovery.tiny_models import tiny_batch, tiny_model
from tests.discovery.tiny_transcoders import TranscoderKind, tiny_transcoders

CLEAN = [Point(1.0, 1.0)]
CASES: dict[str, tuple[TranscoderKind, Site, Site]] = {
    "gpt2": ("topk", "residual-mid", "mlp-raw"),
    "gemma2": ("jumprelu", "mlp-norm", "mlp-raw"),
    "gptj": ("jumprelu", "mlp-out", "mlp-out"),
    "llama": ("skip", "mlp-in", "mlp-raw"),
}
every_case = pytest.mark.parametrize("family", CASES)


@cache
def load(family: str, chosen: tuple[int, ...] = (0, 2, 3, 12), heads: bool = True) -> FeatureModel:
    """Some features of layer 1; layer 0 stays an MLP, layer 2 is an error node alone. No test changes it."""
    kind, reads, writes = CASES[family]
    base = ComponentModel(tiny_model(family))
    whole = tiny_transcoders(base, kind, reads=reads, writes=writes)
    return FeatureModel(base, replace(whole, transcoders=whole.transcoders[1:]), {1: chosen}, heads)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@every_case
def test_a_nodes_score_is_the_sum_of_its_edges(family: str) -> None:
    model, batch = load(family), tiny_batch()
    for ablation in (COUNTERFACTUAL, ZERO):
        nodes = model.linearize_nodes(batch, METRIC, ablation).sources
        assert relative(nodes, model.linearize(batch, METRIC, CLEAN, ablation).sum(2)) < 1e-5
        bare = load(family, heads=False)
        rows = [model.topology.source_index[node] for node in bare.topology.sources]
        assert relative(bare.linearize_nodes(batch, METRIC, ablation).sources, nodes[:, rows]) < 1e-5


@every_case
def test_grad_drop_detaches_one_layer_at_a_time(family: str) -> None:
    model, batch = load(family), tiny_batch()
    edges = model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, Fixes(grad_drop=True))
    expected = torch.zeros_like(edges)
    for block in model.blocks:
        modules = (attention_writer(block), mlp_writer(block))
        handles = [module.register_forward_hook(lambda _m, _a, out: out.detach() + 0 * out) for module in modules]
        try:
            scores = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
        finally:
            for handle in handles:
                handle.remove()
        outside = torch.tensor([slot.node.layer != block.index for slot in model.topology.targets])
        expected += (scores * outside).abs() / (len(model.blocks) - 1)
    assert relative(edges, expected) < 1e-5


@every_case
@pytest.mark.parametrize("grad_drop", [False, True])
def test_error_nodes_alone_are_the_component_graph(family: str, grad_drop: bool) -> None:
    model, batch = load(family, chosen=()), tiny_batch()
    base, fixes = ComponentModel(model.hf), Fixes(qk_fix=True, grad_drop=grad_drop)
    expected = base.linearize_fixed(batch, METRIC, COUNTERFACTUAL, fixes)
    assert relative(model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, fixes), expected) < 1e-4
    if not grad_drop:
        assert relative(model.flow(batch, 0.05), base.flow(batch, 0.05)) < 1e-4
        expected = base.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE)
        assert relative(model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE), expected) < 1e-4


@every_case
def test_features_and_errors_share_what_their_mlp_reads_and_writes(family: str) -> None:
    """Sums over a layer's nodes are the MLP's: of relevance that flows in, and of what their writes do to later slots."""
    model, batch = load(family), tiny_batch()
    base = ComponentModel(model.hf)
    parts = [row for row, node in enumerate(model.topology.sources) if node.kind != "head" and node.layer == 1]
    columns = [c for c, slot in enumerate(model.topology.targets) if slot.port is None and slot.node.layer == 1]
    assert len(parts) == len(columns) == 5
    mlp = [str(node) for node in base.topology.sources].index("m1")
    for rules in (Fixes(), Fixes(qk_fix=True)):
        said = model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, rules)
        whole = base.linearize_fixed(batch, METRIC, COUNTERFACTUAL, rules)
        assert relative(said[:, parts, -1].sum(1), whole[:, mlp, -1]) < 1e-4
    said = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE)
    whole = base.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE)
    slot = [str(one) for one in base.topology.targets].index("m1")
    before = int(base.topology.possible[:, slot].sum())
    assert relative(said[:, :before, columns].sum(2), whole[:, :before, slot]) < 1e-4
    sums = model.flow(batch, 0.0).sum(1)
    assert torch.allclose(sums[sums > 0], torch.ones(()), atol=1e-5)

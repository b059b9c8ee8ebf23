"""The feature model on tiny random models of every family, with random dictionaries of every kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import ABLATIONS, COUNTERFACTUAL, ZERO, AblationKind
from discovery.batch import Batch
from discovery.blocks import Block
from discovery.component_model import ComponentModel, KvHeads
from discovery.evaluate import evaluate
from discovery.feature_model import FeatureModel
from discovery.loading import check_first_batch
from discovery.methods import METHODS
from discovery.model import PatchableModel, Point
from discovery.optimal_ablation import LearningSettings
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.transcoder import Activation, BadTranscoder, Site, Transcoder, TranscoderSet
from discovery.workload import Workload
from graphs.prune import drop_dead_ends, random_circuit
from tests.discovery.method_conformance import check_method
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model
from tests.discovery.tiny_transcoders import TranscoderKind, tiny_transcoders

CLEAN = [Point(1.0, 1.0)]
FEW_STEPS = AblationSettings(learning=LearningSettings(steps=1))  # any constants do
# Kind of dictionary, what it reads, what it writes.
DICTIONARIES: dict[str, tuple[TranscoderKind, Site, Site]] = {
    "relu": ("relu", "mlp-in", "mlp-out"),
    "jumprelu": ("jumprelu", "mlp-norm", "mlp-raw"),
    "topk": ("topk", "residual-mid", "mlp-raw"),
    "skip": ("skip", "mlp-in", "mlp-raw"),
    "batchtopk": ("batchtopk", "mlp-in", "mlp-out"),
    "autoencoder": ("jumprelu", "mlp-out", "mlp-out"),
    "raw autoencoder": ("topk", "mlp-raw", "mlp-raw"),
}
# Layer 0 has no dictionary in these and stays one MLP node; layer 2 (where there is one) is an error node alone.
CHOSEN = {1: (0, 2, 3, 12)}
FEW = ("gpt2", "gptj", "gemma2")  # sequential, parallel, and with norms behind attention and MLP
SOME = [(family, kind) for family in FEW for kind in DICTIONARIES]
# The other families: two kinds each, in turn.
PLAIN = [kind for kind, (name, _, _) in DICTIONARIES.items() if name == kind]
FIRST, SECOND = (
    [(family, PLAIN[(i + step) % len(PLAIN)]) for i, family in enumerate(FAMILIES) if family not in FEW]
    for step in (0, 2)
)
every_case = pytest.mark.parametrize(("family", "kind"), [*SOME, *FIRST, *SECOND])
some_cases = pytest.mark.parametrize(("family", "kind"), SOME)


@cache
def load(family: str, kind: str, heads: bool = True, kv_heads: KvHeads = "native") -> FeatureModel:
    """A feature model of some features of every layer but the first; no test changes it."""
    base = ComponentModel(tiny_model(family), kv_heads=kv_heads)
    whole = tiny_transcoders(base, *(DICTIONARIES[kind][:1]), reads=DICTIONARIES[kind][1], writes=DICTIONARIES[kind][2])
    return FeatureModel(base, replace(whole, transcoders=whole.transcoders[1:]), CHOSEN, heads)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


def swapped(batch: Batch) -> Batch:
    return replace(batch, clean=batch.corrupt, corrupt=batch.clean)


def ones(model: PatchableModel) -> Tensor:
    return torch.ones(model.topology.possible.shape)


def random_masks(model: PatchableModel, seed: int = 0) -> Tensor:
    density = torch.tensor([0.02, 0.3, 0.9, 0.99])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(density), *model.topology.possible.shape, generator=generator) < density[:, None, None]


@every_case
def test_the_ends_are_the_model_and_slopes_are_derivatives(family: str, kind: str) -> None:
    batch = tiny_batch()
    for heads in (True, False) if family in FEW else (True,):
        model = load(family, kind, heads)
        assert isinstance(model, PatchableModel)
        keep = ones(model).requires_grad_()
        full = model.run(batch, keep, COUNTERFACTUAL)
        for logits in (full, model.run(batch, ones(model), COUNTERFACTUAL)):
            assert relative(logits, model.full_logits(batch)) < 1e-5
        assert relative(model.run(batch, 0 * ones(model), COUNTERFACTUAL), model.full_logits(swapped(batch))) < 1e-5
        slope = torch.autograd.grad(LOGIT_DIFFERENCE.compute(full, batch, None).sum(), keep)[0]
        scores = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
        assert relative(scores.sum(0), slope * torch.from_numpy(model.topology.possible)) < 2e-5
        assert check_first_batch(model, batch) < 1e-5


@pytest.mark.parametrize(
    ("family", "kind", "ablation"),
    # Every kind meets three ablations, each in one of the families, and every family meets every ablation.
    [
        (family, kind, ABLATIONS[1 + (2 * FEW.index(family) + i) % 6])
        for family in FEW
        for i, kind in enumerate(DICTIONARIES)
    ],
)
def test_slopes_under_other_ablations(family: str, kind: str, ablation: AblationKind) -> None:
    batch = tiny_batch()
    for heads in (True, False) if kind == "jumprelu" else (True,):
        model = load(family, kind, heads)
        ready = prepare_ablation(model, ablation, [batch], FEW_STEPS)
        keep = ones(model).requires_grad_()
        full = model.run(batch, keep, ready)
        assert relative(full, model.full_logits(batch)) < 1e-5
        slope = torch.autograd.grad(LOGIT_DIFFERENCE.compute(full, batch, None).sum(), keep)[0]
        scores = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, ready)
        assert relative(scores.sum(0), slope * torch.from_numpy(model.topology.possible)) < 2e-5


@some_cases
def test_masks_do_not_depend_on_shortcuts_or_company(family: str, kind: str) -> None:
    batch = tiny_batch()
    for heads in (True, False) if kind == "topk" else (True,):
        model = load(family, kind, heads)
        masks = random_masks(model)
        name: AblationKind = ("counterfactual", "mean", "resample", "optimal", "noise")[SOME.index((family, kind)) % 5]
        ablation = prepare_ablation(model, name, [batch], FEW_STEPS)
        plain = torch.stack([model._run(batch, mask.float(), ablation, every_slot=True) for mask in masks])
        assert relative(model.run(batch, masks, ablation), plain) < 1e-4
        assert relative(torch.stack([model.run(batch, mask, ablation) for mask in masks]), plain) < 1e-4


class PlainFeatureHooks(PlainHooks):
    """Path patching of one edge of a feature graph: a layer's MLP writes what it wrote and the change of one of its nodes."""

    def __init__(self, model: FeatureModel, batch: Batch) -> None:
        self.transcoders, self.chosen = model.transcoders, model.chosen
        super().__init__(model, batch)

    def _sources(self, tokens: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        components, streams = super()._sources(tokens)
        parts = iter(components)
        sources = [next(parts)]
        for block in self.model.blocks:
            sources += [next(parts) for _ in range(block.heads)]
            whole = next(parts)
            if block.index in self.chosen:
                stream = streams[f"mlp{block.index}"]
                written = self._features(block, stream)
                if block.post_mlp_norm and self.transcoders.writes == "mlp-raw":
                    ratio = whole / self._mlp(block, stream, "mlp-raw")
                    written = [part * ratio for part in written]
                sources += [*written, whole - sum(written)]
            else:
                sources.append(whole)
        return sources, streams

    @staticmethod
    def _mlp(block: Block, stream: Tensor, writes: str) -> Tensor:
        raw = block.mlp(block.mlp_norm.module(stream) if block.mlp_norm else stream)
        return block.post_mlp_norm.module(raw) if block.post_mlp_norm and writes == "mlp-out" else raw

    def _features(self, block: Block, stream: Tensor) -> list[Tensor]:
        """What each chosen feature writes when the MLP reads a stream, position by position, feature by feature."""
        transcoder, reads = self.transcoders.by_layer[block.index], self.transcoders.reads
        x = stream
        if reads in ("mlp-raw", "mlp-out"):
            x = self._mlp(block, stream, reads)
        elif reads == "mlp-in" and block.mlp_norm:
            x = block.mlp_norm.module(stream)
        elif reads == "mlp-norm" and block.mlp_norm:
            centred = stream - stream.mean(-1, keepdim=True) if block.mlp_norm.kind == "layer" else stream
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        h = x @ transcoder.encoder.t() + transcoder.encoder_bias
        fired = torch.zeros_like(h)
        for row in range(len(h)):
            real = self.batch.mask[row]
            prompt, activation, k = h[row][real], transcoder.activation, transcoder.activation.k or 0
            if activation.kind == "batchtopk":
                least = prompt.relu().flatten().sort(descending=True).values[k * len(prompt) - 1]
                fired[row, real] = prompt.relu() * (prompt.relu() >= least)
            elif activation.kind == "topk":
                least = prompt.sort(-1, descending=True).values[:, k - 1 : k]
                fired[row, real] = prompt.relu() * (prompt >= least)
            else:
                level = 0.0 if activation.threshold is None else activation.threshold
                fired[row, real] = prompt.relu() * (prompt > level)
        return [fired[..., i, None] * transcoder.decoders[block.index][i] for i in self.chosen[block.index]]

    def logits_without(self, source: int, target: int) -> Tensor:
        slot = self.model.topology.targets[target]
        if slot.node.kind not in ("feature", "error"):
            return super().logits_without(source, target)
        assert slot.node.layer is not None
        block = self.model.blocks[slot.node.layer]
        stream = self.streams[f"mlp{block.index}"]
        with contextlib.ExitStack() as stack, torch.no_grad():
            changed = []
            for read in (stream, stream + self.corrupt[source] - self.clean[source]):
                written = self._features(block, read)
                if slot.node.kind == "error":
                    changed.append(self._mlp(block, read, self.transcoders.writes) - sum(written))
                else:
                    changed.append(written[self.chosen[block.index].index(slot.node.index)])
            change = changed[1] - changed[0]
            writer = (
                block.post_mlp_norm.module
                if block.post_mlp_norm and self.transcoders.writes == "mlp-out"
                else block.mlp
            )
            stack.callback(writer.register_forward_hook(lambda _m, _args, out: out + change).remove)
            return self._call(self.batch.clean)


@pytest.mark.parametrize(("family", "kind"), [*SOME, *FIRST])
def test_dropping_one_edge_is_a_plain_hook_on_one_node(family: str, kind: str) -> None:
    model, batch = load(family, kind), tiny_batch()
    topology = model.topology
    plain = PlainFeatureHooks(model, batch)
    kinds = ("feature", "error", "mlp", "head", "logits")
    generator = torch.Generator().manual_seed(1)
    for ending in kinds:
        at = torch.tensor([slot.node.kind == ending for slot in topology.targets])
        edges = (torch.from_numpy(topology.possible) & at).nonzero()
        # One edge of each kind leaves a feature or an error, where there is any, and one another node.
        inner = torch.tensor([topology.sources[row].kind in ("feature", "error") for row, _ in edges.tolist()])
        for some in (edges[inner], edges[~inner]):
            for source, target in some[torch.randperm(len(some), generator=generator)[:1]].tolist():
                keep = ones(model)
                keep[source, target] = 0
                expected = plain.logits_without(source, target)
                assert relative(model.run(batch, keep, COUNTERFACTUAL), expected) < 2e-5, topology.edge(source, target)


@pytest.mark.parametrize(("family", "kind", "heads"), [("gpt2", "topk", True), ("gemma2", "jumprelu", False)])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_conforms(name: str, family: str, kind: str, heads: bool) -> None:
    batches = (token_batch([6, 4], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3))
    check_method(name, load(family, kind, heads), Workload(batches, LOGIT_DIFFERENCE, COUNTERFACTUAL), tolerance=1e-4)


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "no heads"])
def test_the_ends_of_the_evaluation_scale(heads: bool) -> None:
    model = load("llama", "jumprelu", heads)
    for ablation in (COUNTERFACTUAL, ZERO):
        work = Workload((token_batch([6, 4, 6], 41, seed=1),), LOGIT_DIFFERENCE, ablation)
        scores = METHODS["eap"].load().score(model, work)
        points = evaluate(model, work, scores, sizes=(0.0, 0.3, 1.0), bootstrap=0).points
        assert (points[0].faithfulness, points[0].completeness) == (0, 1)
        assert (points[-1].faithfulness, points[-1].completeness, points[-1].random) == (1, 0, 1)


def test_dead_ends_change_no_output() -> None:
    model, batch = load("gpt2", "jumprelu"), tiny_batch()
    rng = np.random.default_rng(0)
    for edges in (10, 50, 100):
        circuit = random_circuit(model.topology, edges, rng)
        kept = [torch.from_numpy(one.kept) for one in (circuit, drop_dead_ends(circuit))]
        whole, pruned = model.run(batch, torch.stack(kept), COUNTERFACTUAL)
        assert relative(pruned, whole) < 1e-4


def test_without_heads_attention_sees_a_source_until_its_last_edge_is_dropped() -> None:
    batch = tiny_batch()
    model, all_nodes = load("gpt2", "jumprelu", heads=False), load("gpt2", "jumprelu")
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.5, 0.95):
        keep = model.topology.possible & (rng.random(model.topology.possible.shape) < density)
        wired = all_nodes.topology.possible.copy()
        for row, source in enumerate(all_nodes.topology.sources):
            for column, slot in enumerate(all_nodes.topology.targets):
                if source.kind == "head":
                    continue
                own = model.topology.source_index[source]
                is_node = slot.node.kind != "head"
                kept = keep[own, model.topology.target_index[slot]] if is_node else keep[own].any()
                wired[row, column] &= kept
        expected = all_nodes.run(batch, torch.from_numpy(wired), COUNTERFACTUAL)
        assert relative(model.run(batch, torch.from_numpy(keep), COUNTERFACTUAL), expected) < 1e-4


def test_gates_at_their_threshold_open_alike_in_a_feature_and_in_the_error_node() -> None:
    """Thresholds put exactly at the activations of the batch: rounding decides, and all edges are still the model."""
    batch = tiny_batch(pairs=4, ragged=False)
    for family in ("gpt2", "gemma2"):
        base = ComponentModel(tiny_model(family))
        whole = tiny_transcoders(base, "jumprelu", reads="residual-mid", writes="mlp-raw")
        base._recorded(base._prepare(batch, COUNTERFACTUAL))
        ties = []
        for transcoder in whole:
            stream = base.recorded_stream(f"layer {transcoder.layer} MLP")
            h = transcoder.preactivations(stream)[:, -1].max(0).values.clamp(min=0.1)
            ties.append(replace(transcoder, activation=Activation("jumprelu", threshold=h)))
        model = FeatureModel(base, replace(whole, transcoders=tuple(ties)), {0: range(13), 1: range(13), 2: range(13)})
        assert (
            relative(model._run(batch, ones(model), COUNTERFACTUAL, every_slot=True), model.full_logits(batch)) < 1e-5
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: replace(s, reads="residual-in", writes="residual-in"), "read residual-in and write residual-in"),
        (lambda s: replace(s, reads="residual-mid", writes="attention-out"), "stand for the MLPs"),
        (lambda s: replace(s, transcoders=(replace(s.transcoders[0], layer=7),)), "no dictionary for layer 1|layer 7"),
        (lambda s: replace(s, transcoders=(_narrow(s.transcoders[1]),)), "layer 1's encoder has rows of 5 numbers"),
        (lambda s: replace(s, transcoders=s.transcoders[2:]), "no dictionary for layer 1"),
    ],
)
def test_dictionaries_that_do_not_fit_are_named_in_one_line(
    change: Callable[[TranscoderSet], TranscoderSet], says: str
) -> None:
    base = ComponentModel(tiny_model("gpt2"))
    with pytest.raises(BadTranscoder, match=says) as error:
        FeatureModel(base, change(tiny_transcoders(base, "relu")), CHOSEN)
    assert "\n" not in str(error.value)


def _narrow(transcoder: Transcoder) -> Transcoder:
    return replace(transcoder, encoder=transcoder.encoder[:, :5])


def test_cross_layer_sets_and_unknown_features_are_refused() -> None:
    base = ComponentModel(tiny_model("gpt2"))
    with pytest.raises(BadTranscoder, match="cross-layer"):
        FeatureModel(base, tiny_transcoders(base, "cross-layer"), CHOSEN)
    with pytest.raises(BadTranscoder, match=r"f1\.13: .* 13 features"):
        FeatureModel(base, tiny_transcoders(base, "relu"), {1: (2, 13)})


def test_means_of_another_graph_are_refused() -> None:
    base, batch = ComponentModel(tiny_model("gpt2")), tiny_batch()
    ablation = prepare_ablation(base, "mean", [batch])
    model = load("gpt2", "relu")
    with pytest.raises(ValueError, match="other features"):
        model.run(batch, ones(model), ablation)


def test_ungrouped_heads_and_bfloat16_storage() -> None:
    batch = tiny_batch()
    model = load("llama", "jumprelu", kv_heads="query")
    assert check_first_batch(model, batch) < 1e-5
    half = ComponentModel(tiny_model("llama", dtype=torch.bfloat16))
    stored = FeatureModel(half, model.transcoders, CHOSEN)
    check_first_batch(stored, batch)
    assert stored.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL).dtype == torch.float32

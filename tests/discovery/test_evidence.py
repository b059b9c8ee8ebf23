"""Evidence of nodes against slow and plain computations on tiny models."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.corpus_files import Document
from discovery.evidence import EvidenceSource, collect_evidence
from discovery.evidence_settings import EvidenceSettings
from discovery.head_evidence import head_evidence, repeats
from discovery.metrics import METRICS
from discovery.passages import Texts
from discovery.projections import project, write_directions
from discovery.recording import Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import BadTranscoder
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.evidence import Evidence
from graphs.neighbours import neighbourhoods
from graphs.node import NodeId
from graphs.scores import EdgeScores
from graphs.topology import transformer_topology
from tests.discovery.tiny_models import tiny_batch, tiny_model
from tests.discovery.tiny_transcoders import record, tiny_transcoders

SMALL = EvidenceSettings(
    width=5, before=3, top=2, spread=3, scored=3, negatives=4, sample=8, unshown=6, pool=30, pass_width=24, pass_tokens=128,
    calibration=300,
)  # fmt: skip
FEATURES = 11


def documents(count: int = 24, seed: int = 0) -> list[Document]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(9, 40, (count,), generator=generator).tolist()
    rows = [torch.randint(3, 38, (length,), generator=generator).tolist() for length in lengths]
    return [Document(tuple(row), f"row {n}") for n, row in enumerate(rows)]


def collected(family: str = "gemma2", writes: str = "mlp-out") -> tuple[EvidenceSource, dict[NodeId, Evidence]]:
    """Evidence of all nodes of a tiny model with a task and a circuit."""
    model = ComponentModel(tiny_model(family), name="tiny")
    transcoders = tiny_transcoders(model, "jumprelu", FEATURES, writes=writes)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    kept = model.topology.possible & (generator.random(model.topology.possible.shape) < 0.3)
    scores = EdgeScores(
        model.topology,
        np.where(model.topology.possible, generator.normal(size=kept.shape), np.nan).astype("float32"),
        "random",
    )
    source = EvidenceSource(
        model,
        documents(),
        transcoders,
        Workload((tiny_batch(0), tiny_batch(1, ragged=False)), METRICS["logit-diff"], COUNTERFACTUAL),
        "tiny",
        Circuit(model.topology, kept, scores),
        settings=SMALL,
    )
    nodes = [NodeId("feature", 1, index) for index in range(FEATURES)]
    nodes += [NodeId("head", 1, 2), NodeId("mlp", 2), NodeId("error", 0), NodeId("input"), NodeId("feature", 1, 0, 3)]
    return source, {one.node: one for one in collect_evidence(source, nodes)}


@pytest.fixture(scope="module")
def made() -> tuple[EvidenceSource, dict[NodeId, Evidence]]:
    """Evidence with a norm behind the MLP that the transcoders write in front of."""
    return collected(writes="mlp-raw")


def test_every_node_once(made: tuple[EvidenceSource, dict[NodeId, Evidence]]) -> None:
    found = made[1]
    assert len(found) == FEATURES + 3
    assert NodeId("input") not in found
    assert found[NodeId("error", 0)] == Evidence(NodeId("error", 0), "tiny")  # not in the circuit
    assert found[NodeId("head", 1, 2)].head is not None
    assert found[NodeId("mlp", 2)].head is None


def test_contexts_are_what_the_model_does(made: tuple[EvidenceSource, dict[NodeId, Evidence]]) -> None:
    """Every window of every feature: its tokens and activations in its document, its kind, its split, its number."""
    source, found = made
    model, transcoder = source.model, source.transcoders.by_layer[1]  # type: ignore[union-attr]
    batches = source.workload.batches  # type: ignore[union-attr]
    hard, plain = 0, {}
    for node, evidence in found.items():
        if node.kind != "feature":
            continue
        explaining, scoring = ({c.document for c in evidence.of(split)} for split in ("explain", "score"))
        assert not explaining & scoring
        assert len(evidence.ids) == len(evidence.contexts)
        kinds = Counter((c.split, c.kind) for c in evidence.contexts)
        assert kinds["score", "top"] == 0
        assert kinds["explain", "top"] == min(2, kinds["explain", "top"] + kinds["explain", "spread"])
        for context in evidence.contexts:
            if context.document < len(source.documents):
                ids = source.documents[context.document].content
                assert source.settings.split_of(context.document) == context.split
            else:
                pair, side = divmod(context.document - len(source.documents), 2)
                assert context.kind == "hard-negative"
                assert any(
                    set(context.tokens) <= set(map(str, (b.clean, b.corrupt)[side][pair].tolist())) for b in batches
                )
                hard += 1
                continue
            assert isinstance(ids, tuple)
            assert context.tokens == tuple(map(str, ids[context.start : context.start + len(context.tokens)]))
            # The model saw the document in pieces of 24.
            piece = context.start // 24 * 24
            if (context.document, piece) not in plain:
                seen = record(model, torch.tensor([ids[piece : piece + 24]]))
                plain[context.document, piece] = transcoder.encode(at_site(model.blocks, seen, 1, "mlp-in")[0])
            whole = plain[context.document, piece][:, node.index or 0]
            own = whole[context.start - piece :][: len(context.tokens)]
            torch.testing.assert_close(torch.tensor(context.activations), own, atol=1e-5, rtol=1e-4)
            assert (max(map(abs, context.activations)) > 0) == (context.kind in ("top", "spread"))
            if context.kind in ("top", "spread"):
                behind = context.start + context.peak + 1 - piece
                rest = ids[piece : piece + 24]
                assert context.following == (str(rest[behind]) if behind < len(rest) else "")
        peaks = [max(map(abs, c.activations)) for c in evidence.of("explain") if c.kind == "top"]
        assert peaks == sorted(peaks, reverse=True)
        spread = [max(map(abs, c.activations)) for c in evidence.of("explain") if c.kind == "spread"]
        assert max([0.0, *spread]) <= max([0.0, *peaks]) + 1e-6
        assert abs(sum(share.value for share in evidence.peaks)) <= 1 + 1e-9
    assert hard, "no prompt of the task is a contrast: the test looks at nothing"


def test_rules_learn_from_what_is_not_shown(made: tuple[EvidenceSource, dict[NodeId, Evidence]]) -> None:
    """Every further window: of a document that explains, not shown, and active just where the model says."""
    source, found = made
    transcoder = source.transcoders.by_layer[1]  # type: ignore[union-attr]
    firing = silent = 0
    for node, evidence in found.items():
        shown = {context.tokens for context in evidence.of("explain")}
        assert len({*shown, *(one.tokens for one in evidence.examples)}) == len(shown) + len(evidence.examples)
        assert sum(not one.places for one in evidence.examples) <= SMALL.unshown
        assert sum(one.hard for one in evidence.examples) <= SMALL.unshown / 2
        for one in evidence.examples if node.kind == "feature" else ():
            assert source.settings.split_of(one.document) == "explain"
            ids = source.documents[one.document].content
            assert isinstance(ids, tuple)
            wanted, fits = [0.0] * len(one.tokens), []
            for place, value in zip(one.places, one.values):
                wanted[place] = value
            for start in range(len(ids) - len(one.tokens) + 1):
                piece = start // 24 * 24
                if tuple(map(str, ids[start : start + len(one.tokens)])) == one.tokens:
                    seen = record(source.model, torch.tensor([ids[piece : piece + 24]]))
                    values = transcoder.encode(at_site(source.model.blocks, seen, 1, "mlp-in")[0])[:, node.index or 0]
                    own = values[start - piece :][: len(one.tokens)].tolist()
                    fits.append(own == pytest.approx(wanted, rel=1e-3, abs=1e-6))
            assert any(fits)
            firing, silent = firing + bool(one.places), silent + (not one.places)
    assert firing > 5 and silent > 5


def test_projection_and_direct_effects(made: tuple[EvidenceSource, dict[NodeId, Evidence]]) -> None:
    """A feature's direct effect: what the logits lose, with every norm's denominator held, where its write is taken away."""
    source, found = made
    model, transcoders = source.model, source.transcoders
    assert transcoders is not None and source.workload is not None
    table = model.hf.get_submodule(model.arch.unembedding).weight.detach()  # type: ignore[union-attr,operator]
    decoder = transcoders.by_layer[1].decoders[1]
    post = model.blocks[1].post_mlp_norm
    assert post is not None
    for index in (0, 5):
        direction = decoder[index] * post.weight.detach()
        logits = (direction * model.final_norm.weight.detach()) @ table.t()
        logits = logits - logits.mean()
        evidence = found[NodeId("feature", 1, index)]
        assert [t.token for t in evidence.promotes] == [str(int(t)) for t in logits.argsort(descending=True)[:10]]
        assert evidence.suppresses[0].value == pytest.approx(float(logits.min()), rel=1e-4)
        right, wrong, count = 0.0, 0.0, 0
        for batch in source.workload.batches:
            with session(model.hf, model.arch, model.blocks):
                seen = record_pass(
                    model.hf, model.arch, model.blocks, Sequences(batch.clean, batch.mask, batch.positions, None)
                )
            active = transcoders.by_layer[1].encode(at_site(model.blocks, seen, 1, "mlp-in"))[:, -1, index]
            raw, final = seen.mlp_raw[1][:, -1], seen.final_in[:, -1]  # type: ignore[index]
            scale = torch.rsqrt(raw.square().mean(-1) + 1e-6) * torch.rsqrt(final.square().mean(-1) + 1e-6)
            effect = ((active * scale)[:, None] * logits).detach()
            for pair in range(len(batch)):
                right += float(effect[pair, batch.step_token[2 * pair]])
                wrong += float(effect[pair, batch.step_token[2 * pair + 1]])
                count += 1
        assert evidence.answers["right"] == pytest.approx(right / count, rel=1e-3, abs=1e-6)
        assert evidence.answers["wrong"] == pytest.approx(wrong / count, rel=1e-3, abs=1e-6)
    some = write_directions(model, transcoders, 1, [3])
    assert some is not None
    alone, together = project(model, some, Texts(None), 3)[0][0], found[NodeId("feature", 1, 3)].promotes[:3]
    assert [one.token for one in alone] == [one.token for one in together]


def test_head_and_mlp_effects_sum_to_the_logits() -> None:
    """On a model without norms behind its parts: all heads, MLPs and the input add up to the difference of the logits."""
    model = ComponentModel(tiny_model("llama"), name="tiny")
    batch = tiny_batch(ragged=False)
    work = Workload((batch,), METRICS["logit-diff"], COUNTERFACTUAL)
    nodes = [node for node in model.topology.sources if node.kind != "input"]
    source = EvidenceSource(model, documents(4), None, work, "tiny", settings=SMALL)
    effects = [one.answers["right"] - one.answers["wrong"] for one in collect_evidence(source, nodes)]
    with session(model.hf, model.arch, model.blocks):
        seen = record_pass(
            model.hf, model.arch, model.blocks, Sequences(batch.clean, batch.mask, batch.positions, None)
        )
    assert seen.entry is not None and seen.final_in is not None
    weight = model.hf.get_submodule(model.arch.unembedding).weight.detach()  # type: ignore[union-attr,operator]
    final = seen.final_in[:, -1]
    scale = torch.rsqrt(final.square().mean(-1, keepdim=True) + 1e-6)
    entry = (seen.entry[:, -1] * scale * model.final_norm.weight).detach() @ weight.t()
    tokens = batch.step_token.view(-1, 2)
    own = (entry.gather(1, tokens[:, :1]) - entry.gather(1, tokens[:, 1:])).mean()
    whole = METRICS["logit-diff"].compute(model.full_logits(batch), batch, None).mean()
    assert sum(effects) + float(own) == pytest.approx(float(whole), abs=1e-3)


def test_causal_effects_are_interventions(made: tuple[EvidenceSource, dict[NodeId, Evidence]]) -> None:
    """A feature set to zero: its write is taken out of the MLP's raw output by a plain hook."""
    source, found = made
    model, transcoders = source.model, source.transcoders
    assert transcoders is not None and source.workload is not None
    layer, metric = transcoders.by_layer[1], source.workload.metric
    changed = 0
    for index in range(4):
        values: dict[str, list[torch.Tensor]] = {"before": [], "ablate": []}
        for batch in source.workload.batches:
            values["before"].append(metric.compute(model.full_logits(batch), batch, None))
            seen: list[torch.Tensor] = []

            def read(module, args, seen=seen):
                seen.append(args[0])

            def write(module, args, out, seen=seen, batch=batch, index=index):
                active = layer.encode(seen[-1])[..., index] * batch.mask
                return out - active[..., None] * layer.decoders[1][index]

            hooks = [
                model.blocks[1].mlp.register_forward_pre_hook(read),
                model.blocks[1].mlp.register_forward_hook(write),
            ]
            model.forget()
            values["ablate"].append(metric.compute(model.full_logits(batch), batch, None))
            for hook in hooks:
                hook.remove()
            model.forget()
        before, after = (torch.cat(values[name]) for name in ("before", "ablate"))
        effect = next(e for e in found[NodeId("feature", 1, index)].causal if e.change == "ablate")
        assert effect.before == pytest.approx(float(before.mean()), abs=1e-4)
        assert effect.after == pytest.approx(float(after.mean()), abs=1e-4)
        assert effect.stderr == pytest.approx(float((after - before).std() / len(before) ** 0.5), abs=1e-4)
        assert (effect.pairs, effect.task, effect.metric) == (6, "tiny", "logit-diff")
        assert effect.gap is not None and effect.gap == pytest.approx(_gap(source), abs=1e-4)
        changed += abs(effect.after - effect.before) > 1e-4
    assert changed


def _gap(source: EvidenceSource) -> float:
    """Metric of the clean prompts less that of the corrupt ones, whose answers stay the clean ones'."""
    assert source.workload is not None
    gaps = []
    for batch in source.workload.batches:
        sides = [source.model.full_logits(one) for one in (batch, dataclasses.replace(batch, clean=batch.corrupt))]
        clean, corrupt = (source.workload.metric.compute(logits, batch, None) for logits in sides)
        gaps.append(clean - corrupt)
    return float(torch.cat(gaps).mean())


def test_head_scores_by_hand() -> None:
    """Attention on repeats, token by token; a head that copies by construction, and one that does the opposite."""
    model = ComponentModel(tiny_model("llama"), name="tiny")
    block = model.blocks[2]
    twice, front, period = repeats(model, 0)
    assert front == 0 and torch.equal(twice[:, :period], twice[:, period:])
    with (
        torch.no_grad()
    ):  # head 0 of the last layer hands on what it reads of some directions; head 1 hands on minus it
        embedding = model.hf.get_input_embeddings().weight  # type: ignore[union-attr]
        unembedding = model.hf.get_output_embeddings().weight  # type: ignore[union-attr]
        basis = torch.linalg.qr(torch.randn(24, 6, generator=torch.Generator().manual_seed(0))).Q
        embedding.copy_(torch.randn(41, 6, generator=torch.Generator().manual_seed(1)) @ basis.t())  # type: ignore[operator]
        unembedding.copy_(embedding)  # type: ignore[operator]
        for other in model.blocks:
            other.output.weight.zero_()  # type: ignore[operator,union-attr]
            other.mlp.down_proj.weight.zero_()  # type: ignore[operator,union-attr]
        value = block.projections[2].weight
        value[:6] = basis.t() / block.attention_norm.weight  # type: ignore[index,union-attr,operator]
        block.output.weight[:, :6] = basis / model.final_norm.weight[:, None]  # type: ignore[index,union-attr]
        block.output.weight[:, 6:12] = -basis / model.final_norm.weight[:, None]  # type: ignore[index,union-attr]
    heads = [NodeId("head", 2, 0), NodeId("head", 2, 1), NodeId("head", 0, 3)]
    found = head_evidence(model, heads, Texts(None), batches=[tiny_batch()], corpus=[tuple(range(3, 20))])
    assert found[heads[0]].scores["copying"] > 0.6 > 0.1 > found[heads[0]].scores["anti_copying"]
    assert found[heads[1]].scores["anti_copying"] > 0.6 > 0.1 > found[heads[1]].scores["copying"]
    assert all(effect.value > 0 for effect in found[heads[0]].ov_up)
    mask, positions = torch.ones_like(twice, dtype=torch.bool), torch.arange(twice.shape[1]).expand_as(twice)
    with session(model.hf, model.arch, model.blocks):
        seen = record_pass(model.hf, model.arch, model.blocks, Sequences(twice, mask, positions, None), patterns=True)
    pattern = seen.patterns[0][:, 3]
    sums: dict[str, list[float]] = {"previous_token": [], "duplicate_token": [], "induction": []}
    for row in range(len(twice)):
        for query in range(1, twice.shape[1]):
            sums["previous_token"].append(float(pattern[row, query, query - 1]))
            if query >= period:
                sums["duplicate_token"].append(float(pattern[row, query, query - period]))
                sums["induction"].append(float(pattern[row, query, query - period + 1]))
    for name, values in sums.items():
        assert found[heads[2]].scores[name] == pytest.approx(sum(values) / len(values), abs=1e-5)
    for evidence in found.values():
        assert all(0 <= value <= 1 for value in evidence.scores.values())
        assert evidence.pairs and all(pair.distance >= 0 for pair in evidence.pairs)
        weights = [pair.weight for pair in evidence.pairs]
        assert weights == sorted(weights, reverse=True)


def test_neighbours_by_hand() -> None:
    topology = transformer_topology(1, 2, 1)
    values = np.where(topology.possible, 0.0, np.nan).astype("float32")
    kept = np.zeros_like(topology.possible)
    for name, value in (("input->a0.h0<k>", 2.0), ("input->a0.h1<q>", -1.0), ("a0.h1->m0", 4.0), ("m0->logits", 1.0)):
        row = next(i for i, node in enumerate(topology.sources) if name.startswith(f"{node}->"))
        column = next(i for i, slot in enumerate(topology.targets) if name.endswith(f"->{slot}"))
        kept[row, column], values[row, column] = True, value
    around = neighbourhoods(
        Circuit(topology, kept, EdgeScores(topology, values, "hand")), labels={NodeId("mlp", 0): "adds"}
    )
    first, second = NodeId("head", 0, 0), NodeId("head", 0, 1)
    assert [(n.node, n.weight) for n in around[first].inputs] == [(NodeId("input"), 2.0)]
    assert [(n.node, n.weight) for n in around[second].inputs] == [
        (NodeId("input"), 1.0)
    ]  # 2 of the shared key, less 1
    assert [(n.node, n.label) for n in around[second].outputs] == [(NodeId("mlp", 0), "adds")]
    assert around[second].flow_share == 0.5
    assert around[NodeId("logits")].inputs[0].node == NodeId("mlp", 0)


def test_files_and_errors(tmp_path: Path) -> None:
    model = ComponentModel(tiny_model("gpt2"), name="tiny")
    source = EvidenceSource(model, documents(), settings=SMALL)
    file = tmp_path / "state"
    whole = list(collect_evidence(source, [NodeId("mlp", 0)], file, "me"))
    assert whole == list(collect_evidence(source, [NodeId("mlp", 0)]))
    assert not file.exists()
    other = dataclasses.replace(source, settings=dataclasses.replace(SMALL, seed=3))
    assert whole != list(collect_evidence(other, [NodeId("mlp", 0)]))
    with pytest.raises(BadTranscoder, match=r"f0\.3"):
        list(collect_evidence(source, [NodeId("feature", 0, 3)]))
    with pytest.raises(ValueError, match="no head 9 in layer 0"):
        list(collect_evidence(source, [NodeId("head", 0, 9)]))

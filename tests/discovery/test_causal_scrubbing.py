"""Causal scrubbing against a recursion by hand, against runs that are known otherwise, and where the answer is known."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery import causal_scrubbing
from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.blocks import Block
from discovery.causal_scrubbing import Settings, alike_prompts, draws, scrub
from discovery.component_model import ComponentModel
from discovery.measure import FlatMetric
from discovery.recording import session
from discovery.scrubbed_run import Draw, Drawn, ScrubbedRun, make_pool, of_equal_length, other_prompts
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.node import PORTS, NodeId, Slot
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE, logit_difference, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_model

BATCH = token_batch([5, 5, 5, 5], 41, seed=1)
RAGGED = token_batch([6, 4, 6, 4, 6], 41, seed=2)


@cache
def component_model(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


def random_circuit(model: ComponentModel, share: float, seed: int = 0) -> Circuit:
    drawn = np.random.default_rng(seed).random(model.topology.possible.shape) < share
    return Circuit(model.topology, model.topology.possible & drawn)


def scrubbed_logits(model: ComponentModel, batch, circuit: Circuit, draw: Draw, samples: int) -> Tensor:
    state = model.pruning_state(batch, ZERO)
    with session(model.hf, model.arch, model.blocks), torch.no_grad():
        return model.unembed(ScrubbedRun(state, circuit.kept, samples, draw).final_stream())


class ByHand(PlainHooks):
    """Every node on every prompt by a pass of its own, its slots' inputs summed edge by edge."""

    def __init__(self, model: ComponentModel, batch, circuit: Circuit, draw: Draw, sample: int) -> None:
        super().__init__(model, batch)
        self.circuit, self.draw, self.sample = circuit, draw, sample
        # What every stream holds besides the sources: biases that belong to no node.
        self.rests = {name: stream - self._sum(self._sources_before(name)) for name, stream in self.streams.items()}
        self.memory: dict[int, Tensor] = {}

    def _sources_before(self, stage: str) -> list[int]:
        topology = self.model.topology
        if stage == "final":
            column = len(topology.targets) - 1
        else:
            kind = "attention" if stage.startswith("attention") else "mlp"
            layer = int(stage.removeprefix(kind))
            slot = Slot(NodeId("mlp", layer)) if kind == "mlp" else Slot(NodeId("head", layer, 0), "q")
            column = topology.target_index[slot]
        return np.flatnonzero(topology.possible[:, column]).tolist()

    def _sum(self, sources: list[int]) -> Tensor:
        return torch.stack([self.clean[source] for source in sources]).sum(0)

    def slot_input(self, column: int, stage: str) -> Tensor:
        drawn, total = self.draw(column), self.rests[stage].clone()
        kept = 0
        for source in self._sources_before(stage):
            if self.circuit.kept[source, column]:
                total += self.value(source)[drawn.kept[kept, self.sample]]
                kept += 1
            else:
                total += self.clean[source][drawn.dropped[self.sample]]
        return total

    def value(self, source: int) -> Tensor:
        if source not in self.memory:
            self.memory[source] = self._compute(source)
        return self.memory[source]

    def _compute(self, source: int) -> Tensor:
        node, topology = self.model.topology.sources[source], self.model.topology
        if node.kind == "input":
            return self.clean[0]
        assert node.layer is not None
        block = self.model.blocks[node.layer]
        with torch.no_grad():
            if node.kind == "mlp":
                stream = self.slot_input(topology.target_index[Slot(node)], f"mlp{node.layer}")
                normed = stream if block.mlp_norm is None else block.mlp_norm(stream)
                return block.mlp(normed)
            assert node.index is not None
            return self._head(block, node.index)

    def _head(self, block: Block, head: int) -> Tensor:
        topology, seen = self.model.topology, {}
        with contextlib.ExitStack() as stack:
            for which, port in enumerate(PORTS):
                slot = head if port == "q" else head * block.kv_slots // block.heads
                column = topology.target_index[Slot(NodeId("head", block.index, slot), port)]
                normed = self._normed(block, self.slot_input(column, f"attention{block.index}"))
                own = block.split([module(normed) for module in block.projections])

                def mend(module, _args, out: Tensor, own=own, which=which, slot=slot) -> Tensor:
                    separate = block.layout == "separate"
                    if separate and block.projections.index(module) != which:
                        return out
                    parts = [part.clone() for part in block.split((out,) * 3 if separate else (out,))]
                    parts[which][..., slot, :] = own[which][..., slot, :]
                    return parts[which].flatten(-2) if separate else block.join(type(own)(*parts))[0]

                for module in block.projections:
                    stack.callback(module.register_forward_hook(mend).remove)
            self._watch(stack, block.output, "mix", seen, before=True)
            self._call(self.batch.clean)
        alone = torch.zeros_like(seen["mix"])
        part = slice(head * block.d_head, (head + 1) * block.d_head)
        alone[..., part] = seen["mix"][..., part]
        return block.output(alone) - block.output(torch.zeros_like(alone))

    @staticmethod
    def _normed(block: Block, stream: Tensor) -> Tensor:
        return stream if block.attention_norm is None else block.attention_norm(stream)

    def logits(self) -> Tensor:
        with torch.no_grad():
            stream = self.slot_input(len(self.model.topology.targets) - 1, "final")
            return self.model.unembed(stream[None, :, -1])[0]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_it_is_the_recursion_by_hand(family: str) -> None:
    model = component_model(family)
    circuit = random_circuit(model, 0.4)
    groups = {0: "a", 1: "b", 2: "a", 3: "a"}
    pool = make_pool(alike_prompts(BATCH, groups))
    draw = draws(circuit, pool, make_pool(other_prompts(BATCH)), 2, (0,))
    found = scrubbed_logits(model, BATCH, circuit, draw, 2)
    for sample in range(2):
        expected = ByHand(model, BATCH, circuit, draw, sample).logits()
        torch.testing.assert_close(found[sample], expected, rtol=1e-3, atol=1e-3)
    assert float((found[0] - found[1]).abs().max()) > 1e-2
    assert float((found[0] - model.full_logits(BATCH)).abs().max()) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_prompt_for_all_dropped_edges_it_is_the_patched_run(family: str) -> None:
    """Every prompt its own group, all slots the same other prompt: the circuit under resample ablation."""
    model = component_model(family)
    circuit = random_circuit(model, 0.5)
    other = np.array([2, 3, 4, 1, 0])

    def draw(slot: int) -> Drawn:
        return Drawn(np.tile(np.arange(5), (int(circuit.kept[:, slot].sum()), 1, 1)), other[None])

    found = scrubbed_logits(model, RAGGED, circuit, draw, 1)[0]
    patched = model.run(replace(RAGGED, corrupt=RAGGED.clean[other]), torch.from_numpy(circuit.kept), COUNTERFACTUAL)
    torch.testing.assert_close(found, patched, rtol=1e-3, atol=1e-3)


def test_draws_stay_within_length_and_group() -> None:
    model = component_model("gpt2")
    groups = {0: 1, 1: 1, 2: 1, 3: 1, 4: 2}
    alike = alike_prompts(RAGGED, groups)
    assert [set(np.flatnonzero(row)) for row in alike] == [{0, 2}, {1, 3}, {0, 2}, {1, 3}, {4}]
    np.testing.assert_array_equal(alike_prompts(RAGGED, None), np.eye(5))
    circuit = random_circuit(model, 0.5)
    draw = draws(circuit, make_pool(alike), make_pool(other_prompts(RAGGED)), 40, (3,))
    last = len(model.topology.targets) - 1
    drawn = draw(last)
    assert drawn.kept.shape == (int(circuit.kept[:, last].sum()), 40, 5)
    for row in range(5):
        assert set(drawn.kept[..., row].flat) == set(np.flatnonzero(alike[row]))
        assert set(drawn.dropped[:, row]) == set(np.flatnonzero(of_equal_length(RAGGED)[row])) - {row}
    again = draws(circuit, make_pool(alike), make_pool(other_prompts(RAGGED)), 40, (3,))(last)
    np.testing.assert_array_equal(drawn.kept, again.kept)
    assert (draw(last - 1).dropped != drawn.dropped).any()  # every slot draws on its own


@cache
def planted() -> tuple[ComponentModel, Circuit]:
    """A random GPT-2 in which only a0.h1, m0 and a1.h2 write, and every edge between them, input and logits."""
    hf: Any = tiny_model("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(hf.transformer.h):
            writers = {0: (1,), 1: (2,), 2: ()}[layer]
            d_head = hf.config.n_embd // hf.config.n_head
            silent = [head for head in range(hf.config.n_head) if head not in writers]
            for head in silent:
                block.attn.c_proj.weight[head * d_head : (head + 1) * d_head] = 0
            if layer != 0:
                block.mlp.c_proj.weight.zero_()
                block.mlp.c_proj.bias.zero_()
        # Tokens 3..21 have twins 22..40 that the model cannot tell from them.
        hf.transformer.wte.weight[22:41] = hf.transformer.wte.weight[3:22]
    model = ComponentModel(hf)
    topology = model.topology
    live = {"input", "a0.h1", "m0", "a1.h2"}
    writes = np.array([str(node) in live for node in topology.sources])
    reads = np.array([str(slot.node) in live | {"logits"} for slot in topology.targets])
    return model, Circuit(topology, topology.possible & writes[:, None] & reads[None, :])


def twins(pairs: int = 24) -> tuple[Workload, dict[int, int]]:
    """Prompts in twos that the model cannot tell apart, judged by what it prefers; and their groups."""
    model, _ = planted()
    batch = token_batch([5] * pairs, 22, seed=4)
    clean = batch.clean.clamp(3, 21)
    clean[pairs // 2 :] = clean[: pairs // 2] + 19
    batch = replace(batch, clean=clean)
    logits = model.full_logits(batch)[:, :22]  # the twins' logits are the same
    tokens = torch.cat([logits.argmax(1), logits.argmin(1)])
    batch = replace(batch, step_token=tokens)
    return Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL), {pair: pair % (pairs // 2) for pair in range(pairs)}


def test_a_true_hypothesis_recovers_everything_and_none_nothing() -> None:
    model, circuit = planted()
    work, groups = twins()
    none = Circuit(model.topology, np.zeros_like(circuit.kept))
    for hypothesis in (None, groups):
        found = scrub(model, work, circuit, hypothesis, Settings(4))
        assert found.recovered == pytest.approx(1, abs=1e-3)
        assert found.low == pytest.approx(1, abs=1e-3)
        assert found.alike == (1 if hypothesis is None else 2)
        assert scrub(model, work, none, hypothesis, Settings(4)).recovered == pytest.approx(0, abs=1e-5)
    assert not torch.equal(work.batches[0].clean[0], work.batches[0].clean[12])


def test_a_false_hypothesis_loses() -> None:
    model, circuit = planted()
    work, groups = twins()
    coarse = scrub(model, work, circuit, dict.fromkeys(groups, "all alike"), Settings(4))
    assert coarse.recovered < 0.4 and coarse.alike == 24
    kept = circuit.kept.copy()
    kept[model.topology.source_index[NodeId("input")]] = False  # without what it reads
    assert scrub(model, work, Circuit(model.topology, kept), None, Settings(4)).recovered < 0.4


def test_the_result_is_what_it_says() -> None:
    model = component_model("llama")
    other = token_batch([7, 5, 5, 5], 41, seed=8, first=4)
    work = Workload((BATCH, other), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    circuit = random_circuit(model, 0.7)
    found = scrub(model, work, circuit, None, Settings(3, seed=5))
    assert (found.pairs, found.alone) == (7, 1)
    assert found == scrub(model, work, circuit, None, Settings(3, seed=5))
    assert found != scrub(model, work, circuit, None, Settings(3, seed=6))
    full = [logit_difference(model.full_logits(batch), batch, None) for batch in work.batches]
    assert found.full == pytest.approx(float(torch.cat([full[0], full[1][1:]]).mean()), abs=1e-4)
    assert found.recovered == pytest.approx((found.scrubbed - found.random) / (found.full - found.random))
    assert found.low is not None and found.high is not None and found.low < found.recovered < found.high
    assert scrub(model, work, circuit, None, Settings(3, bootstrap=0)).low is None


def test_samples_do_not_depend_on_how_many_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, work = component_model("llama"), Workload((BATCH,), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    circuit = random_circuit(model, 0.7)
    together = scrub(model, work, circuit, None, Settings(5))
    monkeypatch.setattr(causal_scrubbing, "auto_masks_per_run", lambda *_: 2)
    apart = scrub(model, work, circuit, None, Settings(5))
    assert apart.scrubbed == pytest.approx(together.scrubbed, abs=1e-4)
    assert apart.random == pytest.approx(together.random, abs=1e-5)


def test_what_cannot_be_scrubbed_is_said_in_one_line() -> None:
    model, circuit = component_model("llama"), random_circuit(component_model("llama"), 0.5)

    def refuse(batch, says: str, kind: type[ValueError] = ValueError) -> None:
        with pytest.raises(kind, match=says) as error:
            scrub(model, Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL), circuit)
        assert "\n" not in str(error.value)

    refuse(token_batch([5, 6, 7], 41), "equal length")
    refuse(replace(BATCH, read_column=BATCH.read_column - 1), "one token")
    refuse(replace(BATCH, step_token=torch.zeros_like(BATCH.step_token)), "recovered", FlatMetric)
    with pytest.raises(ValueError, match="samples"):
        Settings(0)

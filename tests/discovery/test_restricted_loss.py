"""Metric, loss and accuracy from the same runs are what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.measure import measure
from discovery.metrics import METRICS
from discovery.restricted_loss import measure_all
from discovery.workload import Workload
from graphs.prune import complement, full_circuit, random_circuit
from tests.discovery.tiny_models import tiny_batch, tiny_model


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox-parallel", "llama", "gemma2", "olmo2"])
def test_all_measures_are_those_of_the_circuit(family: str) -> None:
    model = ComponentModel(tiny_model(family))
    work = Workload((tiny_batch(0), tiny_batch(1)), METRICS["logit-diff"], COUNTERFACTUAL)
    some = random_circuit(model.topology, model.topology.edge_count // 2, np.random.default_rng(0))
    circuits = [some, complement(some), full_circuit(model.topology), complement(full_circuit(model.topology))]
    found = measure_all(model, work, circuits)
    for name, metric, sign in (("metric", "logit-diff", 1), ("loss", "log-prob", -1)):
        alone = measure(model, Workload(work.batches, METRICS[metric], COUNTERFACTUAL), circuits[:2])
        expected = sign * np.stack([alone.full, alone.empty, *alone.circuits])
        np.testing.assert_allclose(found.of(name)[:4], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.known, alone.known)
    for values in found.values:
        np.testing.assert_allclose(values[4], values[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(values[5], values[1], rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_answer() -> None:
    model, batch = ComponentModel(tiny_model("llama")), tiny_batch(ragged=False)
    found = measure_all(model, Workload((batch,), METRICS["prob-diff"], COUNTERFACTUAL), [])
    answers = batch.step_token[batch.candidate_right]
    for place, prompts in ((0, batch.clean), (1, batch.corrupt)):
        with torch.inference_mode():
            logits = model.hf(prompts).logits[:, -1].double()
        losses = torch.nn.functional.cross_entropy(logits, answers, reduction="none")
        np.testing.assert_allclose(found.of("loss")[place], losses.numpy(), rtol=1e-5)
        np.testing.assert_array_equal(found.of("accuracy")[place], (logits.argmax(-1) == answers).numpy())

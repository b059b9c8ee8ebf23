"""Node patching against a plain loop: one pair, one cell, one whole forward pass at a time, modules named by hand."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation, AblationKind
from discovery.activation_patching import patch_nodes
from discovery.batch import Batch
from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.embedding_noise import noisy_embeddings
from discovery.heat_map import DIRECTIONS, PATCH_METHODS, SITES, Direction, HeatMap, NodePatching, PatchMethod
from discovery.measure import FlatMetric
from discovery.metrics import METRICS
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.resampling import with_donors
from discovery.task import PromptPair
from discovery.workload import Workload
from graphs.node import NodeId
from tests.discovery.method_conformance import take
from tests.discovery.tiny_models import FAMILIES, tiny_model

# Modules by hand: decoder layers, attention, its output projection, MLP, final norm.
MODULES = {
    "gpt2": ("transformer.h", "attn.c_proj", "mlp", "transformer.ln_f"),
    "llama": ("model.layers", "self_attn.o_proj", "mlp", "model.norm"),
}
HEADS = 4


@cache
def component_model(family: str) -> ComponentModel:
    """One model per family and worker: no test changes it."""
    return ComponentModel(tiny_model(family))


def pair(length: int, seed: int, answers: int = 1, tokens: int = 1) -> PromptPair:
    """A random pair of token ids; its first two tokens are the same in clean and corrupt."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(3, 41, count))

    start = draw(2)
    right = tuple(draw(tokens) for _ in range(answers))
    return PromptPair(start + draw(length - 2), start + draw(length - 2), right, (draw(1),))


def workload(lengths: tuple[int, ...] = (5, 7, 4), metric: str = "logit-diff", tokens: int = 1) -> Workload:
    """Pairs of the given lengths, two in a batch."""
    pairs = [pair(length, seed, answers=tokens, tokens=tokens) for seed, length in enumerate(lengths)]
    return Workload(make_batches(pairs, None, batch_size=2), METRICS[metric], COUNTERFACTUAL)


def forward(model: ComponentModel, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits at the reads of one plain pass."""
    with torch.no_grad():
        out = model.hf(tokens, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False)
    return out.logits[batch.read_row, batch.read_column]


def place(model: ComponentModel, family: str, site: str, layer: int) -> tuple[torch.nn.Module, bool]:
    """The module at a site, and whether the value is its input (else its output)."""
    layers, output, mlp, norm = MODULES[family]
    if site == "residual":
        last = layer == len(model.blocks)
        return model.hf.get_submodule(norm if last else f"{layers}.{layer}"), True
    module = model.hf.get_submodule(f"{layers}.{layer}.{mlp if site == 'mlp' else output}")
    return module, site == "head"


def plain_cell(
    model: ComponentModel,
    family: str,
    batch: Batch,
    node: str,
    metric: str,
    direction: Direction,
    value: torch.Tensor | None = None,
) -> float | None:
    """The metric of a batch of a single pair with one node patched; None where the prompt has no such position.

    value: what is put in, for the whole site (default: what is there in the other run).
    """
    base, donor = (batch.clean, batch.corrupt) if direction == "noising" else (batch.corrupt, batch.clean)
    is_attention = node.startswith("a") and "." not in node
    name = NodeId.parse(node.replace("a", "m")) if is_attention else NodeId.parse(node)
    site = "attention" if is_attention else name.kind
    module, is_input = place(model, family, site, name.layer)
    stored: list[torch.Tensor] = [] if value is None else [value]
    length = int(batch.positions[batch.read_row[batch.pair_read[0]], batch.read_column[batch.pair_read[0]]]) + 1
    position = name.position
    if position is not None:
        position = position + length if position < 0 else position
        if position < 0:
            return None

    def store(module: torch.nn.Module, args: tuple, out: torch.Tensor | None = None) -> None:
        stored.append((args[0] if is_input else out).clone())

    def change(module: torch.nn.Module, args: tuple, out: torch.Tensor | None = None) -> object:
        value = (args[0] if is_input else out).clone()
        if site == "head":
            width = value.shape[-1] // HEADS
            value[..., name.index * width : (name.index + 1) * width] = stored[0][
                ..., name.index * width : (name.index + 1) * width
            ]
        for row in range(len(value) if position is not None else 0):
            column = int((~batch.mask[row]).sum()) + position
            value[row, column] = stored[0][row, column]
        return (value, *args[1:]) if is_input else value

    for hook, tokens in ((store, donor), (change, base))[value is not None :]:
        handle = module.register_forward_pre_hook(hook) if is_input else module.register_forward_hook(hook)
        logits = forward(model, tokens, batch)
        handle.remove()
    reference = forward(model, batch.clean, batch) if METRICS[metric].needs_reference else None
    return float(METRICS[metric].compute(logits, batch, reference))


def check_against_plain_loop(family: str, work: Workload, direction: Direction, heat_map: HeatMap, step: int) -> None:
    """Every `step`-th cell."""
    model = component_model(family)
    cells = list(np.ndindex(heat_map.values.shape))
    for row, column in cells[::step] + cells[-1:]:
        node = heat_map.names[row][column]
        found = [plain_cell(model, family, single, node, work.metric.name, direction) for single in singles(work)]
        values = [value for value in found if value is not None]
        assert len(values) == heat_map.pairs[column]
        assert heat_map.values[row, column] == pytest.approx(np.mean(values), abs=2e-4), node


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lengths", [(5, 7, 4), (6, 6, 6)], ids=["ragged", "equal"])
@pytest.mark.parametrize("family", MODULES)
def test_every_site_is_the_plain_loop(family: str, lengths: tuple[int, ...], direction: Direction) -> None:
    work = workload(lengths)
    patching = patch_nodes(component_model(family), work, direction=direction)
    assert tuple(heat_map.site for heat_map in patching.maps) == SITES
    for heat_map in patching.maps:
        check_against_plain_loop(family, work, direction, heat_map, step=5)


@pytest.mark.parametrize("metric, tokens", [("log-prob", 2), ("prob-diff", 2), ("kl", 1)])
def test_answers_of_several_tokens_and_other_metrics_are_the_plain_loop(metric: str, tokens: int) -> None:
    work = workload(metric=metric, tokens=tokens)
    assert (tokens == 1) == all(len(batch.clean) == len(batch) for batch in work.batches)  # else a row for each answer
    patching = patch_nodes(component_model("llama"), work, direction="noising")
    for heat_map in patching.maps:
        check_against_plain_loop("llama", work, "noising", heat_map, step=7)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_residual_decides_and_the_shared_start_does_not(family: str) -> None:
    """Logits are read from the last position: swapping the last residual there swaps the runs."""
    work = workload((6, 6, 6, 6))
    for method in PATCH_METHODS[:1]:
        for direction, same in (("noising", 1), ("denoising", 0)):
            patching = patch_nodes(component_model(family), work, method=method, direction=direction)
            residual = patching.maps[0]
            assert residual.rows[-1] == str(len(component_model(family).blocks))
            assert residual.normalized[-1, -1] == pytest.approx(1 - same, abs=1e-3)
            np.testing.assert_allclose(residual.normalized[-1, :-1], same, atol=1e-3)
            for heat_map in patching.maps[:3]:
                np.testing.assert_allclose(heat_map.normalized[:, :2], same, atol=1e-3)  # two shared tokens
            for heat_map in patching.maps:
                gap = patching.clean - patching.corrupt
                np.testing.assert_allclose(
                    heat_map.normalized, (heat_map.values - patching.corrupt) / gap, rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_position_of_the_last_block_is_read(family: str) -> None:
    """Nothing reads the last layer's outputs but the last position: its other cells do nothing, on any family."""
    work = workload((5, 6))
    for heat_map in patch_nodes(component_model(family), work, direction="noising", sites=("attention", "mlp")).maps:
        np.testing.assert_allclose(heat_map.normalized[-1, :-1], 1, atol=1e-3)
        assert abs(heat_map.normalized[-1, -1] - 1) > 1e-5


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_slope_of_exact_patching(family: str, direction: Direction) -> None:
    """With clean and corrupt close together (embeddings differ by little), the first order is nearly everything."""
    model = ComponentModel(tiny_model(family))
    embeddings = model.hf.get_input_embeddings().weight
    with torch.no_grad():
        for token in range(20):
            embeddings[token + 20] = embeddings[token] + 1e-3 * torch.randn(embeddings.shape[1])
    rng = np.random.default_rng(0)
    pairs = []
    for length in (5, 6, 6):
        clean = tuple(int(token) for token in rng.integers(3, 20, length))
        corrupt = (clean[0], *(token + 20 for token in clean[1:]))
        pairs.append(PromptPair(clean, corrupt, ((7,),), ((30,),)))
    work = Workload(make_batches(pairs, None, batch_size=2), METRICS["logit-diff"], COUNTERFACTUAL)
    exact, estimate = (patch_nodes(model, work, method=method, direction=direction) for method in PATCH_METHODS)
    base = exact.clean if direction == "noising" else exact.corrupt
    for real, guess in zip(exact.maps, estimate.maps):
        assert real.names == guess.names
        effect = np.abs(real.values - base).max()
        # Effects are small numbers taken from large ones in float32: the tolerance has a share of each.
        np.testing.assert_allclose(guess.values, real.values, rtol=0, atol=0.06 * effect + 3e-6 * abs(base) + 2e-6)
        assert effect > 1e-5


def test_cells_in_one_pass_do_not_touch_each_other() -> None:
    work = workload()
    base = patch_nodes(component_model("llama"), work)
    for copies in (1, 3, 500):
        other = patch_nodes(component_model("llama"), work, copies=copies)
        for one, two in zip(base.maps, other.maps):
            np.testing.assert_allclose(one.values, two.values, atol=1e-4)


def test_batch_sizes_change_nothing() -> None:
    work = workload((5, 7, 4, 7))
    singles = replace(work, batches=tuple(take(b, [i]) for b in work.batches for i in range(len(b))))
    for method in PATCH_METHODS:
        one, two = (patch_nodes(component_model("gpt2"), each, method=method) for each in (work, singles))
        assert (one.clean, one.corrupt) == pytest.approx((two.clean, two.corrupt), abs=1e-4)
        for first, second in zip(one.maps, two.maps):
            np.testing.assert_allclose(first.values, second.values, atol=1e-4)


def test_names_and_labels() -> None:
    ragged = patch_nodes(component_model("gpt2"), workload((5, 7, 4))).maps
    equal = patch_nodes(component_model("gpt2"), workload((4, 4))).maps
    assert ragged[0].columns == ("-7", "-6", "-5", "-4", "-3", "-2", "-1")
    assert ragged[0].pairs == (1, 1, 2, 3, 3, 3, 3)
    assert equal[0].columns == ("0", "1", "2", "3")
    assert equal[0].rows == ("0", "1", "2", "3")
    assert equal[0].names[3][1] == "r3@1"
    assert equal[1].names[2][0] == "a2@0"
    assert equal[2].names[0][3] == "m0@3"
    assert equal[3].names[1] == ("a1.h0", "a1.h1", "a1.h2", "a1.h3")
    assert equal[3].columns == ("0", "1", "2", "3")
    for heat_map in (ragged[0], ragged[2], ragged[3]):
        assert all(str(NodeId.parse(name)) == name for row in heat_map.names for name in row)


def test_json_comes_back() -> None:
    patching = patch_nodes(component_model("gpt2"), workload())
    patching.maps[0].values[0, 0] = np.nan
    content = json.loads(json.dumps(patching.to_json(), allow_nan=False))
    again = NodePatching.from_json(content)
    assert again.to_json() == content
    np.testing.assert_array_equal(again.maps[0].values, patching.maps[0].values)
    with pytest.raises(ValueError, match="'maps'"):
        NodePatching.from_json({key: value for key, value in content.items() if key != "maps"})


CELLS = ("r1@-1", "r3@-2", "a1@-1", "m0@-2", "m2@-1", "a0.h1", "a2.h3")


def site_value(model: ComponentModel, family: str, batch: Batch, tokens: torch.Tensor, node: str) -> torch.Tensor:
    """What is at a node's site in a plain pass."""
    is_attention = "." not in node and node.startswith("a")
    name = NodeId.parse(node.replace("a", "m")) if is_attention else NodeId.parse(node)
    assert name.layer is not None
    module, is_input = place(model, family, "attention" if is_attention else name.kind, name.layer)
    stored: list[torch.Tensor] = []
    handle = (
        module.register_forward_pre_hook(lambda _m, args: stored.append(args[0]))
        if is_input
        else module.register_forward_hook(lambda _m, _a, out: stored.append(out))
    )
    forward(model, tokens, batch)
    handle.remove()
    return stored[0]


def singles(work: Workload) -> list[Batch]:
    """A batch for each pair."""
    return [take(batch, [i]) for batch in work.batches for i in range(len(batch))]


def cell_values(found: NodePatching) -> dict[str, float]:
    return {
        name: float(heat_map.values[row, column])
        for heat_map in found.maps
        for row, names in enumerate(heat_map.names)
        for column, name in enumerate(names)
    }


@pytest.mark.parametrize("kind", ["zero", "mean", "mean-positional"])
@pytest.mark.parametrize("family", MODULES)
def test_constants_are_put_into_the_clean_run(family: str, kind: AblationKind) -> None:
    model, work = component_model(family), workload((5, 7, 5))
    work = replace(work, ablation=prepare_ablation(model, kind, work.batches))
    found = patch_nodes(model, work, direction="noising")
    seen = cell_values(found)
    for node in CELLS:
        per_token: dict[int, list[torch.Tensor]] = {}
        for batch in work.batches:
            values = site_value(model, family, batch, batch.corrupt, node)
            for row, column in batch.mask.nonzero().tolist():
                place_of = int(batch.positions[row, column]) if kind == "mean-positional" else 0
                per_token.setdefault(place_of, []).append(values[row, column])
        means = {key: torch.stack(values).mean(0) * (kind != "zero") for key, values in per_token.items()}
        expected = []
        for batch in singles(work):
            index = batch.positions if kind == "mean-positional" else 0 * batch.positions
            value = torch.stack([torch.stack([means[at] for at in row]) for row in index.tolist()])
            expected.append(plain_cell(model, family, batch, node, "logit-diff", "noising", value))
        assert seen[node] == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-4)
    empty = [model.run(batch, torch.zeros(model.topology.possible.shape), work.ablation) for batch in work.batches]
    metric = torch.cat([work.metric.compute(logits, batch, None) for logits, batch in zip(empty, work.batches)])
    assert found.corrupt == pytest.approx(float(metric.mean()), abs=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("family", MODULES)
def test_noise_is_put_in_or_taken_out(family: str, direction: Direction) -> None:
    model, work = component_model(family), workload((5, 6))
    ablation = prepare_ablation(model, "noise", work.batches, AblationSettings(noise_scale=1.0))
    assert ablation.noise is not None
    seen = cell_values(patch_nodes(model, replace(work, ablation=ablation), direction=direction))
    for node in CELLS:
        expected = []
        for batch in singles(work):
            base, donor = contextlib.nullcontext(), noisy_embeddings(model.hf, batch, ablation.noise)
            base, donor = (base, donor) if direction == "noising" else (donor, base)
            with donor:
                value = site_value(model, family, batch, batch.clean, node)
            with base:
                expected.append(plain_cell(model, family, batch, node, "logit-diff", "noising", value))
        assert seen[node] == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", PATCH_METHODS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resampling_is_patching_between_a_prompt_and_its_donor(direction: Direction, method: PatchMethod) -> None:
    model, work = component_model("llama"), workload((5, 5, 6, 6))
    ablation = prepare_ablation(model, "resample", work.batches, AblationSettings(seed=1))
    assert ablation.donors is not None
    donated = replace(work, batches=tuple(with_donors(batch, ablation.donors) for batch in work.batches))
    expected = patch_nodes(model, donated, direction=direction, method=method)
    found = patch_nodes(model, replace(work, ablation=ablation), direction=direction, method=method)
    assert (found.clean, found.corrupt) == pytest.approx((expected.clean, expected.corrupt))
    for one, other in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-4)


def test_attribution_of_zeros_is_minus_value_times_gradient() -> None:
    model, work = component_model("gpt2"), workload((5,))
    found = patch_nodes(model, replace(work, ablation=ZERO), direction="noising", method="attribution", sites=("mlp",))
    (batch,), module = work.batches, place(model, "gpt2", "mlp", 1)[0]
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out.requires_grad_()) or seen[0])
    out = model.hf(batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False)
    handle.remove()
    value = work.metric.compute(out.logits[batch.read_row, batch.read_column], batch, None).sum()
    gradient = torch.autograd.grad(value, seen[0])[0]
    slope = float((gradient * seen[0].detach())[0, -1].sum())
    assert cell_values(found)["m1@4"] == pytest.approx(value.item() - slope, rel=1e-4, abs=1e-4)


def test_what_cannot_be_patched_is_said_in_one_line() -> None:
    model, work = component_model("gpt2"), workload()
    with pytest.raises(ValueError, match=r"'zero'.*--direction noising"):
        patch_nodes(model, replace(work, ablation=ZERO))
    with pytest.raises(ValueError, match="'optimal' has constants for heads and MLPs alone"):
        patch_nodes(model, replace(work, ablation=Ablation("optimal")), direction="noising")
    with pytest.raises(ValueError, match="accuracy"):
        patch_nodes(model, replace(work, metric=METRICS["accuracy"]), method="attribution")
    with pytest.raises(ValueError, match="no prompt pairs"):
        patch_nodes(model, replace(work, batches=()))
    same = tuple(replace(batch, corrupt=batch.clean) for batch in work.batches)
    with pytest.raises(FlatMetric, match="logit-diff"):
        patch_nodes(model, replace(work, batches=same))


@pytest.mark.parametrize("method", PATCH_METHODS)
def test_the_model_is_left_as_it_was_also_after_an_error(method: str) -> None:
    model = ComponentModel(tiny_model("llama"))
    model.hf.train()
    before = state(model)
    patch_nodes(model, workload(), method=method)  # type: ignore[arg-type]
    assert state(model) == before

    def broken(logits: torch.Tensor, batch: Batch, reference: torch.Tensor | None) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("stop")
        return METRICS["logit-diff"].compute(logits, batch, reference)

    calls: list[int] = []
    work = replace(workload(), metric=replace(METRICS["logit-diff"], compute=broken))
    with pytest.raises(RuntimeError, match="stop"):
        patch_nodes(model, work, method=method)  # type: ignore[arg-type]
    assert state(model) == before


def state(model: ComponentModel) -> list[object]:
    """Hooks, modes, gradients and instance attributes of every module."""
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__)
        for module in model.hf.modules()
    ]
    return [modules, [parameter.requires_grad for parameter in model.hf.parameters()]]

"""Path patching against ordinary hooks, one whole pass at a time, and against exact patching of single edges."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, ZERO, AblationKind
from discovery.component_model import ComponentModel
from discovery.embedding_noise import noise_values
from discovery.methods import exact
from discovery.metrics import METRICS
from discovery.optimal_ablation import LearningSettings
from discovery.path_patching import BadPath, Path, patch_paths
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.resampling import with_donors
from discovery.workload import Workload
from graphs.node import EdgeId
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE, logit_difference, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_model

BATCH = token_batch([6, 6, 6], 41, seed=1)
WORK = Workload((BATCH, token_batch([3, 5], 41, seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL)


@cache
def component_model(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


class TwoHops(PlainHooks):
    """The second edge of a path by hand: what the middle node writes once its slot is patched, put into the last slot."""

    def logits_of(self, path: Path) -> torch.Tensor:
        topology = self.model.topology
        first, second = (topology.locate(edge) for edge in path.edges)
        middle = path.edges[0].target
        assert middle.layer is not None
        block, seen = self.model.blocks[middle.layer], {}
        with contextlib.ExitStack() as stack:
            self._watch(stack, block.output, "mix", seen, before=True)
            self._watch(stack, block.post_mlp_norm.module if block.post_mlp_norm else block.mlp, "mlp", seen)
            self.logits_without(*first)
        if middle.kind == "mlp":
            value = seen["mlp"]
        else:
            assert middle.index is not None
            part = slice(middle.index * block.d_head, (middle.index + 1) * block.d_head)
            alone = torch.zeros_like(seen["mix"])
            alone[..., part] = seen["mix"][..., part]
            with torch.no_grad():
                value = block.output(alone) - block.output(torch.zeros_like(alone))
        self.corrupt[second[0]] = value  # `logits_without` puts this in the place of the clean value
        return self.logits_without(*second)


@pytest.mark.parametrize(
    "name", ["a0.h1->a1.h0<q>->logits", "a0.h0->m0->a1.h2<v>", "input->a0.h2<k>->m1", "m0->m1->logits", "input->m0->m1"]
)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox-sequential"])
def test_a_path_of_two_edges_is_what_hooks_do_by_hand(family: str, name: str) -> None:
    if family == "gptj" and name.startswith("a0.h0->m0"):
        name = "a0.h0->m1->logits"  # heads do not feed their own layer's MLP
    model, path = component_model(family), Path.parse(name)
    expected = logit_difference(TwoHops(model, BATCH).logits_of(path), BATCH, None)
    found = patch_paths(model, replace(WORK, batches=(BATCH,)), [path])
    assert found.paths[0].metric == pytest.approx(float(expected.mean()), rel=1e-4, abs=1e-4)
    assert abs(found.paths[0].effect) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_of_one_edge_is_exact_patching(family: str) -> None:
    model = component_model(family)
    rng = np.random.default_rng(0)
    places = rng.permutation(np.argwhere(model.topology.possible))[:12].tolist()
    wanted = np.zeros_like(model.topology.possible)
    wanted[tuple(zip(*places))] = True
    work = replace(WORK, metric=METRICS["kl"])
    expected = exact.edge_effects(model, work, wanted)
    found = patch_paths(model, work, [Path((model.topology.edge(*place),)) for place in places])
    assert expected.stderr is not None
    for (row, column), effect in zip(places, found.paths, strict=True):
        assert effect.path == str(model.topology.edge(row, column))
        assert effect.effect == pytest.approx(expected.values[row, column], rel=1e-3, abs=1e-5)
        assert effect.stderr == pytest.approx(expected.stderr[row, column], rel=1e-3, abs=1e-5)
        assert effect.share == pytest.approx(effect.effect / (found.clean - found.corrupt))


def test_denoising_is_noising_between_swapped_prompts() -> None:
    model, paths = component_model("llama"), [Path.parse("input->a1.h0<q>->logits"), Path.parse("m0->m2")]
    swapped = tuple(replace(batch, clean=batch.corrupt, corrupt=batch.clean) for batch in WORK.batches)
    there = patch_paths(model, WORK, paths, "denoising")
    back = patch_paths(model, replace(WORK, batches=swapped), paths)
    assert (there.clean, there.corrupt) == pytest.approx((back.corrupt, back.clean))
    assert [path.metric for path in there.paths] == pytest.approx([path.metric for path in back.paths])
    assert [path.effect for path in there.paths] == pytest.approx([-path.effect for path in back.paths], abs=1e-5)
    assert [path.share for path in there.paths] == pytest.approx([path.share for path in back.paths], abs=1e-5)


class Noisy(TwoHops):
    """The same between a run with noise on some embeddings and one without: `base` is the one that is patched."""

    def __init__(self, model: ComponentModel, noise: torch.Tensor, base: str) -> None:
        self.noise, self.base = noise, base
        super().__init__(model, replace(BATCH, corrupt=BATCH.clean.clone()))

    def ends(self) -> list[float]:
        """The metric of the run that is patched, and of the other."""
        runs = (self._call(tokens) for tokens in (self.batch.clean, self.batch.corrupt))
        return [float(logit_difference(logits, BATCH, None).detach().mean()) for logits in runs]

    def _call(self, tokens: torch.Tensor) -> torch.Tensor:
        if (tokens is self.batch.clean) != (self.base == "noisy"):
            return super()._call(tokens)
        module = self.model.hf.get_input_embeddings()
        handle = module.register_forward_hook(lambda _m, _a, out: out + self.noise)
        try:
            return super()._call(tokens)
        finally:
            handle.remove()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_under_noise_a_path_is_what_hooks_do_by_hand(family: str, direction) -> None:
    model, path = component_model(family), Path.parse("a0.h1->a1.h0<v>->logits")
    ablation = prepare_ablation(model, "noise", [BATCH], AblationSettings(noise_scale=1.0))
    assert ablation.noise is not None
    values = noise_values(BATCH, ablation.noise, model.config.hidden_size)
    hooks = Noisy(model, values, "clean" if direction == "noising" else "noisy")
    expected = logit_difference(hooks.logits_of(path), BATCH, None)
    found = patch_paths(model, replace(WORK, batches=(BATCH,), ablation=ablation), [path], direction)
    assert found.paths[0].metric == pytest.approx(float(expected.mean()), rel=1e-4, abs=1e-4)
    assert (found.clean, found.corrupt) == pytest.approx(
        hooks.ends() if direction == "noising" else hooks.ends()[::-1], abs=1e-4
    )


def test_zero_on_a_path_is_what_hooks_do_by_hand() -> None:
    model, path = component_model("gpt2"), Path.parse("a0.h1->m1->a2.h3<k>")
    hooks = TwoHops(model, BATCH)
    hooks.corrupt = [torch.zeros_like(value) for value in hooks.clean]
    expected = logit_difference(hooks.logits_of(path), BATCH, None)
    found = patch_paths(model, replace(WORK, batches=(BATCH,), ablation=ZERO), [path])
    assert found.paths[0].metric == pytest.approx(float(expected.mean()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["zero", "mean", "mean-positional", "resample", "noise", "optimal"])
def test_a_path_of_one_edge_is_exact_patching_under_every_ablation(kind: AblationKind) -> None:
    model = component_model("llama")
    settings = AblationSettings(learning=LearningSettings(steps=2))
    work = replace(WORK, ablation=prepare_ablation(model, kind, WORK.batches, settings))
    places = np.argwhere(model.topology.possible)[::23].tolist()
    wanted = np.zeros_like(model.topology.possible)
    wanted[tuple(zip(*places))] = True
    expected = exact.edge_effects(model, work, wanted).values
    found = patch_paths(model, work, [Path((model.topology.edge(*place),)) for place in places])
    effects = [path.effect for path in found.paths]
    assert effects == pytest.approx([float(expected[tuple(place)]) for place in places], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_resampling_is_patching_between_a_prompt_and_its_donor(direction) -> None:
    model, paths = component_model("gptj"), [Path.parse("input->a1.h0<q>->logits"), Path.parse("m0->m2")]
    ablation = prepare_ablation(model, "resample", WORK.batches, AblationSettings(seed=3))
    assert ablation.donors is not None
    donated = tuple(with_donors(batch, ablation.donors) for batch in WORK.batches)
    expected = patch_paths(model, replace(WORK, batches=donated), paths, direction)
    found = patch_paths(model, replace(WORK, ablation=ablation), paths, direction)
    assert [path.metric for path in found.paths] == pytest.approx([path.metric for path in expected.paths], abs=1e-5)
    assert (found.clean, found.corrupt) == pytest.approx((expected.clean, expected.corrupt), abs=1e-5)


def test_constants_are_no_run_to_restore_a_path_in() -> None:
    with pytest.raises(ValueError, match=r"'zero'.*--direction noising for paths"):
        patch_paths(component_model("llama"), replace(WORK, ablation=ZERO), [Path.parse("m0->m1")], "denoising")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("logits", "is no path"),
        ("a0.h1->a2.h0->logits", "a2.h0"),
        ("m2->m1->logits", "m2->m1"),
        ("a0.h9->logits", "a0.h9"),
        ("a0.h1->x->logits", "x"),
    ],
)
def test_what_is_no_path_is_named_in_one_line(text: str, says: str) -> None:
    with pytest.raises(BadPath, match=says) as error:
        patch_paths(component_model("llama"), WORK, [Path.parse(text)])
    assert "\n" not in str(error.value)


def test_a_path_is_read_back_from_its_name() -> None:
    path = Path.parse("a0.h1->a2.h0<q>->logits")
    assert path.edges == (EdgeId.parse("a0.h1->a2.h0<q>"), EdgeId.parse("a2.h0->logits"))
    assert Path.parse(str(path)) == path

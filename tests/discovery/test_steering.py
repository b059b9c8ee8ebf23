"""Steering for the output test: against plain runs of single prompts with one module's input or output changed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.corpus_files import Document
from discovery.evidence_settings import EvidenceSettings
from discovery.steering import SteeringSettings, steering
from graphs.evidence import Context, Evidence, Steering
from graphs.node import NodeId
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

WIDTH = 9
SETTINGS = SteeringSettings(3.0, prompts=99, width=WIDTH, typical=99, evidence=EvidenceSettings(pass_width=24))
WANTED = ("4", "17", "none such")
Change = Callable[[Tensor], Tensor]


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    return [Document(tuple(torch.randint(3, 38, (14,), generator=generator).tolist()), f"row {n}") for n in range(20)]


def held_out() -> list[Tensor]:
    """Every document that may score, as far as it is read."""
    split = SETTINGS.evidence.split_of
    return [torch.tensor([one.content[:WIDTH]]) for n, one in enumerate(documents()) if split(n) == "score"]


def evidence_of(node: NodeId) -> Evidence:
    """A feature whose peaks in held-out windows are 1, 4 and 2, and larger where it is explained."""
    windows = [("score", 1.0), ("score", 4.0), ("score", 2.0), ("explain", 9.0), ("score", 0.0)]
    contexts = [
        Context(f"c{n}", "spread" if peak else "negative", split, n, 0, ("a", "b"), (0.0, peak))  # type: ignore[arg-type]
        for n, (split, peak) in enumerate(windows)
    ]
    return Evidence(node, "tiny", tuple(contexts))


def steered(model: ComponentModel, node: NodeId, kind: str = "jumprelu") -> Steering:
    transcoders = tiny_transcoders(model, kind, 11) if node.kind == "feature" else None  # type: ignore[arg-type]
    return steering(model, transcoders, {node: evidence_of(node)}, documents(), {node: WANTED}, SETTINGS)[node]


def check(found: Steering, model: ComponentModel, place: str, change: Change, at_input: bool = False) -> None:
    """The shares of the vocabulary and the mean changes are those of plain runs."""
    module, rows = model.hf.get_submodule(place), []
    for tokens in held_out():
        with torch.no_grad():
            before = model.hf(tokens).logits[0, -1]
            if at_input:
                handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
            else:
                handle = module.register_forward_hook(lambda _module, _args, out: change(out))
            rows.append((model.hf(tokens).logits[0, -1] - before).double())
            handle.remove()
    changes = torch.stack(rows)
    changes -= changes.mean(1, keepdim=True)
    assert found.prompts == len(rows) > 4
    assert [one.token for one in found.tokens] == ["4", "17"]
    for one in found.tokens:
        own = changes[:, int(one.token)]
        plain = [float((row < value).sum() / (len(row) - 1)) for row, value in zip(changes, own)]
        assert sorted(one.above) == pytest.approx(sorted(plain), abs=0.03)  # a tie up to rounding may fall either way
        assert one.change == pytest.approx(float(own.mean()), rel=1e-3, abs=1e-4)
    values, order = changes.mean(0).sort(descending=True)
    assert [one.token for one in found.raised[:3]] == [str(token) for token in order[:3].tolist()]
    assert found.lowered[0].value == pytest.approx(float(values[-1]), rel=1e-3)


def passed(model: ComponentModel, place: str, at_input: bool) -> Tensor:
    """What passes a module at every token but the first of every held-out prompt."""
    seen: list[Tensor] = []

    def hook(_module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((args[0] if at_input else out)[0, 1:].detach())

    handle = model.hf.get_submodule(place).register_forward_hook(hook)
    for tokens in held_out():
        with torch.no_grad():
            model.hf(tokens)
    handle.remove()
    return torch.cat(seen)


def contrast(own: Tensor, norms: Tensor) -> Tensor:
    """Mean where the norms are in their upper tenth, less the mean."""
    return own[norms >= norms.quantile(0.9)].mean(0) - own.mean(0)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_feature_writes_its_decoder_times_its_median_held_out_peak(family: str) -> None:
    model = ComponentModel(tiny_model(family), name="tiny")
    found = steered(model, NodeId("feature", 1, 5))
    assert (found.multiple, found.strength) == (3.0, 6.0)  # three times the median of 1, 2 and 4
    added = 6.0 * tiny_transcoders(model, "jumprelu", 11).by_layer[1].decoders[1][5]
    place = model.arch.post_mlp_norm or model.arch.mlp
    check(found, model, f"{model.arch.layers}.1.{place}", lambda out: out + added)


@pytest.mark.parametrize("family", ["gpt_neox-parallel", "gemma2"])
def test_an_mlp_writes_more_of_what_it_writes_where_it_writes_most(family: str) -> None:
    model = ComponentModel(tiny_model(family), name="tiny")
    place = f"{model.arch.layers}.0.{model.arch.post_mlp_norm or model.arch.mlp}"
    own = passed(model, place, at_input=False)
    direction = contrast(own, own.norm(dim=-1))
    found = steered(model, NodeId("mlp", 0))
    assert found.strength == pytest.approx(float(3 * direction.norm()), rel=1e-4)
    check(found, model, place, lambda out: out + 3 * direction)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_head_mixes_more_of_what_it_mixes_where_it_writes_most(family: str) -> None:
    model = ComponentModel(tiny_model(family), name="tiny")
    arch, width = model.arch, model.blocks[1].d_head
    place, mine = f"{arch.layers}.1.{arch.attention}.{arch.output}", slice(2 * width, 3 * width)
    own = passed(model, place, at_input=True)[:, mine]
    weight = model.hf.get_submodule(place).weight.detach()[:, mine]  # type: ignore[index,operator,union-attr]
    direction = contrast(own, (own @ weight.t()).norm(dim=-1))
    found = steered(model, NodeId("head", 1, 2))
    assert found.strength == pytest.approx(float(3 * direction.norm()), rel=1e-4)

    def change(mix: Tensor) -> Tensor:
        mix = mix.clone()
        mix[..., mine] += 3 * direction
        return mix

    check(found, model, place, change, at_input=True)


def test_nodes_without_tokens_or_without_held_out_activity_are_left_out() -> None:
    model = ComponentModel(tiny_model("gpt2"), name="tiny")
    node, silent = NodeId("feature", 1, 5), NodeId("feature", 1, 6)
    evidence = {node: evidence_of(node), silent: Evidence(silent, "tiny", evidence_of(silent).of("explain"))}
    transcoders = tiny_transcoders(model, "jumprelu", 11)
    found = steering(model, transcoders, evidence, documents(), {node: WANTED, silent: WANTED}, SETTINGS)
    assert list(found) == [node]
    assert steering(model, transcoders, evidence, documents(), {node: (), NodeId("error", 0): WANTED}, SETTINGS) == {}

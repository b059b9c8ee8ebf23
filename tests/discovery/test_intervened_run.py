"""Intervened passes of tiny models of every family, against plain hooks and the local replacement model's arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.intervened_run import intervened_pass, untouched_pass
from discovery.intervention import BadIntervention, DirectionEdit, Edit, Prompts, prompts_of
from discovery.replacement import LocalReplacement
from discovery.sites import at_site
from discovery.transcoder import TRANSCODER_READS, TRANSCODER_WRITES, Site
from graphs.node import NodeId
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, TranscoderKind, random_tokens, tiny_transcoders

# Each family with one kind, and one family with every kind.
PAIRS = [
    *zip(FAMILIES, KINDS * 3),
    *(("llama", kind) for kind in KINDS),
    ("gemma2", "skip"),
    ("gptj", "cross-layer"),
    ("olmo2", "skip"),
]


@pytest.fixture(scope="module")
def model() -> Callable[[str], ComponentModel]:
    made: dict[str, ComponentModel] = {}

    def get(family: str) -> ComponentModel:
        return made.setdefault(family, ComponentModel(tiny_model(family)))

    return get


def everywhere(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(tokens), dtype=torch.long), torch.arange(len(tokens))


@contextlib.contextmanager
def hooked(module: torch.nn.Module, change: Callable[[Tensor], Tensor], before: bool = False) -> Iterator[None]:
    """Changes what a module is called with, or returns."""

    def called(module: torch.nn.Module, args: tuple) -> tuple:
        return (change(args[0]), *args[1:])

    def returned(module: torch.nn.Module, args: tuple, out: Tensor) -> Tensor:
        return change(out)

    handle = module.register_forward_pre_hook(called) if before else module.register_forward_hook(returned)
    yield
    handle.remove()


def logits_of(model: ComponentModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.hf(tokens[None]).logits[0]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_interventions_every_run_is_the_model(model, family: str) -> None:
    model = model(family)
    rows = [random_tokens(model, seed=3)[0].tolist(), random_tokens(model, seed=4)[1].tolist()[:8]]
    prompts = prompts_of(rows)
    whole = [logits_of(model, torch.tensor(row)) for row in rows]
    transcoders = tiny_transcoders(model, "skip")
    for freeze in ("none", "attention", "all"):
        outcome = intervened_pass(model, transcoders, prompts, freeze=freeze, streams=True)
        assert close(outcome.logits, torch.stack([logits[-1] for logits in whole]))
        assert len(outcome.streams) == len(model.blocks) + 1
        alone = intervened_pass(model, transcoders, torch.tensor(rows[1]), freeze=freeze)
        for layer in range(len(model.blocks)):
            assert close(outcome.preactivations(layer)[1, -8:], alone.preactivations(layer)[0])


SITED = [
    (*pair, reads, writes)
    for pair, reads, writes in zip(PAIRS, TRANSCODER_READS * len(PAIRS), TRANSCODER_WRITES * len(PAIRS))
]


@pytest.mark.parametrize(("family", "kind", "reads", "writes"), SITED)
def test_frozen_doubling_is_the_edge(model, family: str, kind: TranscoderKind, reads: Site, writes: Site) -> None:
    model = model(family)
    transcoders = tiny_transcoders(model, kind, reads=reads, writes=writes)
    tokens = random_tokens(model, seed=1)[0]
    replacement = LocalReplacement(model, transcoders, tokens)
    features = replacement.features
    order = features.layer.argsort(descending=True, stable=True)
    effects = replacement.direct_effects(replacement.feature_readouts(order)).t()
    untouched = untouched_pass(model, prompts_of([tokens.tolist()]))
    lower = int((features.layer < len(model.blocks) - 1).sum())
    some = torch.randperm(lower, generator=torch.Generator().manual_seed(0))[:4].tolist()
    cells = torch.zeros(len(some), len(some), len(tokens), dtype=torch.bool)
    edits = []
    for row, source in enumerate(some):
        cells[row, row, features.position[source]] = True
        edits.append(
            Edit("feature", int(features.layer[source]), int(features.index[source]), None, "scale", 2.0, cells[row])
        )
    prompts = prompts_of([tokens.tolist()] * len(some))
    run = intervened_pass(model, transcoders, prompts, edits, freeze="all", untouched=untouched)
    h = torch.stack([run.preactivations(layer) for layer in range(len(model.blocks))])
    after = h[features.layer[order], :, features.position[order], features.index[order]]
    change = after - features.preactivation[order, None]
    assert torch.allclose(change, effects[:, some], atol=5e-4, rtol=1e-5)
    assert float(change.abs().max()) > 0.01


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_live_features_change_what_the_mlp_writes(model, family: str, kind: TranscoderKind) -> None:
    """Against an MLP that is hooked by hand: clamped at one position, doubled at another, where upstream has changed too."""
    model = model(family)
    site: Site = "mlp-raw" if family in ("gemma3", "olmo2") else "mlp-out"
    transcoders = tiny_transcoders(model, kind, writes=site)
    tokens = random_tokens(model, seed=5)[0]
    edits = [
        Edit.of(NodeId.parse("f0.2@3"), "set", 1.5),
        Edit.of(NodeId.parse("f1.4@-1"), "scale", 2.0),
        Edit.of(NodeId.parse("f1.5"), "add", 0.25),
    ]
    reads = {}
    written = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(model.blocks):
            own = transcoders.by_layer[layer]

            def see(x: Tensor, layer: int = layer, own=own) -> Tensor:
                a = own.encode(x[0])
                reads[layer] = a
                new = a.clone()
                if layer == 0:
                    new[3, 2] = 1.5
                if layer == 1:
                    new[-1, 4] *= 2
                    new[:, 5] += 0.25
                for target, decoder in own.decoders.items():
                    written[target] = written.get(target, 0) + (new - a) @ decoder
                return x

            stack.enter_context(hooked(block.mlp, see, before=True))
            writer = block.mlp
            if block.post_mlp_norm is not None and site == "mlp-out":
                writer = block.post_mlp_norm.module
            stack.enter_context(hooked(writer, lambda out, layer=layer: out + written.get(layer, 0)))
        expected = logits_of(model, tokens)
    run = intervened_pass(model, transcoders, tokens, edits, reads=everywhere(tokens))
    assert close(run.logits, expected)
    assert not close(run.logits, logits_of(model, tokens))
    for layer in reads:
        assert close(run.activations(layer)[0], reads[layer])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox-parallel", "phi3", "llama-bias", "gemma3", "olmo2"])
def test_heads_and_mlps(model, family: str) -> None:
    model = model(family)
    tokens = random_tokens(model, seed=6)[0]
    block, last = model.blocks[1], model.blocks[-1]

    def without_head(mix: Tensor) -> Tensor:
        mix = mix.clone()
        mix.unflatten(-1, (block.heads, -1))[:, 4, 2] = 0
        return mix

    writer = last.mlp if last.post_mlp_norm is None else last.post_mlp_norm.module
    with hooked(block.output, without_head, before=True), hooked(writer, lambda out: out * 3):
        expected = logits_of(model, tokens)
    edits = [Edit.of(NodeId.parse("a1.h2@4")), Edit("mlp", last.index, operation="scale", value=3.0)]
    assert close(intervened_pass(model, None, tokens, edits, reads=everywhere(tokens)).logits, expected)


def test_frozen_attention_keeps_patterns_and_moves_values(model) -> None:
    """With attention frozen, a pass under a changed MLP mixes its own values by the untouched patterns."""
    model = model("llama")
    tokens = random_tokens(model, seed=7)[0]
    untouched = untouched_pass(model, prompts_of([tokens.tolist()]))
    edits = [Edit("mlp", 0)]
    run = intervened_pass(model, None, tokens, edits, freeze="attention", untouched=untouched, streams=True)
    block, stream = model.blocks[1], run.streams[1]
    with torch.no_grad():
        assert block.attention_norm is not None
        normed = block.attention_norm(stream)
        values = torch.einsum("rpd,hed->rphe", normed, block.weight("v")).repeat_interleave(2, 2)
        mixed = torch.einsum("rhqk,rkhe->rqhe", untouched.seen.patterns[1], values)
        attended = block.output(mixed.flatten(-2))
        assert block.mlp_norm is not None
        middle = stream + attended
        expected = middle + block.mlp(block.mlp_norm(middle))
    assert close(run.streams[2], expected)
    live = intervened_pass(model, None, tokens, edits, streams=True)
    assert not close(live.streams[2], expected)


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "relu"), ("gemma2", "skip"), ("llama", "cross-layer")])
def test_error_nodes(model, family: str, kind: TranscoderKind) -> None:
    """Without its error, a layer writes what the dictionaries rebuild; scaled by one it writes its own."""
    model = model(family)
    transcoders = tiny_transcoders(model, kind)
    tokens = random_tokens(model, seed=8)[0]
    block = model.blocks[1]
    inputs = {}
    writer = block.mlp if block.post_mlp_norm is None else block.post_mlp_norm.module
    with contextlib.ExitStack() as stack:
        for each in model.blocks[:2]:
            keep = lambda x, layer=each.index: inputs.update({layer: x}) or x  # noqa: E731
            stack.enter_context(hooked(each.mlp, keep, before=True))
        stack.enter_context(hooked(writer, lambda out: transcoders.reconstruct(inputs, 1)))
        expected = logits_of(model, tokens)
    run = intervened_pass(model, transcoders, tokens, [Edit("error", 1)], reads=everywhere(tokens))
    assert close(run.logits, expected)
    same = intervened_pass(model, transcoders, tokens, [Edit("error", 1, operation="scale", value=1.0)])
    assert close(same.logits[0], logits_of(model, tokens)[-1])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox-parallel", "gemma2", "llama"])
@pytest.mark.parametrize(
    "site", ["residual-in", "attention-mix", "attention-out", "residual-mid", "mlp-raw", "mlp-out", "residual-out"]
)
def test_autoencoders_at_every_site(model, family: str, site: Site) -> None:
    """What an autoencoder reads next, where the site is not changed again, has moved by the edit; errors can be removed."""
    model = model(family)
    autoencoders = tiny_transcoders(model, "relu", reads=site, writes=site)
    tokens = random_tokens(model, seed=9)[0]
    prompts = prompts_of([tokens.tolist()])
    seen = untouched_pass(model, prompts).seen
    x = at_site(model.blocks, seen, 1, site)
    edited = autoencoders.by_layer[1]
    shift = (3.0 - edited.encode(x)[0, -1, 7]) * edited.decoders[1][7]
    run = intervened_pass(model, autoencoders, tokens, [Edit.of(NodeId.parse("f1.7@-1"), "set", 3.0)], streams=True)
    assert close(run.inputs[1], x), "the autoencoder reads before its own edit"
    if site == "residual-out":
        assert close(run.streams[2][0, -1] - seen.attention_in[2][0, -1], shift)
    elif site == "residual-in" or (site == "residual-mid" and model.blocks[1].parallel):
        assert close(run.streams[1][0, -1] - seen.attention_in[1][0, -1], shift)
    elif site in ("mlp-raw", "mlp-out") and model.blocks[1].post_mlp_norm is None:
        assert close(run.streams[2][0, -1] - seen.attention_in[2][0, -1], shift)
    assert not close(run.logits[0], logits_of(model, tokens)[-1])
    rebuilt = intervened_pass(model, autoencoders, tokens, [Edit("error", 1)], streams=True)
    if site == "residual-out":
        assert close(rebuilt.streams[2], autoencoders.reconstruct({1: x}, 1))
    if site == "residual-mid" and not model.blocks[1].parallel:
        # The stream between the sublayers is the rebuilt one, for the MLP and for what is carried on.
        block, middle = model.blocks[1], autoencoders.reconstruct({1: x}, 1)
        assert block.mlp_norm is not None
        with torch.no_grad():
            out = block.mlp(block.mlp_norm(middle))
            out = out if block.post_mlp_norm is None else block.post_mlp_norm(out)
        assert close(rebuilt.streams[2], middle + out)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "llama"])
def test_directions(model, family: str) -> None:
    model = model(family)
    tokens = random_tokens(model, seed=10)[0]
    width = model.blocks[0].weight("q").shape[-1]
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    gone = intervened_pass(model, None, tokens, directions=[DirectionEdit(vector)], streams=True)
    plain = intervened_pass(model, None, tokens, streams=True)
    for stream, own in zip(gone.streams, plain.streams):
        assert float((stream @ vector).abs().max()) < 1e-4 * float(stream.norm(dim=-1).max() * vector.norm())
        assert float((own @ vector).abs().max()) > 1e-2
    added = intervened_pass(model, None, tokens, directions=[DirectionEdit(vector, 0.5, (1,), -2)], streams=True)
    assert close(added.streams[1][0, -2], plain.streams[1][0, -2] + 0.5 * vector)
    assert close(added.streams[1][0, :-2], plain.streams[1][0, :-2])
    assert not close(added.logits, plain.logits)
    one = intervened_pass(model, None, tokens, directions=[DirectionEdit(vector, None, (2,))], streams=True)
    assert close(one.streams[1], plain.streams[1])
    assert float((one.streams[2] @ vector).abs().max()) < 1e-3


def test_constrained_layers_hold_their_mlp(model) -> None:
    """As circuit-tracer's constrained layers: held MLPs do not answer to upstream changes, the others do."""
    model = model("llama")
    tokens = random_tokens(model, seed=11)[0]
    transcoders = tiny_transcoders(model, "relu")
    edits = [Edit.of(NodeId.parse("f0.3@4"), "set", 5.0)]
    untouched = untouched_pass(model, prompts_of([tokens.tolist()]))
    run = intervened_pass(
        model, transcoders, tokens, edits, freeze="attention", constrained=(1, 2), untouched=untouched, streams=True
    )
    with hooked(model.blocks[1].mlp, lambda out: untouched.seen.mlp_out[1]):
        alone = intervened_pass(
            model, transcoders, tokens, edits, freeze="attention", untouched=untouched, streams=True
        )
    assert close(run.streams[2], alone.streams[2])
    free = intervened_pass(model, transcoders, tokens, edits, freeze="attention", untouched=untouched, streams=True)
    assert not close(run.streams[2], free.streams[2])


def test_positions_of_padded_prompts() -> None:
    prompts = prompts_of([[5, 6, 7], [8, 9]])
    assert prompts.columns(0).tolist() == [0, 1]
    assert prompts.columns(-1).tolist() == [2, 2]
    longer = Prompts(prompts.sequences, torch.tensor([2, 1]))  # the last column is an answer's
    assert longer.columns(-1).tolist() == [1, 1]
    assert longer.cells(None).sum() == 5
    with pytest.raises(BadIntervention, match="no position 2 in a prompt of 2"):
        prompts.columns(2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("feature", 7, 0), "layers 0 to 2"),
        (Edit("feature", 1, 13), "there are 13"),
        (Edit("head", 1, 4), "there are 4"),
        (Edit("mlp", -1), "layers 0 to 2"),
    ],
)
def test_what_does_not_exist_is_named(model, edit: Edit, message: str) -> None:
    model = model("llama")
    tokens = random_tokens(model, seed=1)[0]
    with pytest.raises(BadIntervention, match=message):
        intervened_pass(model, tiny_transcoders(model, "relu"), tokens, [edit])
    with pytest.raises(BadIntervention):
        Edit.of(NodeId.parse("logits"))

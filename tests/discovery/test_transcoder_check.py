"""Checking dictionaries on real activations: numbers against slow ones, exact dictionaries lose nothing, faults are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from discovery.activation_stream import ActivitySource, padded
from discovery.blocks import find_blocks
from discovery.component_model import ComponentModel
from discovery.corpus_files import Window
from discovery.reconstruction import measure_fit
from discovery.recording import session
from discovery.sites import at_site
from discovery.transcoder import SITES, Activation, BadTranscoder, Site, Transcoder, TranscoderSet
from discovery.transcoder_check import check_transcoders
from discovery.transcoder_splice import Splice, constant_output, dictionary_output, next_token_loss
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import random_tokens, record, tiny_transcoders

SOME = ("gpt2", "gpt_neox-parallel", "gpt_neo", "phi", "llama", "gemma2", "gemma3", "olmo2")


def windows(model: ComponentModel, rows: int = 6, seed: int = 3) -> tuple[Window, ...]:
    """Rows of different lengths with one or two fixed positions."""
    tokens = random_tokens(model, seed, rows, 12)
    return tuple(Window(tuple(tokens[row, : 12 - row % 4].tolist()), row, 1 + row % 2) for row in range(rows))


def seen_at(model: ComponentModel, some: tuple[Window, ...], layer: int, site: Site) -> Tensor:
    """Activations at the free positions [token d_site], each window in a pass of its own."""
    parts = []
    for window in some:
        seen = record(model, torch.tensor([window.tokens]))
        parts.append(at_site(model.blocks, seen, layer, site)[0, window.fixed :])
    return torch.cat(parts)


def exact(model: ComponentModel, site: Site, centre: float = 0.0, square: bool = False) -> TranscoderSet:
    """Autoencoders of every layer that rebuild their input exactly. centre: size of a decoder bias, taken off the input."""
    generator = torch.Generator().manual_seed(0)
    made, biases = [], {}
    seen = record(model, random_tokens(model))
    for layer in range(len(model.blocks)):
        width = at_site(model.blocks, seen, layer, site).shape[-1]
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        bias = centre * torch.randn(width, generator=generator)
        encoder = basis if square else torch.cat([basis, -basis])
        # A square one works where its features never are off.
        offset = torch.full((len(encoder),), 500.0) if square else torch.zeros(len(encoder))
        made.append(Transcoder(layer, encoder, offset - encoder @ bias, {layer: encoder}, Activation("relu")))
        biases[layer] = bias - (offset @ encoder if square else 0)
    return TranscoderSet(tuple(made), site, site, biases, name="exact")


def fitted(model: ComponentModel, some: tuple[Window, ...], reads: Site, writes: Site, shift: int = 0) -> TranscoderSet:
    """Transcoders with random features whose decoders are fitted to the sample. shift: layer that they are fitted to."""
    generator = torch.Generator().manual_seed(0)
    made, biases = [], {}
    for layer in range(len(model.blocks) - shift):
        x = seen_at(model, some, layer + shift, reads)
        y = seen_at(model, some, layer + shift, writes)
        encoder = torch.randn(90, x.shape[1], generator=generator) / x.std() / x.shape[1] ** 0.5
        acts = torch.cat([(x @ encoder.t()).relu(), torch.ones(len(x), 1)], 1)
        solution = torch.linalg.lstsq(acts.double(), y.double(), driver="gelsd").solution.float()
        made.append(Transcoder(layer, encoder, torch.zeros(90), {layer: solution[:-1]}, Activation("relu")))
        biases[layer] = solution[-1]
    return TranscoderSet(tuple(made), reads, writes, biases, name="fitted")


@pytest.mark.parametrize("kind", ["jumprelu", "skip", "cross-layer"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_numbers_against_slow_ones(family: str, kind: str) -> None:
    model = ComponentModel(tiny_model(family))
    transcoders = tiny_transcoders(model, kind, reads="residual-mid")  # type: ignore[arg-type]
    some = windows(model, 9)
    found = check_transcoders(model, transcoders, some, splice=False)
    x = {one.layer: seen_at(model, some, one.layer, "residual-mid") for one in transcoders}
    assert found.tokens == sum(window.free for window in some) == len(x[0])
    for one in found.layers:
        y = seen_at(model, some, one.layer, "mlp-out").double()
        error = y - transcoders.reconstruct(x, one.layer).double()
        assert one.fvu == pytest.approx(float(error.square().sum() / (y - y.mean(0)).square().sum()), rel=1e-4)
        acts = transcoders.by_layer[one.layer].encode(x[one.layer])
        assert one.l0 == pytest.approx(float((acts != 0).sum(1).double().mean()), abs=1.5 / len(acts))
        assert one.dead == pytest.approx(float((acts == 0).all(0).double().mean()), abs=1e-6)
        assert one.largest == pytest.approx(float(acts.max()), rel=1e-4)


def test_a_sample_in_many_batches_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ComponentModel(tiny_model("llama"))
    transcoders, some = tiny_transcoders(model, "topk"), windows(model, 9)
    whole = check_transcoders(model, transcoders, some)
    monkeypatch.setattr("discovery.transcoder_check._PASS_TOKENS", 12)
    parts = check_transcoders(model, transcoders, some)
    for one, other in zip(whole.layers, parts.layers):
        for field in ("fvu", "l0", "dead", "largest", "spliced_loss", "ablated_loss"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-4)
    assert whole.spliced_loss == pytest.approx(parts.spliced_loss, rel=1e-4)


@pytest.mark.parametrize(("family", "kind"), [("olmo2", "skip"), ("gpt_neox-parallel", "cross-layer")])
def test_trainings_figures_are_the_same(family: str, kind: str) -> None:
    model = ComponentModel(tiny_model(family))
    transcoders, some = tiny_transcoders(model, kind), windows(model, 9)  # type: ignore[arg-type]
    layers = tuple(range(len(model.blocks)))
    found = check_transcoders(model, transcoders, some, splice=False)
    fits = measure_fit(transcoders, ActivitySource(model, layers, "mlp-in", "mlp-out", pass_tokens=30), some)
    for one, fit in zip(found.layers, fits, strict=True):
        assert one.layer == fit.layer
        for field in ("fvu", "l0", "dead"):
            assert getattr(one, field) == pytest.approx(getattr(fit, field), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox-parallel", "gemma2", "olmo2"])
def test_exact_autoencoders_lose_nothing_at_any_site(family: str) -> None:
    model = ComponentModel(tiny_model(family))
    some = windows(model, 2)
    for site in SITES:
        found = check_transcoders(model, exact(model, site), some)
        assert found.clean_loss is not None and found.spliced_loss is not None
        assert found.spliced_loss == pytest.approx(found.clean_loss, rel=1e-4)
        for one in found.layers:
            assert one.fvu < 1e-6 and one.diagnosis is None
            assert one.spliced_loss == pytest.approx(found.clean_loss, rel=1e-4)


@pytest.mark.parametrize("family", SOME)
def test_the_clean_loss_is_the_models_own(family: str) -> None:
    model = ComponentModel(tiny_model(family))
    some = windows(model)
    found = check_transcoders(model, exact(model, "mlp-out"), some)
    total, count = 0.0, 0
    for window in some:
        tokens = torch.tensor([window.tokens])
        with torch.no_grad():
            logits = model.hf(tokens).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    assert found.clean_loss == pytest.approx(total / count, rel=1e-5)


def hooked_loss(model: ComponentModel, window: Window, hook: object, layers: tuple[int, ...]) -> float:
    """Cross-entropy of one window with a hook on the MLP modules of these layers."""
    handles = [model.blocks[layer].mlp.register_forward_hook(hook(layer)) for layer in layers]  # type: ignore[operator]
    tokens = torch.tensor([window.tokens])
    with torch.no_grad():
        logits = model.hf(tokens).logits[0, :-1].float()
    for handle in handles:
        handle.remove()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_splicing_against_plain_hooks(family: str, layers: tuple[int, ...]) -> None:
    model = ComponentModel(tiny_model(family))
    transcoders = tiny_transcoders(model, "jumprelu", reads="mlp-in", writes="mlp-raw")
    blocks = find_blocks(model.hf, model.arch, False)
    means = {layer: torch.randn(blocks[layer].weight("q").shape[-1]) for layer in layers}
    for window in windows(model, 3):

        def dictionary(layer: int, window: Window = window) -> object:
            def hook(module: object, args: tuple, out: Tensor) -> Tensor:
                new = transcoders.reconstruct({layer: args[0]}, layer)
                return torch.cat([out[:, : window.fixed], new[:, window.fixed :]], 1)

            return hook

        def constant(layer: int, window: Window = window) -> object:
            def hook(module: object, args: tuple, out: Tensor) -> Tensor:
                return torch.cat([out[:, : window.fixed], means[layer].expand_as(out)[:, window.fixed :]], 1)

            return hook

        sequences, free = padded([window], model.device)
        for rebuild, plain in ((dictionary_output(transcoders), dictionary), (constant_output(means), constant)):
            visitor = Splice(blocks, transcoders, layers, rebuild, free, model.dtype)
            with session(model.hf, model.arch, blocks):
                loss, count = next_token_loss(model, blocks, sequences, visitor)
            assert count == len(window.tokens) - 1
            assert loss == pytest.approx(hooked_loss(model, window, plain, layers), rel=1e-4)


@pytest.mark.parametrize("reads", ["residual-in", "residual-mid", "mlp-norm", "mlp-in"])
@pytest.mark.parametrize("family", SOME)
def test_dictionaries_read_the_same_in_a_splice_as_in_a_record(family: str, reads: Site) -> None:
    model = ComponentModel(tiny_model(family))
    transcoders = tiny_transcoders(model, "relu", reads=reads)
    blocks = find_blocks(model.hf, model.arch, False)
    some = windows(model, 1)
    sequences, free = padded(some, model.device)
    met: dict[int, Tensor] = {}
    own = [seen_at(model, some, layer, "mlp-out") for layer in range(len(blocks))]

    def rebuild(layer: int, inputs: Mapping[int, Tensor]) -> Tensor:
        met.update(inputs)
        return own[layer]  # nothing changes, so that later layers read what they always do

    visitor = Splice(blocks, transcoders, range(len(blocks)), rebuild, free, model.dtype)
    with session(model.hf, model.arch, blocks):
        next_token_loss(model, blocks, sequences, visitor)
    for layer in range(len(blocks)):
        torch.testing.assert_close(met[layer], seen_at(model, some, layer, reads), rtol=1e-4, atol=1e-5)


def test_mean_and_zero_ablation_and_what_is_recovered() -> None:
    model = ComponentModel(tiny_model("llama"))
    transcoders, some = exact(model, "mlp-out"), windows(model)
    mean, zero = (check_transcoders(model, transcoders, some, ablation=kind) for kind in ("mean", "zero"))
    assert (mean.ablation, zero.ablation) == ("mean", "zero") and mean.ablated_loss != zero.ablated_loss
    for one in (mean, zero, *mean.layers):
        if one.recovered is not None:
            assert one.recovered == pytest.approx(1.0, abs=1e-3)


# What is wrong is named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "made_for", "said", "message"),
    [
        ("llama", ("mlp-in", "mlp-out"), ("residual-mid", "mlp-out"), "reading mlp-in instead of residual-mid gives"),
        ("llama", ("residual-mid", "mlp-out"), ("mlp-in", "mlp-out"), "reading residual-mid instead of mlp-in gives"),
        ("gemma2", ("mlp-norm", "mlp-out"), ("residual-mid", "mlp-out"), "reading mlp-norm instead of residual-mid"),
        ("gemma2", ("mlp-in", "mlp-out"), ("mlp-in", "mlp-raw"), "writing mlp-out instead of mlp-raw gives"),
        (
            "llama",
            ("residual-out", "residual-out"),
            ("residual-in", "residual-in"),
            "residual-out instead of residual-in",
        ),
    ],
)
def test_a_wrong_site_is_named(family: str, made_for: tuple[Site, Site], said: tuple[Site, Site], message: str) -> None:
    model = ComponentModel(tiny_model(family))
    some = windows(model, 8)
    right = fitted(model, some, *made_for)
    assert all(one.diagnosis is None for one in check_transcoders(model, right, some, splice=False).layers)
    wrong = dataclasses.replace(right, reads=said[0], writes=said[1])
    bad = [one for one in check_transcoders(model, wrong, some, splice=False).layers if one.fvu > 0.3]
    assert bad
    for one in bad:
        assert one.diagnosis is not None and message in one.diagnosis
        assert one.diagnosis.startswith(f"layer {one.layer}: FVU ") and "\n" not in one.diagnosis
    assert (
        "the encoder expects the normed input" in str(bad[0].diagnosis)
        or made_for[0] != "mlp-in"
        or said[0] == "mlp-in"
    )


def test_a_wrong_layer_is_named() -> None:
    model = ComponentModel(tiny_model("llama"))
    some = windows(model, 8)
    found = check_transcoders(model, fitted(model, some, "mlp-in", "mlp-out", shift=1), some, splice=False)
    for one in found.layers:
        assert one.fvu > 0.9 and f"taking it for layer {one.layer + 1} gives" in str(one.diagnosis)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("encoder", "transposing W_enc gives"),
        ("decoder", "transposing W_dec gives"),
        ("not subtracted", "; subtracting b_dec from the input gives"),
        ("subtracted", "not subtracting b_dec from the input gives"),
    ],
)
def test_wrong_weights_are_named(which: str, message: str) -> None:
    model = ComponentModel(tiny_model("llama"))
    square = which in ("encoder", "decoder")
    given = exact(model, "residual-out", centre=0.0 if which != "not subtracted" else 30.0, square=square)
    if which == "subtracted":  # a bias that was made without being taken off the input
        biases = {one.layer: 30 * torch.randn(24, generator=torch.Generator().manual_seed(1)) for one in given}
        sites = [
            dataclasses.replace(one, encoder_bias=-one.encoder @ biases[one.layer] * 2) for one in given.transcoders
        ]
        given = dataclasses.replace(given, transcoders=tuple(sites), biases=biases)
    wrong = []
    for one in given:
        decoder = one.decoders[one.layer]
        wrong.append(
            {
                "encoder": lambda one=one, decoder=decoder: dataclasses.replace(one, encoder=one.encoder.t()),
                "decoder": lambda one=one, decoder=decoder: dataclasses.replace(one, decoders={one.layer: decoder.t()}),
                "not subtracted": lambda one=one, decoder=decoder: dataclasses.replace(
                    one, encoder_bias=torch.zeros(one.features)
                ),
                "subtracted": lambda one=one, decoder=decoder: one,
            }[which]()
        )
    found = check_transcoders(
        model, dataclasses.replace(given, transcoders=tuple(wrong)), windows(model, 8), splice=False
    )
    for one in found.layers:
        assert one.fvu > 0.9 and message in str(one.diagnosis)


def test_a_poor_fit_without_a_better_place_is_left_alone() -> None:
    model = ComponentModel(tiny_model("llama"))
    some = windows(model, 8)
    right = fitted(model, some, "mlp-in", "mlp-out")
    halved = tuple(dataclasses.replace(one, decoders={n: d * 0.3 for n, d in one.decoders.items()}) for one in right)
    biases = {
        layer: bias + 0.7 * (seen_at(model, some, layer, "mlp-out").mean(0) - bias)
        for layer, bias in right.biases.items()
    }
    poor = dataclasses.replace(right, transcoders=halved, biases=biases)
    for one in check_transcoders(model, poor, some, splice=False).layers:
        assert 0.3 < one.fvu < 0.9 and one.diagnosis is None


def test_what_cannot_be_explained_is_said() -> None:
    model = ComponentModel(tiny_model("llama"))
    found = check_transcoders(model, tiny_transcoders(model, "relu"), windows(model), splice=False)
    assert all("is it of this model?" in str(one.diagnosis) for one in found.layers)


def test_sets_that_do_not_fit() -> None:
    model = ComponentModel(tiny_model("llama"))
    other = ComponentModel(tiny_model("gpt_neo"))
    wide = ComponentModel(tiny_model("phi"))
    transcoders = tiny_transcoders(model, "relu")
    with pytest.raises(BadTranscoder, match="layer 2; the model has 2 layers"):
        check_transcoders(other, transcoders, windows(other))
    with pytest.raises(BadTranscoder, match="layer 0 reads 24 dimensions; mlp-in of the model has 32"):
        check_transcoders(wide, transcoders, windows(wide))

"""Training transcoders: streams give the model's own activations, folding keeps the function, runs resume and share work."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file

from discovery.activation_stream import Activity, ActivitySource, ActivityStream
from discovery.component_model import ComponentModel
from discovery.corpus_files import BadCorpus, Document, Window, token_windows
from discovery.dictionary import Dictionary, DictionaryKind, Scaling, above, largest, threshold_for
from discovery.reconstruction import measure_fit
from discovery.training_settings import TrainingSettings
from discovery.transcoder import BadTranscoder, TranscoderSet
from discovery.transcoder_training import Trained, train_transcoders
from tests.discovery.tiny_models import FAMILIES, tiny_model

SMALL = TrainingSettings(features=40, k=5, steps=24, batch=64, buffer=9999, dead_after=400)


def text(seed: int = 0, documents: int = 12) -> tuple[Window, ...]:
    """Windows of random tokens, of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 40, (documents,), generator=generator).tolist()
    made = [Document(tuple(torch.randint(3, 41, (n,), generator=generator).tolist()), "random") for n in lengths]
    return token_windows(made, None, 12, 41)


def source(family: str = "llama", layers: tuple[int, ...] = (0, 1, 2), pass_tokens: int = 4096) -> ActivitySource:
    return ActivitySource(ComponentModel(tiny_model(family)), layers, "mlp-in", "mlp-out", pass_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_activity_is_what_the_mlps_are_given_and_give(family: str) -> None:
    """Each window alone, unpadded, through the untouched model with plain hooks."""
    windows = text(documents=5)
    layers = (0, 1)
    here = source(family, layers, pass_tokens=40)
    blocks = here.model.blocks
    wanted: list[tuple[float, ...]] = []
    for window in windows:
        seen: dict[tuple[int, str], torch.Tensor] = {}
        handles = []
        for layer in layers:
            block = blocks[layer]
            out = block.mlp if block.post_mlp_norm is None else block.post_mlp_norm.module

            def read(module: torch.nn.Module, args: tuple, seen: dict = seen, layer: int = layer) -> None:
                seen[layer, "in"] = args[0]

            def wrote(
                module: torch.nn.Module, args: tuple, value: torch.Tensor, seen: dict = seen, layer: int = layer
            ) -> None:
                seen[layer, "out"] = value

            handles += [block.mlp.register_forward_pre_hook(read), out.register_forward_hook(wrote)]
        with torch.no_grad():
            here.model.hf(torch.tensor([window.tokens]))
        for handle in handles:
            handle.remove()
        for place in range(window.fixed, len(window.tokens)):
            parts = [seen[layer, side][0, place] for layer in layers for side in ("in", "out")]
            wanted.append(tuple(torch.cat(parts).tolist()))
    whole = here.collect(windows)
    parts = [x[i] for i in range(len(layers)) for x in (whole.inputs, whole.outputs)]
    found = torch.cat(parts, 1)
    assert found.shape[0] == sum(len(window.tokens) - 1 for window in windows)
    expected = torch.tensor(wanted)
    distances = torch.cdist(found.double(), expected.double())
    nearest, places = distances.min(1)
    assert float(nearest.max()) < 1e-4 * float(expected.abs().max())
    assert sorted(places.tolist()) == list(range(len(expected))) or float(torch.pdist(expected).min()) < 1e-5


def test_a_stream_is_a_function_of_the_batch_number() -> None:
    stream = ActivityStream(source(), text(), batch=16, buffer=50, seed=3)
    first = list(itertools.islice(stream.batches(), 12))
    for start in (0, 5, 8):
        for one, other in zip(first[start:], stream.batches(start)):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.outputs, other.outputs)
    other_seed = next(dataclasses.replace(stream, seed=4).batches())
    assert not torch.equal(first[0].inputs, other_seed.inputs)


def test_streams_share_the_windows() -> None:
    """The first round of two streams is all the tokens, each once."""
    windows, here = text(), source()
    tokens = sum(window.free for window in windows)
    rows = here.collect(windows).inputs[2]
    for streams in (1, 2, 3):
        made = [ActivityStream(here, windows, 1, 1, 0, number, streams) for number in range(streams)]
        seen: list[Window] = []
        for one in made:
            some = itertools.islice(one._chunks(1), len(windows[one.number :: streams]))
            seen += [window for chunk in some for window in chunk]
        assert sorted(seen, key=lambda w: w.tokens) == sorted(windows, key=lambda w: w.tokens)
    stream = ActivityStream(here, windows, batch=tokens, buffer=10**9)
    batch = next(stream.batches()).inputs[2]
    assert torch.cdist(batch.double(), rows.double()).min(1).values.max() < 1e-4
    assert not torch.equal(batch, rows)


def test_too_little_text_is_said() -> None:
    with pytest.raises(BadCorpus, match="fewer than a batch of 4096"):
        next(ActivityStream(source(), text(), batch=4096, buffer=9999).batches())


def test_selections() -> None:
    torch.manual_seed(0)
    h, decoder = torch.randn(7, 20) + 0.5, torch.randn(20, 6)
    dense = torch.zeros_like(h)
    for row in range(7):
        for feature in h[row].argsort(descending=True)[:4].tolist():
            dense[row, feature] = max(0.0, float(h[row, feature]))
    torch.testing.assert_close(largest(h, 4).write(decoder), dense @ decoder)
    threshold = threshold_for(h, 4)
    assert int((h > threshold).sum()) == 28
    torch.testing.assert_close(above(h, threshold).write(decoder), (h * (h > threshold)) @ decoder)
    none = above(h, torch.tensor(1e9))
    assert torch.equal(none.write(decoder), torch.zeros(7, 6))


@pytest.mark.parametrize("kind", ["per-layer", "skip", "cross-layer"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_folding_keeps_the_function(kind: DictionaryKind, activation: str) -> None:
    """What the folded transcoders give on activity as it is = what the dictionary gives on normalised activity, undone."""
    torch.manual_seed(1)
    raw = Activity(torch.randn(3, 50, 6) * 4 + 2, torch.randn(3, 50, 8) * 0.3 - 1)
    scaling = Scaling.of(raw)
    normal = scaling.normalise(raw)
    assert torch.allclose(normal.outputs.var((1,), correction=0).mean(-1), torch.ones(3))
    dictionary = Dictionary(3, 6, 8, 12, kind)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.normal_()
    dictionary.rescale()
    thresholds = torch.rand(3, 12) if activation == "jumprelu" else None
    folded = dictionary.fold(
        scaling, (2, 4, 5), ("mlp-in", "mlp-out"), None if thresholds is not None else 3, thresholds
    )
    with torch.no_grad():
        before = [dictionary.preactivations(x, i) for i, x in enumerate(normal.inputs)]
        active = [largest(h, 3) if thresholds is None else above(h, thresholds[i]) for i, h in enumerate(before)]
        rebuilt = dictionary.rebuild(normal.inputs, active)
    inputs = {layer: raw.inputs[i] for i, layer in enumerate((2, 4, 5))}
    for i, layer in enumerate((2, 4, 5)):
        wanted = rebuilt[i] * scaling.output_scale[i] + scaling.output_mean[i]
        torch.testing.assert_close(folded.reconstruct(inputs, layer), wanted, atol=1e-5, rtol=1e-5)
    if kind != "cross-layer":
        lengths = folded.by_layer[4].decoders[4].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(12))
    assert folded.cross_layer == (kind == "cross-layer")


def same(one: TranscoderSet, other: TranscoderSet, tolerance: float = 0.0) -> bool:
    """Whether all weights agree."""

    def tensors(of: TranscoderSet) -> list[torch.Tensor]:
        found = [*of.biases.values()]
        for part in of:
            found += [part.encoder, part.encoder_bias, *part.decoders.values()]
            found += [tensor for tensor in (part.skip, part.activation.threshold) if tensor is not None]
        return found

    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in pairs)


def finished(done: Trained | None) -> Trained:
    assert done is not None
    return done


@pytest.mark.parametrize("kind", ["per-layer", "skip", "cross-layer"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_training_beats_the_start_and_the_mean(kind: DictionaryKind, activation: str) -> None:
    here, windows = source(), text(documents=30)
    settings = dataclasses.replace(SMALL, kind=kind, activation=activation, steps=60)  # type: ignore[arg-type]
    done = finished(train_transcoders(here, windows, settings))
    assert done.curve[-1]["fvu"] < 0.8 * done.curve[0]["fvu"] or done.curve[-1]["fvu"] < 0.3
    fits = measure_fit(done.transcoders, here, windows)
    assert all(fit.fvu < 0.75 for fit in fits)
    assert all(fit.l0 <= 5.001 if activation == "topk" else 3.5 < fit.l0 < 6.5 for fit in fits)
    assert done.transcoders.reads == "mlp-in"
    assert (done.transcoders.transcoders[0].skip is not None) == (kind == "skip")


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    here, windows = source(), text()
    settings = dataclasses.replace(SMALL, dead_after=100)  # the auxiliary loss has work to do
    whole = finished(train_transcoders(here, windows, settings))
    path = tmp_path / "checkpoint.safetensors"
    assert train_transcoders(here, windows, settings, checkpoint=path, stop_after=11) is None
    assert path.exists()
    assert train_transcoders(here, windows, settings, checkpoint=path, stop_after=8) is None
    assert same(whole.transcoders, finished(train_transcoders(here, windows, settings, checkpoint=path)).transcoders)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    here, windows = source(), text()
    path = tmp_path / "checkpoint.safetensors"
    train_transcoders(here, windows, SMALL, checkpoint=path, stop_after=1, identity="a")
    with pytest.raises(BadTranscoder, match=r"k = 5, not 6"):
        train_transcoders(here, windows, dataclasses.replace(SMALL, k=6), checkpoint=path, identity="a")
    with pytest.raises(BadTranscoder, match="another model or corpus"):
        train_transcoders(here, windows, SMALL, checkpoint=path, identity="b")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadTranscoder, match="cannot be read"):
        train_transcoders(here, windows, SMALL, checkpoint=path, identity="a")


def test_settings_that_do_not_fit_are_named() -> None:
    for name, value in (("steps", 0), ("features", 5), ("rate", -1.0), ("streams", 5)):
        with pytest.raises(BadTranscoder, match=name if name != "streams" else "5 streams"):
            dataclasses.replace(SMALL, **{name: value})


def test_dead_features_are_found_and_brought_back() -> None:
    """A run whose features start out of reach: with the auxiliary loss fewer stay silent."""
    here, windows = source(), text(documents=30)
    share = {}
    for weight in (0.0, 1.0):
        settings = dataclasses.replace(
            SMALL, features=200, k=3, first_k=1.0, steps=200, auxiliary=weight, dead_after=300
        )
        done = finished(train_transcoders(here, windows, settings))
        share[weight] = sum(fit.dead for fit in measure_fit(done.transcoders, here, windows))
    assert share[1.0] < 0.8 * share[0.0]


def _weights(of: TranscoderSet) -> list[torch.Tensor]:
    return [one.encoder for one in of] + [one.decoders[one.layer] for one in of]


def _process(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    settings = dataclasses.replace(SMALL, streams=2, steps=8)
    done = finished(train_transcoders(source(), text(), settings))
    torch.save(
        [one.encoder for one in done.transcoders] + [one.decoders[one.layer] for one in done.transcoders],
        f"{out}/{rank}",
    )
    torch.distributed.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path)), nprocs=2)
    alone = finished(train_transcoders(source(), text(), dataclasses.replace(SMALL, streams=2, steps=8))).transcoders
    for rank in range(2):
        for theirs, own in zip(torch.load(tmp_path / str(rank), weights_only=True), _weights(alone), strict=True):
            torch.testing.assert_close(theirs, own, atol=1e-6, rtol=1e-6)


def test_the_figures_are_what_they_say() -> None:
    """Against plain formulas on all tokens at once, and numpy's singular values for the PCA."""
    here, windows = source(), text()
    done = finished(train_transcoders(here, windows, dataclasses.replace(SMALL, steps=10)))
    whole = here.collect(windows)
    inputs = {layer: whole.inputs[layer] for layer in range(3)}
    for fit in measure_fit(done.transcoders, here, windows):
        y = whole.outputs[fit.layer]
        centred = y - y.mean(0)
        error = (done.transcoders.reconstruct(inputs, fit.layer) - y).square().sum() / centred.square().sum()
        active = done.transcoders.by_layer[fit.layer].encode(whole.inputs[fit.layer]) != 0
        assert fit.fvu == pytest.approx(float(error), rel=1e-4)
        assert fit.l0 == pytest.approx(float(active.sum(1).float().mean()), rel=1e-5)
        assert fit.dead == pytest.approx(float((~active.any(0)).float().mean()))
        spread = torch.linalg.svdvals(centred).square()
        assert fit.l0 <= fit.pca_rank < fit.l0 + 1
        assert fit.pca_fvu == pytest.approx(float(spread[fit.pca_rank :].sum() / spread.sum()), rel=1e-3)

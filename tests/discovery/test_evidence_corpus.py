"""What one streaming pass keeps of a corpus is what sorting everything gives, however the pass is cut up."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from discovery.component_model import ComponentModel
from discovery.corpus_files import BadCorpus, Window
from discovery.corpus_pass import CorpusPass, CorpusState, merge_states, with_thresholds
from discovery.corpus_plan import CorpusPlan
from discovery.evidence_settings import SPLITS, EvidenceSettings
from discovery.kept_windows import Chunks, KeptWindows, draw_keys, hashed, peak_keys
from discovery.node_meters import WriteMeter, meters_of
from discovery.recording import Activations
from discovery.sites import at_site
from discovery.transcoder import TranscoderSet
from graphs.evidence import Split
from graphs.node import NodeId
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, TranscoderKind, record, tiny_transcoders

SMALL = EvidenceSettings(
    width=5, before=3, top=2, spread=3, scored=3, negatives=4, sample=6, pool=12, pass_width=24, pass_tokens=64,
    calibration=400,
)  # fmt: skip
FEATURES = 13


def corpus(documents: int = 24, seed: int = 0) -> tuple[Window, ...]:
    """Random token ids in windows of different lengths, several to a document."""
    generator = torch.Generator().manual_seed(seed)
    windows: list[Window] = []
    for number in range(documents):
        start = 0
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            length = int(torch.randint(4, 22, (), generator=generator))
            tokens = torch.randint(3, 38, (length,), generator=generator).tolist()
            windows.append(Window(tuple(tokens), number, 1, start))
            start += length
    return tuple(windows)


def corpus_pass(family: str = "llama", kind: TranscoderKind = "jumprelu", documents: int = 14) -> CorpusPass:
    """All features, heads and MLPs of a tiny model."""
    model = ComponentModel(tiny_model(family))
    transcoders = tiny_transcoders(model, kind, FEATURES)
    nodes = [NodeId("feature", one.layer, index) for one in transcoders for index in range(FEATURES)]
    nodes += [node for node in model.topology.sources if node.kind in ("head", "mlp")]
    plan = CorpusPlan.of(corpus(documents), SMALL)
    return CorpusPass(model, with_thresholds(model, meters_of(model, transcoders, nodes), plan), plan)


def finished(state: CorpusState | None) -> CorpusState:
    """A state that is not None."""
    assert state is not None
    return state


def test_streaming_keeps_what_sorting_everything_keeps() -> None:
    """Random activations with many ties and empty chunks, offered in pieces, against a sort of all chunks."""
    nodes, rows, width, kept = 7, 40, 4, 5
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(-3, 4, (rows, 3 * width, nodes), generator=generator).float()
    whole[:, :, 3:] *= torch.rand(rows, 3 * width, nodes - 3, generator=generator) < 0.05
    lengths = torch.randint(1, 3 * width + 1, (rows,), generator=generator)
    whole[torch.arange(3 * width) >= lengths[:, None]] = 0
    hashes = hashed(torch.arange(rows * 3), 5).view(rows, 3)
    offsets = hashed(torch.arange(nodes), 9)
    top, sample = (KeptWindows.empty(nodes, kept, width, "cpu") for _ in range(2))
    for first in range(0, rows, 6):
        some = slice(first, first + 6)
        cut = Chunks(whole[some], width, torch.arange(rows)[some], lengths[some], before=2)
        peaks = cut.peaks()
        top.offer(peak_keys(peaks, hashes[some].flatten()), cut)
        sample.offer(draw_keys(peaks > 0, hashes[some].flatten(), offsets), cut)
    for node in range(nodes):
        chunks = [(row, chunk) for row in range(rows) for chunk in range(3)]
        peak = {(r, c): float(whole[r, c * width : (c + 1) * width, node].abs().max()) for r, c in chunks}
        active = [place for place in chunks if peak[place] > 0]
        by_peak = sorted(active, key=lambda place: (-peak[place], -(int(hashes[place]) >> 31)))[:kept]
        drawn = sorted(active, key=lambda place: -((int(hashes[place]) + int(offsets[node])) % (1 << 62)))[:kept]
        for held, wanted in ((top, by_peak), (sample, drawn)):
            assert (held.keys[node] >= 0).sum() == len(wanted)
            for slot, (row, chunk) in enumerate(wanted):
                assert held.windows[node, slot] == row
                own = whole[row, :, node]
                place = chunk * width + int(own[chunk * width : (chunk + 1) * width].abs().argmax())
                start = min(max(place - 2, 0), max(int(lengths[row]) - width, 0))
                assert held.starts[node, slot] == start
                torch.testing.assert_close(held.values[node, slot], own[start : start + width])


def test_hashes_are_spread_and_fixed() -> None:
    """The generator's published first values (splitmix64, seed 0, first output), and uniform bits."""
    bits = hashed(torch.arange(100_000), 3)
    assert len(bits.unique()) == 100_000
    assert bits.min() >= 0
    assert abs(float((bits.double() / 2**62).mean()) - 0.5) < 0.005
    plain = 0x9E3779B97F4A7C15
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        plain = (plain ^ plain >> shift) * factor % (1 << 64)
    assert int(hashed(torch.tensor(0), 0)) == (plain ^ plain >> 31) % (1 << 62)
    assert plain ^ plain >> 31 == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_silence_against_each_window_alone(kind: TranscoderKind) -> None:
    """Density, firing chunks and silent pool windows, from one unpadded pass for every window."""
    one = corpus_pass(kind=kind, documents=8)
    _check_features(one, finished(one.run()), tiny_transcoders(one.model, kind, FEATURES), _passes(one))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """The same for every architecture, with the norms of heads and MLPs."""
    one = corpus_pass(family, documents=6)
    state, passes = finished(one.run()), _passes(one)
    _check_features(one, state, tiny_transcoders(one.model, "jumprelu", FEATURES), passes)
    _check_writes(one, state, passes)


def _passes(one: CorpusPass) -> list[Activations]:
    """An unpadded pass of every window."""
    return [record(one.model, torch.tensor([window.tokens])) for window in one.plan.windows]


def _check_features(one: CorpusPass, state: CorpusState, transcoders: TranscoderSet, passes: list[Activations]) -> None:
    plan, width = one.plan, SMALL.width
    assert set(plan.splits) == set(SPLITS)
    for number, meter in enumerate(one.meters):
        if meter.nodes[0].kind != "feature":
            continue
        layer = meter.nodes[0].layer or 0
        fired = {split: torch.zeros(FEATURES, dtype=torch.int64) for split in SPLITS}
        tokens = {split: torch.zeros(FEATURES, dtype=torch.int64) for split in SPLITS}
        for n, (window, seen) in enumerate(zip(plan.windows, passes)):
            x = at_site(one.model.blocks, seen, layer, transcoders.reads)[0, window.fixed :]
            found = transcoders.by_layer[layer].encode(x)
            split = plan.splits[n]
            tokens[split] += (found != 0).sum(0)
            for chunk, part in enumerate(found.split(width)):
                fired[split] += (part != 0).any(0)
                place = int(plan.pool_place[n, chunk])
                if place >= 0:
                    assert len(part) == width
                    assert plan.pool[split][place].tolist() == [n, chunk]
                    assert torch.equal(state.groups[split][number].silent[place], (part == 0).all(0))
        for split in SPLITS:
            group = state.groups[split][number]
            assert torch.equal(group.fired, fired[split])
            assert torch.equal(group.tokens, tokens[split])
            assert int(group.seen) == sum(w.free for w, own in zip(plan.windows, plan.splits) if own == split)
            assert 0 < int(group.tokens.sum()) < FEATURES * int(group.seen)


def _check_writes(one: CorpusPass, state: CorpusState, passes: list[Activations]) -> None:
    """Norms from each head's own output, without Gram matrices; sums of what is written in the residual stream."""
    blocks = one.model.blocks
    for number, meter in enumerate(one.meters):
        if not isinstance(meter, WriteMeter):
            continue
        layer, count = meter.nodes[0].layer or 0, len(meter.nodes)
        active = everywhere = torch.zeros(count, blocks[0].weight("q").shape[-1])
        tokens = torch.zeros(count, dtype=torch.int64)
        for window, seen in zip(one.plan.windows, passes):
            written = torch.stack([_written(one.model, seen, layer, node)[window.fixed :] for node in meter.nodes])
            loud = written.norm(dim=-1) > meter.thresholds[:, None]
            tokens = tokens + loud.sum(1)
            everywhere = everywhere + written.sum(1)
            active = active + (written * loud[..., None]).sum(1)
        groups = [state.groups[split][number] for split in SPLITS]
        assert torch.equal(groups[0].tokens + groups[1].tokens, tokens)
        sums = groups[0].written + groups[1].written
        for mine, plain in zip(sums, (active, everywhere)):
            torch.testing.assert_close(meter.to_stream(mine.float()), plain, atol=2e-3, rtol=2e-3)


def _written(model: ComponentModel, seen: Activations, layer: int, node: NodeId) -> Tensor:
    """What a node adds to the residual stream [pos d_model]."""
    block = model.blocks[layer]
    if node.kind == "mlp":
        return seen.mlp_out[layer][0]
    mix = torch.zeros_like(seen.mix[layer][0]).unflatten(-1, (block.heads, -1))
    mix[:, node.index] = seen.mix[layer][0].unflatten(-1, (block.heads, -1))[:, node.index]
    out = mix.flatten(-2) @ block.output_weight().flatten(0, 1)
    if block.post_attention_norm is None:
        return out
    total = seen.attention_sum[layer][0]
    return out * block.post_attention_norm(total) / total


def _same(one: CorpusState, other: CorpusState) -> None:
    left, right = one.tensors(), other.tensors()
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=1e-5)


def test_a_stopped_pass_goes_on(tmp_path: Path) -> None:
    """Stopped twice, read back from disk, equal to the last bit; and not for anything else's file."""
    one = corpus_pass()
    file = tmp_path / "state.safetensors"
    assert one.run(file, "me", save_every=2, stop_after=3) is None
    assert one.run(file, "me", save_every=100, stop_after=2) is None
    state, plain = finished(one.run(file, "me")), finished(one.run())
    for name, tensor in plain.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name
    with pytest.raises(BadCorpus, match="another model"):
        one.run(file, "you")
    file.write_bytes(b"no")
    with pytest.raises(BadCorpus, match="cannot be read"):
        one.run(file, "me")
    assert not list(tmp_path.glob(".*"))


def test_order_and_processes_play_no_part() -> None:
    """Batches in three shares, each backwards, merged."""
    one = corpus_pass()
    batches = one.plan.batches()
    total = one.begin()
    for share in range(3):
        part = one.begin()
        for split, numbers in reversed(batches[share::3]):
            one.add(part, split, numbers)
        merge_states(total, part)
    _same(total, finished(one.run()))


def _process(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    state = finished(corpus_pass().run(Path(out) / "state", "two"))
    torch.save(state.tensors(), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_keep_what_one_keeps(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_process, (port, str(tmp_path)), nprocs=2)
    alone = finished(corpus_pass().run()).tensors()
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in alone.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} >= {"state.0", "state.1"}


def test_splits() -> None:
    """A document has one use; the shares are as asked; a seed draws anew."""
    settings = dataclasses.replace(SMALL, score_share=0.3)
    split: list[Split] = [settings.split_of(number) for number in range(2000)]
    assert 0.26 < split.count("score") / 2000 < 0.34
    assert split != [dataclasses.replace(settings, seed=1).split_of(number) for number in range(2000)]
    with pytest.raises(BadCorpus, match="too small"):
        CorpusPlan.of(corpus(1), SMALL)
    for wrong in (dict(width=4, before=4), dict(top=0), dict(score_share=1.0), dict(hard=1.5)):
        with pytest.raises(ValueError, match="evidence"):
            dataclasses.replace(SMALL, **wrong)

"""Endless shuffled batches of what every layer of the untouched model reads and writes, for training on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.corpus_files import BadCorpus, Window
from discovery.recording import Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import Site


@dataclass(frozen=True, eq=False)
class Activity:
    """What the layers read and write at some tokens, float32."""

    inputs: Float[Tensor, "layer token d_in"]
    """At the site that is read."""
    outputs: Float[Tensor, "layer token d_out"]
    """At the site that is written."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.inputs.shape[1]


@dataclass(frozen=True, eq=False)
class ActivitySource:
    """An untouched model seen at one place of some layers."""

    model: ComponentModel
    """The model; nothing of it is changed."""
    layers: tuple[int, ...]
    """Layers, ascending."""
    reads: Site
    """Site of the inputs."""
    writes: Site
    """Site of the outputs."""
    pass_tokens: int = 4096
    """Most tokens of one forward pass, padding included."""

    def passes(self, windows: Sequence[Window]) -> Iterator[Activity]:
        """Activity at every free position of the windows, all layers from one forward pass each; windows of like length go
        together, else in no order."""
        hf, blocks = self.model.hf, self.model.blocks
        for sequences, free in padded_batches(windows, self.pass_tokens, self.model.device):
            with session(hf, self.model.arch, blocks), torch.no_grad():
                seen = record_pass(hf, self.model.arch, blocks, sequences)
                read, written = (
                    torch.stack([at_site(blocks, seen, layer, site)[free].float() for layer in self.layers])
                    for site in (self.reads, self.writes)
                )
            yield Activity(read, written)

    def collect(self, windows: Sequence[Window]) -> Activity:
        """The activity of all the windows at once, in the order of `passes`."""
        tokens, filled = sum(window.free for window in windows), 0
        whole: Activity | None = None
        for part in self.passes(windows):
            if whole is None:
                whole = Activity(*(x.new_empty(x.shape[0], tokens, x.shape[2]) for x in (part.inputs, part.outputs)))
            whole.inputs[:, filled : filled + part.tokens] = part.inputs
            whole.outputs[:, filled : filled + part.tokens] = part.outputs
            filled += part.tokens
        assert whole is not None, "no windows"
        return whole


def padded_batches(
    windows: Sequence[Window], most: int, device: torch.device
) -> Iterator[tuple[Sequences, Bool[Tensor, "row pos"]]]:
    """All the windows as `padded` rows, those of like length together, the longest first, as many at a time as `most` tokens
    hold with the padding."""
    ordered = sorted(windows, key=lambda window: len(window.tokens))
    while ordered:
        rows = max(1, most // len(ordered[-1].tokens))
        ordered, some = ordered[:-rows], ordered[-rows:]
        yield padded(some, device)


def padded(windows: Sequence[Window], device: torch.device) -> tuple[Sequences, Bool[Tensor, "row pos"]]:
    """Windows padded on the right, where causal attention does not look, and which positions are free."""
    width = max(len(window.tokens) for window in windows)
    tokens = torch.tensor([window.tokens + (0,) * (width - len(window.tokens)) for window in windows], device=device)
    columns = torch.arange(width, device=device)
    lengths = torch.tensor([len(window.tokens) for window in windows], device=device)[:, None]
    fixed = torch.tensor([window.fixed for window in windows], device=device)[:, None]
    mask = columns < lengths
    return Sequences(tokens, mask, columns.expand(len(windows), -1), None), mask & (columns >= fixed)


@dataclass(frozen=True, eq=False)
class ActivityStream:
    """Endless batches, a function of the batch's number alone, so that a stopped run goes on where it was.

    The windows are read in an order that is drawn anew each time round. The activity of about `buffer` tokens is held at
    a time and handed out shuffled; a batch therefore mixes many documents. Several streams with the same seed share the
    windows between them.
    """

    source: ActivitySource
    """Where activity comes from."""
    windows: Sequence[Window]
    """All the windows, of all streams."""
    batch: int
    """Tokens in a batch."""
    buffer: int
    """Tokens held at a time: at most all those of the stream's windows."""
    seed: int = 0
    """Of both orders."""
    number: int = 0
    """Which of the streams this is."""
    streams: int = 1
    """How many share the windows: stream n of each round has every window whose place is n modulo this."""

    def batches(self, first: int = 0) -> Iterator[Activity]:
        """Batches from number `first` on. Raises BadCorpus where the windows do not fill one batch."""
        held = self._held()
        for chunk, windows in enumerate(self._chunks(held)):
            count = held // self.batch
            if (chunk + 1) * count <= first:
                continue
            activity = self.source.collect(windows)
            shuffle = torch.Generator().manual_seed(_seed(self.seed, "tokens", self.number, chunk))
            order = torch.randperm(activity.tokens, generator=shuffle).to(activity.inputs.device)
            for i in range(max(0, first - chunk * count), count):
                chosen = order[i * self.batch : (i + 1) * self.batch]
                yield Activity(activity.inputs[:, chosen], activity.outputs[:, chosen])
            del activity

    def _held(self) -> int:
        """Tokens that every chunk has at least."""
        smallest = (
            min(sum(window.free for window in self.windows[i :: self.streams]) for i in range(self.streams))
            if len(self.windows) >= self.streams
            else 0
        )
        held = min(self.buffer, smallest)
        if held < self.batch:
            raise BadCorpus(
                f"the corpus gives {smallest} tokens to each of {self.streams} streams, fewer than a batch of {self.batch}: "
                "give more text or a smaller batch"
            )
        return held

    def _chunks(self, held: int) -> Iterator[list[Window]]:
        """The windows in reading order, `held` tokens or a little more at a time."""
        chunk, tokens, time_round = [], 0, 0
        while True:
            shuffle = torch.Generator().manual_seed(_seed(self.seed, "windows", time_round))
            order: Int[Tensor, " window"] = torch.randperm(len(self.windows), generator=shuffle)
            for i in order[self.number :: self.streams].tolist():
                chunk.append(self.windows[i])
                tokens += self.windows[i].free
                if tokens >= held:
                    yield chunk
                    chunk, tokens = [], 0
            time_round += 1


def _seed(*parts: int | str) -> int:
    """A seed of its own for everything that is drawn."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("ascii")).digest()
    return int.from_bytes(digest[:7], "big")

"""The corpus as evidence reads it: windows of tokens, which split each belongs to, forward passes over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.corpus_files import BadCorpus, Window
from discovery.evidence_settings import SPLITS, EvidenceSettings
from discovery.kept_windows import hashed
from discovery.recording import Activations, Sequences, record_pass, session
from graphs.evidence import Split


@dataclass(frozen=True, eq=False)
class CorpusPlan:
    """The corpus as it is read: windows of tokens, the split and chunks of each."""

    windows: tuple[Window, ...]
    """All windows."""
    settings: EvidenceSettings
    """Sizes and seed."""
    splits: tuple[Split, ...]
    """Of each window."""
    hashes: Int[Tensor, "window chunk"]
    """62 random bits for every chunk."""
    pool: dict[Split, Int[Tensor, "pool 2"]]
    """Window and chunk of those among which silent ones are looked for."""
    pool_place: Int[Tensor, "window chunk"]
    """Place of a chunk in its split's pool; -1 for none."""

    @staticmethod
    def of(windows: Sequence[Window], settings: EvidenceSettings) -> CorpusPlan:
        """The plan. Raises BadCorpus where one of the splits is empty."""
        by_document: dict[int, Split] = {
            number: settings.split_of(number) for number in {window.document for window in windows}
        }
        if set(by_document.values()) != set(SPLITS):
            raise BadCorpus(
                f"a corpus of {len(by_document)} documents is too small for evidence: some must explain, others score"
            )
        splits: tuple[Split, ...] = tuple(by_document[window.document] for window in windows)
        free = torch.tensor([window.free for window in windows])
        chunks = -(-int(free.max()) // settings.width)
        places = torch.arange(len(windows) * chunks).view(len(windows), chunks)
        hashes, order = hashed(places, 2 * settings.seed), hashed(places, 2 * settings.seed + 1)
        whole = (torch.arange(chunks) + 1) * settings.width <= free[:, None]
        place = torch.full_like(places, -1)
        pool: dict[Split, Tensor] = {}
        for split in SPLITS:
            mine = whole & torch.tensor([one == split for one in splits])[:, None]
            candidates = mine.flatten().nonzero().flatten()
            chosen = candidates[order.flatten()[candidates].argsort()[: settings.pool]]
            place.view(-1)[chosen] = torch.arange(len(chosen))
            pool[split] = torch.stack([chosen // chunks, chosen % chunks], 1)
        return CorpusPlan(tuple(windows), settings, splits, hashes, pool, place)

    def batches(self) -> list[tuple[Split, tuple[int, ...]]]:
        """Numbers of the windows of each forward pass; one split and number of fixed positions each, like lengths together."""
        order = sorted(
            range(len(self.windows)),
            key=lambda n: (self.splits[n], self.windows[n].fixed, -len(self.windows[n].tokens), n),
        )
        found: list[tuple[Split, tuple[int, ...]]] = []
        while order:
            head = self.windows[order[0]]
            rows = max(1, self.settings.pass_tokens // len(head.tokens))
            some = [
                n for n in order[:rows]
                if self.splits[n] == self.splits[order[0]] and self.windows[n].fixed == head.fixed
            ]  # fmt: skip
            found.append((self.splits[order[0]], tuple(some)))
            order = order[len(some) :]
        return found

    def read(self, model: ComponentModel, numbers: Sequence[int]) -> tuple[Activations, int, Bool[Tensor, "row pos"]]:
        """A recorded pass over some windows, the first position that counts, and which ones from there on are no padding.

        Padded on the right, where causal attention does not look, to whole chunks.
        """
        windows = [self.windows[n] for n in numbers]
        fixed = windows[0].fixed
        width = fixed + -(-max(window.free for window in windows) // self.settings.width) * self.settings.width
        tokens = torch.tensor([window.tokens + (0,) * (width - len(window.tokens)) for window in windows])
        lengths = torch.tensor([len(window.tokens) for window in windows])
        mask, device = torch.arange(width) < lengths[:, None], model.device
        positions = torch.arange(width).clamp(max=int(lengths.max()) - 1).expand(len(windows), -1)
        sequences = Sequences(tokens.to(device), mask.to(device), positions.to(device), None)
        with session(model.hf, model.arch, model.blocks), torch.no_grad():
            seen = record_pass(model.hf, model.arch, model.blocks, sequences)
        return seen, fixed, mask[:, fixed:].to(device)

    def draw(self, model: ComponentModel) -> Iterator[tuple[Activations, int, Bool[Tensor, "row pos"]]]:
        """Windows in random order, one by one batch, of about `calibration` tokens; the same in every process."""
        order, tokens = self.hashes[:, 0].argsort().tolist(), 0
        while order and tokens < self.settings.calibration:
            fixed = self.windows[order[0]].fixed
            rows = max(1, self.settings.pass_tokens // max(len(self.windows[n].tokens) for n in order[:64]))
            some = [n for n in order[:rows] if self.windows[n].fixed == fixed]
            order = [n for n in order if n not in set(some)]
            tokens += sum(self.windows[n].free for n in some)
            yield self.read(model, some)

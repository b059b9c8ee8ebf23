"""Which windows of the kept ones are shown of each node: largest peaks, quantiles, inactive ones that look alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.sparse import csr_array

from discovery.corpus_pass import CorpusState, GroupState
from discovery.corpus_plan import CorpusPlan
from discovery.evidence_settings import SPLITS, EvidenceSettings
from discovery.passages import Passage, Texts
from graphs.evidence import ContextKind, Split, TokenEffect

_BLOCK = 256  # nodes whose likeness to all of the pool is held at a time
_CONTEXT_WEIGHT = 0.25  # of the tokens around the peak, beside the peak's own
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class _Group:
    """One meter's state of one split as numpy arrays."""

    windows: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    held: np.ndarray
    silent: np.ndarray

    @staticmethod
    def of(state: GroupState, top: bool) -> _Group:
        kept = state.top if top else state.sample
        windows, starts, values, held = (
            part.cpu().numpy() for part in (kept.windows, kept.starts, kept.values, kept.keys >= 0)
        )
        return _Group(windows, starts, values, held, state.silent.cpu().numpy())


class ChosenContexts:
    """The windows of every node of a finished pass."""

    def __init__(self, plan: CorpusPlan, state: CorpusState) -> None:
        self.plan, self.settings = plan, plan.settings
        self._top = [_Group.of(group, True) for group in state.groups["explain"]]
        self._sample = {split: [_Group.of(group, False) for group in state.groups[split]] for split in SPLITS}
        self._pool = {split: plan.pool[split].tolist() for split in SPLITS}
        self._bags = {split: self._bag(split) for split in SPLITS}
        found = np.concatenate([bag.indices for bag in self._bags.values()])
        vocabulary = max(max(window.tokens) for window in plan.windows) + 1
        rows = np.maximum(np.bincount(found, minlength=vocabulary), 1)
        self._rarity = np.log1p(sum(len(places) for places in plan.pool.values()) / rows)

    def of_meter(
        self, number: int, contrasts: Callable[[int], Mapping[Split, Sequence[Passage]]] | None = None
    ) -> Iterator[tuple[dict[Split, list[Passage]], list[Passage], tuple[Counter[int], Counter[int], int]]]:
        """For each node of a meter: the passages that are shown, those that rules learn from besides, and counts of peak tokens
        and of tokens behind them over the `explain` draw.

        contrasts: of a node, inactive prompts of the task whose twin is active; they come before other hard negatives.
        """
        count = self._top[number].held.shape[0]
        for first in range(0, count, _BLOCK):
            nodes = range(first, min(first + _BLOCK, count))
            counted = [self._counts(number, node) for node in nodes]
            likeness = {split: self._likeness(split, [one[3] for one in counted]) for split in SPLITS}
            for place, node in enumerate(nodes):
                mine = {} if contrasts is None else contrasts(node)
                passages: dict[Split, list[Passage]] = {
                    split: self._passages(number, node, split, likeness[split][place], mine.get(split, ()))
                    for split in SPLITS
                }
                yield passages, self._unshown(number, node, likeness["explain"][place], passages), counted[place][:3]

    def _bag(self, split: Split) -> csr_array:
        """Which tokens each window of the pool holds."""
        plan, width = self.plan, self.settings.width
        vocabulary = max(max(window.tokens) for window in plan.windows) + 1
        rows, columns = [], []
        for row, (window, chunk) in enumerate(self._pool[split]):
            one = plan.windows[window]
            held = set(one.tokens[one.fixed + chunk * width : one.fixed + (chunk + 1) * width])
            rows += [row] * len(held)
            columns += list(held)
        data = np.ones(len(rows), dtype=np.float32)
        return csr_array((data, (rows, columns)), shape=(len(plan.pool[split]), vocabulary))

    def _counts(self, number: int, node: int) -> tuple[Counter[int], Counter[int], int, dict[int, float]]:
        """Over the node's `explain` draw: peak tokens, tokens behind, number of windows; and what it looks for by token."""
        group = self._sample["explain"][number]
        peaks: Counter[int] = Counter()
        follows: Counter[int] = Counter()
        around: Counter[int] = Counter()
        places = np.flatnonzero(group.held[node])
        for place in places:
            one = self._passage("spread", group, node, int(place))
            peak = _peak(one.activations)
            peaks[one.ids[peak]] += 1
            around.update(set(one.ids[:peak]))
            if one.following is not None:
                follows[one.following] += 1
        profile: dict[int, float] = {}
        if len(places):
            weights = {token: share * self._rarity[token] for token, share in around.items()}
            scale = _CONTEXT_WEIGHT / max(sum(weights.values()), 1e-9)
            profile = {token: weight * scale for token, weight in weights.items()}
            for token, share in peaks.items():
                profile[token] = profile.get(token, 0.0) + share / len(places)
        return peaks, follows, len(places), profile

    def _likeness(self, split: Split, profiles: Sequence[Mapping[int, float]]) -> np.ndarray:
        """How much of what each node looks for stands in each window of the pool [node, pool]."""
        bag = self._bags[split]
        rows = [row for row, profile in enumerate(profiles) for _ in profile]
        columns = [token for profile in profiles for token in profile]
        values = [value for profile in profiles for value in profile.values()]
        wanted = csr_array(
            (np.array(values, dtype=np.float32), (rows, columns)), shape=(len(profiles), len(self._rarity))
        )
        return (wanted @ bag.T).toarray()

    def _passages(
        self, number: int, node: int, split: Split, likeness: np.ndarray, contrasts: Sequence[Passage]
    ) -> list[Passage]:
        found: list[Passage] = []
        told: set[tuple[int, ...]] = set()

        def take(passages: Iterable[Passage], count: int) -> None:
            found.extend(islice(_fresh(passages, told), max(0, count)))

        if split == "explain":
            top = self._top[number]
            order = np.flatnonzero(top.held[node])  # keys are in falling order
            take((self._passage("top", top, node, int(place)) for place in order), self.settings.top)
        wanted = self.settings.spread if split == "explain" else self.settings.scored
        take(self._spread(self._sample[split][number], node, wanted, told), wanted)
        hard = round(self.settings.hard * self.settings.negatives)
        before = len(found)
        take(iter(contrasts), hard)
        alike, drawn = self._inactive(number, node, split, likeness)
        take(alike, hard - (len(found) - before))
        take(drawn, self.settings.negatives - (len(found) - before))
        return found

    def _inactive(
        self, number: int, node: int, split: Split, likeness: np.ndarray
    ) -> tuple[Iterator[Passage], Iterator[Passage]]:
        """Silent windows of the pool, the most alike first, and in random order."""
        silent = np.flatnonzero(self._sample[split][number].silent[:, node])
        order = silent[np.argsort(-likeness[silent], kind="stable")]
        alike = (self._silent("hard-negative", split, int(place)) for place in order if likeness[place] > 0)
        drawn = np.random.default_rng((self.settings.seed, number, node)).permutation(silent)
        return alike, (self._silent("negative", split, int(place)) for place in drawn)

    def _unshown(
        self, number: int, node: int, likeness: np.ndarray, shown: Mapping[Split, Sequence[Passage]]
    ) -> list[Passage]:
        """The rest of the `explain` draw, and further silent windows of its documents, as hard as those that are shown."""
        told = {one.ids for one in shown["explain"]}
        found: list[Passage] = []

        def take(passages: Iterable[Passage], count: int) -> None:
            found.extend(islice(_fresh(passages, told), max(0, count)))

        group = self._sample["explain"][number]
        places = np.flatnonzero(group.held[node])
        take((self._passage("spread", group, node, int(place)) for place in places), len(places))
        alike, drawn = self._inactive(number, node, "explain", likeness)
        firing, hard = len(found), round(self.settings.hard * self.settings.unshown)
        take(alike, hard)
        take(drawn, self.settings.unshown - (len(found) - firing))
        return found

    def _spread(self, group: _Group, node: int, wanted: int, told: set[tuple[int, ...]]) -> Iterator[Passage]:
        """The drawn windows at even steps of the quantiles, then, for those that were shown already, their neighbours."""
        places = np.flatnonzero(group.held[node])
        peaks = np.abs(group.values[node, places]).max(1) if len(places) else np.zeros(0)
        order = np.argsort(-peaks, kind="stable")
        places, peaks = places[order], peaks[order]
        fresh = [
            (self._passage("spread", group, node, int(place)), float((peaks < peak).mean()))
            for place, peak in zip(places, peaks)
        ]
        distinct = {one.ids: (one, quantile) for one, quantile in fresh if one.ids not in told}
        chosen = list(distinct.values())
        count = min(wanted, len(chosen))
        for step in range(count):
            one, quantile = chosen[int((step + 0.5) * len(chosen) / count)]
            yield Passage("spread", one.document, one.start, one.ids, one.activations, one.following, quantile)

    def _passage(self, kind: ContextKind, group: _Group, node: int, place: int) -> Passage:
        window = self.plan.windows[int(group.windows[node, place])]
        first = window.fixed + int(group.starts[node, place])
        ids = window.tokens[first : first + self.settings.width]
        activations = tuple(group.values[node, place, : len(ids)].tolist())
        behind = first + _peak(activations) + 1
        following = window.tokens[behind] if behind < len(window.tokens) else None
        return Passage(kind, window.document, window.start + first, ids, activations, following)

    def _silent(self, kind: ContextKind, split: Split, place: int) -> Passage:
        number, chunk = self._pool[split][place]
        window, width = self.plan.windows[number], self.settings.width
        first = window.fixed + chunk * width
        return Passage(
            kind, window.document, window.start + first, window.tokens[first : first + width], (0.0,) * width
        )


def _fresh(passages: Iterable[Passage], told: set[tuple[int, ...]]) -> Iterator[Passage]:
    """Those whose text has not been told, each noted as it is taken."""
    for one in passages:
        if one.ids not in told:
            told.add(one.ids)
            yield one


def _peak(activations: Sequence[float]) -> int:
    return max(range(len(activations)), key=lambda place: abs(activations[place]))


def shares(counts: Counter[int], total: int, texts: Texts) -> tuple[TokenEffect, ...]:
    """The most frequent tokens and their shares of the windows."""
    return tuple(TokenEffect(texts(token), count / total) for token, count in counts.most_common(_SHOWN))


def documents_of(plan: CorpusPlan) -> dict[Split, int]:
    """Number of documents of each split."""
    return {
        split: len({window.document for window, own in zip(plan.windows, plan.splits) if own == split})
        for split in SPLITS
    }


def drawn_split(settings: EvidenceSettings, pair: int) -> Split:
    """What a task's pair may be used for."""
    return settings.split_of(f"pair {pair}")

"""What attention heads do: where they look on random repeats, on the task and on text, and what they copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.blocks import find_blocks
from discovery.component_model import ComponentModel
from discovery.head_copying import HeadCopying, copied_on_task, copying, first_token
from discovery.recording import Activations, Sequences, record_pass, session
from graphs.evidence import AttentionPair, HeadEvidence
from graphs.node import NodeId

_REPEATS, _LENGTH = 16, 24  # random sequences, and tokens before each is repeated
_PAIRS, _PHRASES, _CONTEXT = 10, 5, 6
_STRONGEST = 40  # places of every row that are looked at for the pairs that are shown
_TASK_PAIRS = 64  # pairs of the task whose patterns are looked at


@dataclass(eq=False)
class _Sums:
    """Of one layer: sums over queries, and numbers of queries that count."""

    total: dict[str, Tensor] = field(default_factory=dict)
    count: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Float[Tensor, "row head query"], where: Bool[Tensor, "row query"]) -> None:
        """Add the values at some queries."""
        added = (values * where[:, None]).sum((0, 2))
        self.total[name] = self.total[name] + added if name in self.total else added
        self.count[name] = self.count.get(name, 0.0) + float(where.sum())

    def mean(self, name: str, head: int) -> float | None:
        """Mean of one head; None where no query counts."""
        count = self.count.get(name, 0.0)
        return float(self.total[name][head]) / count if count else None


@dataclass(eq=False)
class _Found:
    """Places where a head attends."""

    places: list[tuple[float, tuple[int, ...], int, int]] = field(default_factory=list)
    """Weight, text, and the places of query and key in it."""
    tokens: Counter[int] = field(default_factory=Counter)
    """How often each token stands in the texts."""


def usable_tokens(model: ComponentModel) -> Int[Tensor, " token"]:
    """Vocabulary numbers of real tokens: no special ones, none that the tokenizer does not know."""
    vocabulary = model.config.get_text_config().vocab_size
    tokenizer = model.tokenizer
    if tokenizer is None:
        return torch.arange(vocabulary)
    special = {int(token) for token in tokenizer.all_special_ids} | set(tokenizer.added_tokens_decoder)
    return torch.tensor([token for token in range(min(vocabulary, len(tokenizer))) if token not in special])


def repeats(model: ComponentModel, seed: int) -> tuple[Int[Tensor, "row pos"], int, int]:
    """Random real tokens, twice the same after the BOS token (where there is one); its length; and the period.

    As long as the model has positions and, where it can be, without a token twice in a period.
    """
    tokens, generator = usable_tokens(model), torch.Generator().manual_seed(seed)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    start = first_token(model)
    front = 0 if start is None else 1
    period = max(2, min(_LENGTH, (longest - front) // 2, len(tokens)))
    rows = torch.stack([tokens[torch.randperm(len(tokens), generator=generator)[:period]] for _ in range(_REPEATS)])
    twice = torch.cat([rows, rows], 1)
    if start is not None:
        twice = torch.cat([torch.full((_REPEATS, 1), start), twice], 1)
    return twice, front, period


@torch.no_grad()
def head_evidence(
    model: ComponentModel,
    heads: Sequence[NodeId],
    texts: Callable[[int], str],
    *,
    batches: Sequence[Batch] = (),
    corpus: Sequence[tuple[int, ...]] = (),
    seed: int = 0,
) -> dict[NodeId, HeadEvidence]:
    """Evidence of every named head. batches: of the task, the clean prompts; corpus: some texts as token ids."""
    wanted = [head.at(None) for head in heads if head.kind == "head"]
    if not wanted:
        return {}
    layers = sorted({head.layer or 0 for head in wanted})
    sums = {layer: _Sums() for layer in layers}
    found: dict[NodeId, _Found] = {head: _Found() for head in wanted}
    twice, front, period = repeats(model, seed)
    seen = _patterns(model, twice, torch.ones_like(twice, dtype=torch.bool))
    for layer in layers:
        _on_repeats(sums[layer], seen.patterns[layer].float(), front, period)
    for text in [*_task_rows(batches), *_text_rows(corpus)]:
        seen, moved = _patterns(model, text.tokens, text.mask), text.to(model.device)
        for layer in layers:
            _on_text(sums[layer], seen.patterns[layer].float(), moved)
        for head in wanted:
            _strongest(found[head], seen.patterns[head.layer or 0][:, head.index or 0].float(), text)
    copies = copying(model, wanted, usable_tokens(model), texts, seed)
    on_task = copied_on_task(model, wanted, batches, _TASK_PAIRS)
    return {
        head: _evidence(head, sums[head.layer or 0], found[head], copies[head], on_task[head], texts) for head in wanted
    }


def _patterns(model: ComponentModel, tokens: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> Activations:
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    own = Sequences(tokens.to(model.device), mask.to(model.device), positions.to(model.device), None)
    blocks = find_blocks(model.hf, model.arch, False)
    with session(model.hf, model.arch, blocks):
        return record_pass(model.hf, model.arch, blocks, own, patterns=True)


def _on_repeats(sums: _Sums, pattern: Float[Tensor, "row head query key"], front: int, period: int) -> None:
    """The published scores: mean attention of the second round to the same token, and to the one behind it."""
    width = pattern.shape[-1]
    rows = torch.ones(len(pattern), 1, dtype=torch.bool, device=pattern.device)
    queries = torch.arange(width, device=pattern.device)
    second = rows & (queries >= front + period)
    for name, back, where in (
        ("previous_token", 1, rows & (queries >= front + 1)),
        ("duplicate_token", period, second),
        ("induction", period - 1, second),
    ):
        keys = (queries - back).clamp(min=0)
        sums.add(name, pattern[..., queries, keys], where)


@dataclass(frozen=True, eq=False)
class _Text:
    """Left-padded texts."""

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    """True at real tokens."""
    changed: Bool[Tensor, "row pos"]
    """Of a task's clean prompts: the tokens that the corrupt prompts have otherwise."""

    def to(self, device: torch.device) -> _Text:
        return _Text(self.tokens.to(device), self.mask.to(device), self.changed.to(device))


def _task_rows(batches: Sequence[Batch]) -> list[_Text]:
    found, left = [], _TASK_PAIRS
    for batch in batches:
        rows = batch.read_row[batch.pair_read][:left]
        if len(rows):
            # What stands behind the prompt, of answers of several tokens, is not looked at.
            ends = batch.read_column[batch.pair_read][: len(rows), None]
            columns = torch.arange(batch.clean.shape[1], device=rows.device)
            mask = batch.mask[rows] & (columns <= ends)
            found.append(
                _Text(batch.clean[rows], mask, (batch.clean != batch.corrupt)[rows] & mask).to(torch.device("cpu"))
            )
            left -= len(rows)
    return found


def _text_rows(corpus: Sequence[tuple[int, ...]]) -> list[_Text]:
    """Four texts at a time: patterns are quadratic in their length."""
    found = []
    for first in range(0, len(corpus), 4):
        some = corpus[first : first + 4]
        width = max(map(len, some))
        tokens = torch.tensor([(0,) * (width - len(ids)) + tuple(ids) for ids in some])
        mask = torch.arange(width) >= width - torch.tensor([len(ids) for ids in some])[:, None]
        found.append(_Text(tokens, mask, torch.zeros_like(mask)))
    return found


def _on_text(sums: _Sums, pattern: Float[Tensor, "row head query key"], text: _Text) -> None:
    """Entropy and attention to the first token; the same scores as on repeats, wherever a token occurs again (text_...), and
    there only where the prompt differs from its corrupt twin (task_...)."""
    tokens, mask = text.tokens, text.mask
    pattern = pattern * mask[:, None, :, None]
    first = mask.long().argmax(1)
    columns = torch.arange(tokens.shape[1], device=mask.device)
    inner = mask & (columns > first[:, None])  # the first token has no choice
    entropy = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)
    sums.add("entropy", entropy, inner)
    sums.add("first_token", pattern.gather(3, first[:, None, None, None].expand(*pattern.shape[:3], 1))[..., 0], inner)
    same = (
        (tokens[:, :, None] == tokens[:, None, :]) & (columns[:, None] > columns) & mask[:, :, None] & mask[:, None, :]
    )
    behind = same.roll(1, 2)  # the key behind an earlier occurrence
    behind[:, :, 0] = False
    behind &= columns[:, None] > columns
    before = (columns[:, None] == columns + 1) & mask[:, None, :] & mask[:, :, None]
    for name, keys in (("previous_token", before), ("duplicate_token", same), ("induction", behind)):
        attention = (pattern * keys[:, None]).sum(-1)
        sums.add(f"text_{name}", attention, keys.any(-1))
        sums.add(f"task_{name}", attention, keys.any(-1) & text.changed)


def _strongest(found: _Found, pattern: Float[Tensor, "row query key"], text: _Text) -> None:
    tokens, mask = text.tokens, text.mask
    first = mask.long().argmax(1).to(pattern.device)
    columns = torch.arange(tokens.shape[1], device=pattern.device)
    usable = mask.to(pattern.device)[:, :, None] & (columns[None, None, :] > first[:, None, None])
    flat = torch.where(usable, pattern, 0).flatten(1)
    weights, places = flat.topk(min(_STRONGEST, flat.shape[1]), 1)
    width = tokens.shape[1]
    for row, (values, at) in enumerate(zip(weights.tolist(), places.tolist())):
        ids, start = tuple(tokens[row, mask[row]].tolist()), int(first[row])
        found.places += [
            (value, ids, place // width - start, place % width - start) for value, place in zip(values, at) if value > 0
        ]
        found.tokens.update(ids)


def _evidence(
    head: NodeId, sums: _Sums, found: _Found, copies: HeadCopying, moved: dict[str, float], texts: Callable[[int], str]
) -> HeadEvidence:
    measured = {name: sums.mean(name, head.index or 0) for name in sums.total}
    scores = {name: value for name, value in measured.items() if value is not None}
    entropy, first = scores.pop("entropy", None), scores.pop("first_token", None)
    scores |= {"copying": copies.raised, "anti_copying": copies.lowered, **moved}
    pairs, phrases = _shown(found, texts)
    return HeadEvidence(
        scores={name: min(1.0, max(0.0, value)) for name, value in scores.items()},
        entropy=entropy or 0.0,
        first_token=first or 0.0,
        pairs=pairs,
        ov_up=copies.strongest,
        qk=phrases,
    )


def _shown(found: _Found, texts: Callable[[int], str]) -> tuple[tuple[AttentionPair, ...], tuple[str, ...]]:
    """The strongest places, each pair of tokens once; and in words the pairs of tokens with the largest sums of weights for how
    often the two tokens occur."""
    totals: dict[tuple[int, int], float] = {}
    pairs: list[AttentionPair] = []
    for weight, ids, query, key in sorted(found.places, key=lambda one: (-one[0], one[1:])):
        both = (ids[query], ids[key])
        if both not in totals and len(pairs) < _PAIRS:
            context = tuple(texts(token) for token in ids[max(0, query + 1 - _CONTEXT) : query + 1])
            pairs.append(AttentionPair(f"p{len(pairs) + 1}", context, texts(ids[key]), query - key, weight))
        totals[both] = totals.get(both, 0.0) + weight
    common = {
        both: total / (found.tokens[both[0]] * found.tokens[both[1]]) ** 0.5
        for both, total in totals.items()
        if total > 1.5  # more than once
    }
    strongest = sorted(common, key=lambda both: (-common[both], both))[:_PHRASES]
    return tuple(pairs), tuple(f"{texts(query)!r} looks at {texts(key)!r}" for query, key in strongest)

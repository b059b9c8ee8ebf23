"""What the model says next when a node writes more of what it writes: what the output test of labels rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.chosen_contexts import Texts
from discovery.component_model import ComponentModel
from discovery.corpus_files import Document
from discovery.evidence import corpus_windows
from discovery.evidence_settings import EvidenceSettings
from discovery.intervened_run import intervened_pass, untouched_pass
from discovery.intervention import Edit, Prompts, prompts_of
from discovery.intervention_text import Place
from discovery.node_meters import WriteMeter, meters_of
from discovery.node_values import node_values
from discovery.transcoder import TranscoderSet
from graphs.evidence import Evidence, SteeredToken, Steering, TokenEffect
from graphs.node import NodeId

STEERED = ("feature", "head", "mlp")
_SHOWN = 10


@dataclass(frozen=True)
class SteeringSettings:
    """How nodes are steered."""

    multiple: float = 2.0
    """A feature's activation grows by so many times its median peak in held-out windows; a head or MLP writes so many times
    more of what it writes where it writes most, less its mean."""
    prompts: int = 16
    """Held-out texts that are continued."""
    width: int = 32
    """Tokens of each, at most."""
    typical: int = 64
    """Held-out texts on which it is measured what heads and MLPs write."""
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    """Which documents are held out, what share of tokens counts as active, and the seed."""


def steering(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    evidence: Mapping[NodeId, Evidence],
    documents: Sequence[Document],
    wanted: Mapping[NodeId, Sequence[str]],
    settings: SteeringSettings | None = None,
) -> dict[NodeId, Steering]:
    """Steers every feature, head and MLP for which tokens are wanted, and tells what became of their logits.

    documents: the corpus that the evidence was collected on; only its held-out ones are read. wanted: texts of tokens, by node;
    those that are no token of the model are left out. Nodes that are never active in held-out windows are left out as well.
    """
    settings = settings or SteeringSettings()
    nodes = [node for node, texts in wanted.items() if texts and node.kind in STEERED]
    if not nodes:
        return {}
    texts = _held_out(model, documents, settings)
    prompts = prompts_of([text[: settings.width] for text in texts[: settings.prompts]]).to(model.device)
    added = _typical(model, evidence, nodes, prompts_of([text[: settings.width] for text in texts]), settings)
    before = intervened_pass(model, None, prompts).logits
    vocabulary = _Vocabulary(model, before.shape[-1])
    found: dict[NodeId, Steering] = {}
    for node in tqdm(nodes, desc="steering", unit="node", delay=1, leave=False):
        if node not in added:
            continue
        value, strength = added[node]
        edit = Edit.of(node, "add", settings.multiple * value)
        change = intervened_pass(model, transcoders, prompts, [edit]).logits - before
        found[node] = vocabulary.told(change.double().cpu(), wanted[node], settings, strength)
    return found


def _held_out(
    model: ComponentModel, documents: Sequence[Document], settings: SteeringSettings
) -> list[tuple[int, ...]]:
    """Windows of documents that score, in random order, each of another document as far as there are any."""
    split = settings.evidence.split_of
    windows = [w for w in corpus_windows(model, documents, settings.evidence) if split(w.document) == "score"]
    order = np.random.default_rng(settings.evidence.seed).permutation(len(windows)).tolist()
    first: dict[int, int] = {}
    for number in order:
        first.setdefault(windows[number].document, number)
    order = [*first.values(), *(number for number in order if first[windows[number].document] != number)]
    return [windows[number].tokens for number in order[: max(settings.typical, settings.prompts)]]


def _typical(
    model: ComponentModel,
    evidence: Mapping[NodeId, Evidence],
    nodes: Sequence[NodeId],
    prompts: Prompts,
    settings: SteeringSettings,
) -> dict[NodeId, tuple[float | Tensor, float]]:
    """What is typical of each node, with the size of what is added."""
    found: dict[NodeId, tuple[float | Tensor, float]] = {}
    for node in nodes:
        if node.kind == "feature":
            contexts = evidence[node].of("score")
            peaks = [peak for one in contexts if (peak := max(map(abs, one.activations), default=0.0)) > 0]
            if peaks:
                found[node] = (float(np.median(peaks)), settings.multiple * float(np.median(peaks)))
    writers = [node for node in nodes if node.kind != "feature"]
    if writers:
        untouched = untouched_pass(model, prompts, patterns=False)
        real = untouched.prompts.cells(None) & (
            untouched.prompts.sequences.positions > 0
        )  # where heads rest is not typical
        for meter in meters_of(model, None, writers):
            assert isinstance(meter, WriteMeter)
            for place, node in enumerate(meter.nodes):
                assert node.layer is not None
                norms = meter.norms(untouched.seen, 0)[..., place]
                least = norms[real].float().quantile(1 - settings.evidence.busy)
                own = node_values(model, None, untouched, Place(node.kind, node.layer, node.index, None))  # type: ignore[arg-type]
                direction = own[real & (norms >= least)].mean(0) - own[real].mean(0)
                found[node] = (direction, settings.multiple * float(direction.norm()))
    return found


class _Vocabulary:
    """The model's tokens by their texts."""

    def __init__(self, model: ComponentModel, size: int) -> None:
        self.texts = Texts(model.tokenizer)
        known = size if model.tokenizer is None else min(size, len(model.tokenizer))
        self.ids: dict[str, int] = {}
        for token in range(known):
            self.ids.setdefault(self.texts(token), token)

    def find(self, text: str) -> int | None:
        """The token of this text: as it stands, else as a word with a space in front; None for none."""
        return self.ids.get(text, self.ids.get(" " + text.strip()))

    def told(
        self, change: Float[Tensor, "prompt vocab"], wanted: Sequence[str], settings: SteeringSettings, strength: float
    ) -> Steering:
        """What became of the logits."""
        change = change - change.mean(1, keepdim=True)
        mean = change.mean(0)
        sides = []
        for sign in (1.0, -1.0):
            values, tokens = (sign * mean).topk(min(_SHOWN, len(mean)))
            sides.append(tuple(TokenEffect(self.texts(t), sign * v) for t, v in zip(tokens.tolist(), values.tolist())))
        tokens = []
        for text in dict.fromkeys(wanted):
            token = self.find(text)
            if token is None:
                continue
            own = change[:, token, None]
            rest = max(1, change.shape[1] - 1)
            above = ((change < own).sum(1) + 0.5 * ((change == own).sum(1) - 1)) / rest
            tokens.append(SteeredToken(text, round(float(mean[token]), 6), tuple(round(a, 4) for a in above.tolist())))
        return Steering(settings.multiple, round(strength, 6), len(change), sides[0], sides[1], tuple(tokens))

"""Every method that scores edges, by name. Importing this imports no method: each loads when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from discovery.options import build_options

if TYPE_CHECKING:
    from discovery.journal import Journal
    from discovery.mask_training import LearnedMasks
    from discovery.methods import (
        acdc,
        atp,
        atp_star,
        clean_corrupted,
        conditional,
        eap,
        eap_ig,
        eap_ig_activations,
        edge_masks,
        exact,
        information_flow,
        random,
        relp,
        screen_verify,
        uniform_gradients,
    )
    from discovery.model import PatchableModel
    from discovery.scoring import OnBatch
    from discovery.workload import Workload
    from graphs.node_scores import NodeScores
    from graphs.scores import EdgeScores


@runtime_checkable
class MethodModule(Protocol):
    """The face of a method: what its file must define."""

    @property
    def Options(self) -> type[Any]:
        """Frozen dataclass of the method's options, each with a default; its `__post_init__` refuses bad values."""
        ...

    def score(
        self, model: PatchableModel, workload: Workload, options: Any = ..., on_batch: OnBatch | None = None
    ) -> EdgeScores | NodeScores:
        """Signed scores of every possible edge, or of every node; positive = dropping it hurts the metric.

        on_batch is called after each batch with its number and its pairs' own scores [pair src dst], or [pair src].
        """
        ...


@runtime_checkable
class LearningModule(MethodModule, Protocol):
    """The face of a method that learns masks."""

    def learn(
        self, model: PatchableModel, workload: Workload, options: Any = ..., journal: Journal | None = None
    ) -> LearnedMasks:
        """Scores, the circuit of the learned size, and the ablation with what was learned of it.

        journal: from which learning goes on where it was stopped, and which it keeps up to date.
        """
        ...


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    name: str
    """As users type it."""
    summary: str
    """One line for `edgewise list methods`."""
    module: str
    """Import path of the file that holds `Options` and `score`."""
    gradients: bool = True
    """Whether its scores estimate by gradients, which do not see gates open or close, what dropping edges does."""
    learned: bool = False
    """Whether its file also defines `learn` (see `LearningModule`). Such scores are of all pairs together: they have no
    standard errors, `on_batch` is not called, and how pairs are cut into batches moves them as a seed does."""

    resumes: bool = False
    """Whether its `score` takes a `journal` (see `discovery.journal`) and goes on from what that holds. The others that do not
    learn are given a model that remembers what it has computed (`discovery.resumed_model`)."""

    bounded: bool = False
    """Whether a bound on the effects of missed nodes is part of it."""

    selection: Literal["top", "greedy"] = "top"
    """How circuits are cut from its scores unless users say so (`graphs.prune.SELECTIONS`): greedy where scores compare the
    edges into one slot, and do not say what an edge far from the logits is worth beside one close to them."""

    reuses: bool = False
    """Whether its `score` takes `known`, earlier scores of the same work, and does not measure again what they hold."""

    effects: bool = True
    """Whether scores are effects on the metric, in its unit."""

    alone: bool = False
    """Whether one process must see all pairs: its decisions follow from one another, or from the time that runs take."""

    def load(self) -> MethodModule:
        """The method itself (imports torch)."""
        return importlib.import_module(self.module)  # type: ignore[return-value]

    def load_learning(self) -> LearningModule:
        """The method itself, where it is `learned`."""
        return importlib.import_module(self.module)  # type: ignore[return-value]

    def options(self, settings: Mapping[str, Any]) -> Any:
        """The method's options with `settings` put in. Raises ValueError naming an unknown option or a bad value."""
        return build_options(self.load().Options, settings, f"method {self.name!r}")


METHODS: dict[str, Method] = {
    "eap": Method(
        "eap",
        "edge attribution patching: one gradient, on the clean run",
        "discovery.methods.eap",
    ),
    "eap-ig": Method(
        "eap-ig",
        "EAP with integrated gradients: inputs interpolated from corrupt to clean (steps, rule)",
        "discovery.methods.eap_ig",
    ),
    "eap-ig-activations": Method(
        "eap-ig-activations",
        "EAP with integrated gradients: what each sublayer writes interpolated, one sublayer at a time (steps, rule, over)",
        "discovery.methods.eap_ig_activations",
    ),
    "clean-corrupted": Method(
        "clean-corrupted",
        "EAP with the mean of the gradients on the clean and on the corrupt run",
        "discovery.methods.clean_corrupted",
    ),
    "atp": Method(
        "atp",
        "attribution patching of nodes: heads, MLPs, q/k/v vectors and (neurons = true) every neuron in three passes",
        "discovery.methods.atp",
    ),
    "atp-star": Method(
        "atp-star",
        "AtP*: exact attention patterns behind queries and keys, GradDrop; edges or nodes (qk_fix, grad_drop, level)",
        "discovery.methods.atp_star",
        gradients=False,
        bounded=True,
    ),
    "relp": Method(
        "relp",
        "EAP with relevance rules in the place of gradients: norms, attention and nonlinearities held (RelP)",
        "discovery.methods.relp",
    ),
    "information-flow": Method(
        "information-flow",
        "information-flow routes: shares of what each slot reads, on the clean prompts alone (tau, of)",
        "discovery.methods.information_flow",
        effects=False,
        gradients=False,
        selection="greedy",
    ),
    "edge-masks": Method(
        "edge-masks",
        "Edge Pruning: masks over edges and nodes, learned down to a target sparsity (sparsity, node_sparsity, steps)",
        "discovery.methods.edge_masks",
        effects=False,
        gradients=False,
        learned=True,
        alone=True,
    ),
    "uniform-gradients": Method(
        "uniform-gradients",
        "uniform gradient sampling: how likely each edge is kept, at a cost per edge (penalty, steps)",
        "discovery.methods.uniform_gradients",
        effects=False,
        gradients=False,
        learned=True,
        alone=True,
    ),
    "exact": Method(
        "exact",
        "every edge really patched, one at a time: the ground truth, and slow",
        "discovery.methods.exact",
        gradients=False,
    ),
    "acdc": Method(
        "acdc",
        "ACDC: edges taken out one after the other unless that hurts by tau; the same circuit as the plain loop's",
        "discovery.methods.acdc",
        gradients=False,
        resumes=True,
        alone=True,
    ),
    "screen-verify": Method(
        "screen-verify",
        "EAP-IG screens, exact patching decides the edges whose rank is uncertain (edges, seconds); the rest keep a bound",
        "discovery.methods.screen_verify",
        gradients=False,
        reuses=True,
        alone=True,
    ),
    "conditional": Method(
        "conditional",
        "of nodes, by real runs: what each does once the strongest heads are ablated; names backup heads (base, heads)",
        "discovery.methods.conditional",
        gradients=False,
        alone=True,
    ),
    "random": Method(
        "random",
        "seeded random scores: the baseline that any method must beat",
        "discovery.methods.random",
        effects=False,
        gradients=False,
    ),
}


def method(name: str) -> Method:
    """The method that `name` names. Raises ValueError with the known names when it names none."""
    try:
        return METHODS[name]
    except KeyError:
        raise ValueError(f"there is no method {name!r} (methods: {', '.join(METHODS)})") from None


if TYPE_CHECKING:  # the type checker proves that every file has the face; a test checks that every line loads
    _FACES: tuple[MethodModule, ...] = (
        acdc,
        atp,
        atp_star,
        clean_corrupted,
        conditional,
        eap,
        eap_ig,
        eap_ig_activations,
        exact,
        information_flow,
        random,
        relp,
        screen_verify,
    )
    _LEARNING: tuple[LearningModule, ...] = (edge_masks, uniform_gradients)

"""What a run does: frozen, nested settings. `pipelines.settings` reads them from TOML files and command-line flags.

Imports nothing heavy: `edgewise --help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

STANDARD_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    name: str | None = None
    """Hugging Face name or directory; None = the embedded model."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face name, such as a checkpoint of its training; None = its main branch."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Type in which the weights are held."""
    device: str = "auto"
    """auto (CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps."""
    device_map: str | None = None
    """Passed to transformers (for models spread over several devices); overrides `device`."""
    kv_heads: Literal["native", "query"] = "native"
    """Grouped-query attention: one k and v slot per key/value head, or one per query head (the peers' graph)."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


@dataclass(frozen=True)
class TaskConfig:
    """Which task, and how its prompts become tokens."""

    source: str = "ioi"
    """A built-in generator, a .jsonl/.csv/.parquet file or a Hugging Face dataset."""
    limit: int | None = None
    """Number of pairs (generators make as many; files are cut there); None = the source's default."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field -> column of the file, such as clean = "clean_prefix"."""
    options: dict[str, Any] = field(default_factory=dict)
    """The generator's or format's own options."""
    metric: str | None = None
    """What is measured; None = the task's own metric."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether prompts start with the beginning-of-sequence token; auto = as the tokenizer does."""
    chat_template: bool = False
    """Wrap prompts in the tokenizer's chat template."""
    misaligned: Literal["error", "drop"] = "error"
    """Pairs whose clean and corrupt prompts have different numbers of tokens, where that matters: stop, or leave them out."""
    spans: Literal["none", "task", "positions"] = "none"
    """Nodes at all positions together, at each span that the task names, or at each position (prompts of equal length)."""


@dataclass(frozen=True)
class MethodConfig:
    """How edges are scored."""

    name: str = "auto"
    """A method of `edgewise list methods`; auto: screen-verify where exact patching is cheap, else eap-ig (see
    `pipelines.default_method`)."""
    options: dict[str, Any] = field(default_factory=dict)
    """The method's own options; they stand beside `name` in the file: `[method] name = "eap-ig"`, `steps = 5`."""
    file: str | None = None
    """Take the scores from this graph file of EAP-IG (.json, .pt) instead: another tool's circuit, judged here."""


@dataclass(frozen=True)
class TranscodersConfig:
    """Features in the place of MLPs: the graph of `discovery.feature_model`."""

    name: str | None = None
    """Directory or hub name of transcoders, or of autoencoders on MLP outputs; None = MLPs are nodes as they are."""
    features: int = 64
    """Features that become nodes, over all layers: those with the largest effect on the task. The rest is error nodes'."""
    heads: bool = True
    """Whether attention heads are nodes too; otherwise attention is wiring, and edges are direct connections."""
    steps: int = 5
    """Gradients between ablated and clean inputs by which features are chosen."""
    recheck: bool = True
    """Ablate every feature and error node in real runs and score the edges of those that gradients misjudge exactly."""
    tolerance: float = 0.5
    """How far, as a share of the larger of the two, gradient and run may differ before a node is flagged."""
    load: dict[str, Any] = field(default_factory=dict)
    """How the files are read: `layers`, `variant`, `l0`, `reads`, `writes` of `load_transcoders`."""


@dataclass(frozen=True)
class AblatingConfig:
    """What the ablations `noise` and `optimal` depend on."""

    noise_scale: float = 3.0
    """Noise on embeddings, in standard deviations of the model's token embeddings."""
    noise_tokens: tuple[str, ...] = ()
    """Tokens that get the noise, as text (or as ids, for models without a tokenizer); none = those at positions where
    clean and corrupt prompts differ."""
    learning_steps: int = 150
    """Steps in which optimal constants are learned."""


@dataclass(frozen=True)
class SelectionConfig:
    """How the circuit is cut out of the scores: by `edges`, `nodes`, `size` or `threshold`, else by `reach`."""

    edges: int | None = None
    """Number of edges, before dead ends are dropped."""
    nodes: int | None = None
    """Number of nodes besides `input` and `logits`, with all edges among them; for methods that score nodes."""
    size: float | None = None
    """Share of the possible edges (0 to 1), before dead ends are dropped."""
    threshold: float | None = None
    """Keep edges whose score is at least this."""
    reach: float = 0.85
    """Used when none of these is given: the smallest standard size with this faithfulness on the scoring split."""
    by: Literal["absolute", "signed"] = "absolute"
    """Rank edges by |score| or by the signed score."""
    rule: Literal["auto", "top", "greedy"] = "auto"
    """The best edges anywhere, or grown from the logits so that every edge is connected when it is added; auto: what the
    method asks for (greedy: information-flow), else top."""
    refine: int = 0
    """Circuits run on the scoring split to swap edges for better ones, at no more edges; 0 = none. Costs accordingly."""
    min_stability: float | None = None
    """Of these edges, keep those that are selected in at least this share of the resamples (of the seeds, without any)."""
    resamples: int = 100
    """Bootstrap resamples of the scoring pairs from which edges are selected again; 0 = none, large graphs get fewer."""
    reruns: int = 0
    """Bootstrap resamples on which the method itself is run anew; they take the place of `resamples`. For methods that
    decide on all pairs together. 0 = none."""
    seeds: int = 2
    """Seeds with which a method that has one scores the edges, its own included; 1 = no other."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How circuits are judged."""

    holdout: float = 0.3
    """Share of the pairs kept for evaluation; 0 scores and evaluates on all pairs."""
    sizes: tuple[float, ...] = STANDARD_SIZES
    """Shares of the possible edges at which the curve is measured."""
    faithfulness_only: bool = False
    """Run neither the complements nor the random circuits of the curve."""
    bootstrap: int = 1000
    """Resamples of the held-out pairs for the intervals; 0 = none."""
    random_circuits: int = 3
    """Random circuits per size of the curve, whose mean is its baseline; 0 = none."""
    missed: Literal["auto"] | int = "auto"
    """Random subsets of the nodes outside the circuit that are ablated together, to bound the effect of a node that was
    missed (at least 10; 0 = none); auto: 200 for method atp-star, else none."""
    rivals: int = 100
    """Random circuits with as many edges beside the chosen circuit; 0 = none."""
    tests: Literal["auto", "all", "free", "none"] = "auto"
    """Hypothesis tests of the circuit: free = those that need no runs of their own; auto = all where they are cheap."""
    ground_truth: str | None = None
    """JSON file with the true edges: adds the AUROC of the scores."""


@dataclass(frozen=True)
class ExportConfig:
    """Which pictures and files are written besides the run's own."""

    formats: tuple[str, ...] = ("svg", "dot", "json", "graphml")
    """Exporters of `edgewise list exporters`."""


@dataclass(frozen=True)
class LabelsConfig:
    """How the circuit's nodes are named."""

    labeler: Literal["auto", "rules", "none"] = "auto"
    """rules: by what was measured of them, without a network. auto: rules where there is text to look at nodes on, that is
    for the embedded model or with a corpus, else none."""
    corpus: tuple[str, ...] = ()
    """Text files; none: text like the embedded model's own, for other models the task's prompts."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task."""
    transcoders: TranscodersConfig = field(default_factory=TranscodersConfig)
    """Features as nodes."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """The scores."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """The circuit."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The judgement."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """The names."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """The pictures."""
    convention: Literal["textbook", "mib"] = "textbook"
    """mib: count, average and judge as the EAP-IG library and the MIB benchmark do (docs/interchange.md)."""
    ablation: Literal[
        "counterfactual", "zero", "mean", "mean-positional", "mean-span", "resample", "noise", "optimal"
    ] = "counterfactual"
    """What a dropped edge carries."""
    ablating: AblatingConfig = field(default_factory=AblatingConfig)
    """Details of the ablation."""
    batch_size: Literal["auto"] | int = "auto"
    """Pairs in one batch; auto = from free memory."""
    seed: int = 0
    """Seed of the split, the generators, the random circuits and the bootstrap."""
    out: str | None = None
    """Run directory; None = runs/<task>-<method>-<hash of the settings>."""

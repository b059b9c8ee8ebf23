"""The component model: heads and MLPs of an untouched Hugging Face causal LM as a patchable graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation
from discovery.architecture import Architecture
from discovery.architectures import architecture_of
from discovery.baseline import Baseline, constant_baseline, differences, recorded_baseline
from discovery.batch import Batch
from discovery.batch_state import BatchState, corrupt_sequences, shared_columns, sum_rows
from discovery.block_run import Recorded
from discovery.blocks import Block, Norm, find_blocks
from discovery.contraction import SlotGradients, contract
from discovery.embedding_noise import noisy_embeddings
from discovery.feature_layer import NO_FEATURES, FeatureLayers
from discovery.fixed_edges import fixed_edges
from discovery.gradient_passes import GradientPasses, Take
from discovery.information_flow import InformationFlow, mean_over_rows
from discovery.metrics import Metric
from discovery.model import Point
from discovery.node_effects import NO_FIXES, Fixes, NodeEffects
from discovery.node_gradients import NodePass, node_effects
from discovery.patched_run import Observer, PatchedRun
from discovery.pruning_state import PruningState
from discovery.recording import Activations, Sequences, prefix_cache, record_pass, session
from discovery.resampling import with_donors
from discovery.rules import PLAIN, Rules
from discovery.span_alignment import aligned_baseline
from discovery.span_places import numbered
from graphs.topology import Topology, transformer_topology

KvHeads = Literal["native", "query"]


class ComponentModel:
    """A Hugging Face causal LM whose edges between heads, MLPs, input and logits can be scored and patched.

    Nothing of the model is changed: every call hooks it and restores it. The last batch's recordings are kept, so loops
    should go over batches outside and over masks inside; call `forget` after changing weights.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        kv_heads: KvHeads = "native",
        name: str = "",
        share_prefix: bool = True,
    ) -> None:
        """hf: the loaded model. kv_heads: one k/v slot per key/value head, or per query head (the peers' graph).

        share_prefix: run the columns before the first difference between clean and corrupt only once.
        Raises UnsupportedModel naming the architecture, configuration key or layer that is not known.
        """
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name or hf.config._name_or_path
        self.arch: Architecture = architecture_of(hf.config)
        self.blocks: tuple[Block, ...] = find_blocks(hf, self.arch, kv_heads == "query")
        self.kv_heads: KvHeads = kv_heads
        self.share_prefix = share_prefix
        first = self.blocks[0]
        self.topology: Topology = transformer_topology(
            len(self.blocks), first.heads, first.kv_slots, [block.parallel for block in self.blocks]
        )
        self.features: FeatureLayers = NO_FEATURES
        self.final_norm = Norm(hf.get_submodule(self.arch.final_norm), self.arch.norm)
        self._state: BatchState | None = None

    @property
    def config(self):
        """The model's configuration."""
        return self.hf.config

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.hf.get_input_embeddings().weight.device  # type: ignore[return-value,union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all that is computed outside the model's own modules: float64 for a float64 model, else float32."""
        return torch.float64 if self.hf.dtype == torch.float64 else torch.float32

    def forget(self) -> None:
        """Drop what is kept of the last batch."""
        self._state = None

    def full_logits(self, batch: Batch) -> Float[Tensor, "read vocab"]:
        """Logits of the untouched model, without any hook, on the clean prompts at the batch's reads."""
        state = self._state if self._state is not None and self._state.key is batch else None
        if state is not None and state.full_logits is not None:
            return state.full_logits
        moved, first = batch.to(self.device), int(batch.read_column.min())
        with session(self.hf, self.arch, ()), torch.no_grad():
            logits = self.hf(
                input_ids=moved.clean,
                attention_mask=moved.mask.long(),
                position_ids=moved.positions,
                use_cache=False,
                logits_to_keep=moved.clean.shape[1] - first,
            ).logits[moved.read_row, moved.read_column - first]
        if state is not None:
            state.full_logits = logits
        return logits

    def linearize(
        self, batch: Batch, metric: Metric, points: Sequence[Point], ablation: Ablation, rules: Rules = PLAIN
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize`. Points interpolate a value, everything after it follows."""
        gradients = SlotGradients(self.blocks, self.dtype, self.features, rules.norms)
        clean, baseline = self.differentiate(batch, metric, points, ablation, gradients.add, rules)
        with torch.no_grad():
            change = differences(self.blocks, clean, baseline, self.dtype, self.features)
            rows = contract(self.blocks, change, gradients, self.features)
        return self._shown(sum_rows(rows, batch)).cpu()

    def differentiate(
        self,
        batch: Batch,
        metric: Metric,
        points: Sequence[Point],
        ablation: Ablation,
        take: Take,
        rules: Rules = PLAIN,
    ) -> tuple[Activations, Baseline]:
        """Runs the model at every point; gives the recorded clean pass and the ablated values of the graph's nodes.

        take: called with each recorded pass and what is to be differentiated there.
        """
        # Before the session: the untouched model must not meet ungrouped heads.
        reference = self.full_logits(batch).to(self.dtype) if metric.needs_reference else None
        with session(self.hf, self.arch, self.blocks), torch.enable_grad():
            state = self._prepare(batch, ablation)
            passes = GradientPasses(self, state, rules)
            passes.run(points, metric, reference, take)
            with torch.no_grad():
                return passes.clean or self.record(state.clean_sequences), self.baseline(state)

    def linearize_nodes(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes = NO_FIXES, neurons: bool = False
    ) -> NodeEffects:
        """See `PatchableModel.linearize_nodes`. Raises ValueError for neurons under an ablation by means."""
        reference = self.full_logits(batch).to(self.dtype) if metric.needs_reference else None
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            run = NodePass(self, self._prepare(batch, ablation), metric, reference, neurons)
            found = node_effects(self, batch, run, fixes)
        sources, slots = self._shown_nodes(found.sources, found.slots)
        return NodeEffects(sources, slots, found.neurons)

    def linearize_fixed(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize_fixed`."""
        reference = self.full_logits(batch).to(self.dtype) if metric.needs_reference else None
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            run = NodePass(self, self._prepare(batch, ablation), metric, reference, neurons=False)
            return self._shown(fixed_edges(self, batch, run, fixes)).cpu()

    def flow(self, batch: Batch, tau: float) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.flow`."""
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            rows = InformationFlow(self, batch, tau).scores()
        return self._shown(mean_over_rows(rows, batch)).float()

    @property
    def graph_without_spans(self) -> Topology:
        """The graph that a run computes, with every node once."""
        return self.all_nodes

    @property
    def all_nodes(self) -> Topology:
        """The graph that a run computes, of which `topology` may show a part."""
        return self.topology

    def run(
        self,
        batch: Batch,
        keep: Bool[Tensor, "*mask src dst"] | Float[Tensor, "*mask src dst"],
        ablation: Ablation,
    ) -> Float[Tensor, "*mask read vocab"]:
        """See `PatchableModel.run`."""
        return self._run(batch, keep, ablation)

    def run_every_slot(self, batch: Batch, observe: Observer) -> Float[Tensor, "read vocab"]:
        """A run with every edge kept in which every slot gets an input of its own, without any shortcut.

        observe: called with each stage's name and what its slots read; `recorded_stream` gives the model's own.
        """
        aligned = batch.corrupt_mask is None or batch.alignment is not None
        ablation = COUNTERFACTUAL if aligned else ZERO
        return self._run(batch, torch.ones(self.topology.possible.shape), ablation, every_slot=True, observe=observe)

    def recorded_stream(self, stage: str) -> Tensor:
        """The residual stream that the untouched model's slots read at a stage of the last batch, clean prompts."""
        assert self._state is not None and self._state.recorded is not None, "nothing has been run yet"
        recorded = self._state.recorded
        if stage == "logits":
            assert recorded.clean.final_in is not None
            return recorded.clean.final_in[recorded.read_rows, recorded.read_columns]
        _, layer, kind = stage.split()
        return (recorded.clean.attention_in if kind == "attention" else recorded.clean.mlp_in)[int(layer)]

    def _run(
        self,
        batch: Batch,
        keep: Tensor,
        ablation: Ablation,
        every_slot: bool = False,
        observe: Observer | None = None,
    ) -> Tensor:
        lead = keep.shape[:-2]
        masks = self._all_edges(keep.reshape(-1, *keep.shape[-2:]).to(self.dtype))
        with session(self.hf, self.arch, self.blocks), torch.set_grad_enabled(keep.requires_grad or ablation.learning):
            recorded = self._recorded(self._prepare(batch, ablation))
            patched = self._patched_run(recorded, masks, every_slot, observe)
            logits = self.unembed(patched.final_stream())
        return logits.reshape(*lead, *logits.shape[1:])

    def _patched_run(self, recorded: Recorded, masks: Tensor, every_slot: bool, observe: Observer | None) -> PatchedRun:
        return PatchedRun(self.blocks, self.topology, recorded, masks, every_slot=every_slot, observe=observe)

    def _all_edges(self, masks: Float[Tensor, "mask src dst"]) -> Float[Tensor, "mask all_src all_dst"]:
        """Masks over every edge that a run computes, from masks over the graph's."""
        return masks

    def _shown(self, scores: Float[Tensor, "pair all_src all_dst"]) -> Float[Tensor, "pair src dst"]:
        """The graph's edges out of all that a run computes."""
        return scores

    def _shown_nodes(self, sources: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The graph's sources and slots [pair src], [pair dst] out of all that a run computes."""
        return sources, slots

    def pruning_state(self, batch: Batch, ablation: Ablation, denoise: bool = False) -> PruningState:
        """The whole model's run on a batch, kept for runs of circuits that shrink. Not for models with features.

        denoise: the run that gives ablated values instead, whose own ablated values are the clean ones.
        """
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            state = self._prepare(batch, ablation)
            recorded = self._recorded(state)
            if denoise:
                seen = self.ablated_pass(state)
                baseline = recorded_baseline(self.blocks, recorded.clean, self.dtype)
                change = differences(self.blocks, seen, baseline, self.dtype)
                recorded = replace(recorded, clean=seen, baseline=baseline, differences=change)
            return PruningState(self.blocks, self.topology, recorded)

    def unembed(self, stream: Float[Tensor, "mask read d_model"]) -> Float[Tensor, "mask read vocab"]:
        """Logits of what the final norm reads."""
        head = self.hf.get_submodule(self.arch.unembedding)
        normed = self.final_norm(stream.to(self.final_norm.module.weight.device))  # type: ignore[arg-type,union-attr]
        logits = head(normed.to(head.weight.dtype))  # type: ignore[union-attr,arg-type]
        cap = (
            None if self.arch.final_softcap is None else getattr(self.config.get_text_config(), self.arch.final_softcap)
        )
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _prepare(self, batch: Batch, ablation: Ablation) -> BatchState:
        state = self._state
        if state is not None and state.key is batch and state.ablation == ablation:
            return state
        # What is read off the batch is read where the caller holds it: a device is never waited for.
        own = batch if ablation.donors is None else with_donors(batch, ablation.donors)
        if ablation.swaps_prompts and own.corrupt_mask is not None and own.alignment is None:
            raise ValueError(f"ablation {ablation.kind!r} needs clean and corrupt prompts of equal length, or spans")
        start = shared_columns(own) if self.share_prefix and ablation.swaps_prompts else 0
        moved = own.to(self.device)
        cache = prefix_cache(self.hf, self.blocks, moved, start) if start else None

        def suffix(tokens: Tensor) -> Sequences:
            return Sequences(tokens[:, start:], moved.mask, moved.positions[:, start:], cache)

        known = state if state is not None and state.key is batch else None
        corrupt = suffix(moved.corrupt) if moved.corrupt_mask is None else corrupt_sequences(moved)
        self._state = BatchState(batch, moved, ablation, start, suffix(moved.clean), corrupt)
        if known is not None:  # another ablation of the same prompts
            self._state.full_logits = known.full_logits
            if known.recorded is not None and known.start == start:
                self._state.clean = known.recorded.clean
        return self._state

    def record(self, sequences: Sequences, **options: Any) -> Activations:
        """One recorded pass inside a session. options: those of `record_pass`."""
        return record_pass(self.hf, self.arch, self.blocks, sequences, **options)

    def baseline(self, state: BatchState) -> Baseline:
        """The ablated values of a batch, measured or made once."""
        if state.baseline is None:
            if state.ablation.still:
                seen = self.ablated_pass(state)
                state.baseline = recorded_baseline(self.blocks, seen, self.dtype, self.features)
                if state.ablation.swaps_prompts and state.batch.alignment is not None:
                    state.baseline = aligned_baseline(state.baseline, state.batch.alignment)
            else:
                rows, width = state.batch.clean.shape
                d_model = self.blocks[0].weight("q").shape[-1]
                like = torch.zeros((), dtype=self.dtype, device=self.device).expand(rows, width, d_model)
                names = state.ablation.span_names
                index = numbered(state.batch, names).clamp(min=0) if names else state.batch.positions
                state.baseline = constant_baseline(self.blocks, state.ablation, like, index, self.features)
        return state.baseline

    def ablated_pass(self, state: BatchState, **options: Any) -> Activations:
        """The run that gives the ablated values, where they come from one. options: those of `record_pass`."""
        if state.ablation.noise is None:
            return self.record(state.corrupt_sequences, **options)
        with noisy_embeddings(self.hf, state.batch, state.ablation.noise):
            return self.record(state.clean_sequences, **options)

    def _recorded(self, state: BatchState) -> Recorded:
        if state.recorded is None:
            with torch.no_grad():
                clean = state.clean or self.record(state.clean_sequences)
            with torch.set_grad_enabled(state.ablation.learning):
                baseline = self.baseline(state)
                state.recorded = Recorded(
                    sequences=state.clean_sequences,
                    clean=clean,
                    baseline=baseline,
                    differences=differences(self.blocks, clean, baseline, self.dtype, self.features),
                    read_rows=state.batch.read_row,
                    read_columns=state.batch.read_column - state.start,
                )
        return state.recorded

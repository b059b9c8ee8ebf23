"""The local replacement model of one prompt: MLPs as transcoder features, errors and constants; the rest frozen and linear.

Conventions, section 6 (Ameisen et al. 2025, as circuit-tracer computes it). Since everything between two features is
linear, direct effects need no autograd: a batch of target gradients is pulled down the layers by matrix products, within
the causal cone of its targets, and met at every layer with what the sources there write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.frozen_prompt import FrozenPrompt, freeze
from discovery.sites import at_site
from discovery.source_writes import Writes, arrange, meet
from discovery.transcoder import TRANSCODER_READS, TRANSCODER_WRITES, BadTranscoder, TranscoderSet


@dataclass(frozen=True, eq=False)
class Features:
    """The active features of a prompt, by layer, position and number."""

    layer: Int[Tensor, " feature"]
    """The layer that each reads."""
    position: Int[Tensor, " feature"]
    """Its position in the prompt."""
    index: Int[Tensor, " feature"]
    """Its number in its dictionary."""
    activation: Float[Tensor, " feature"]
    """a."""
    preactivation: Float[Tensor, " feature"]
    """h."""
    own: Float[Tensor, " feature"]
    """The part of h that no source carries: b_enc, and what the bias of a norm adds."""

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True, eq=False)
class Readouts:
    """Linear functions of the residual stream: what is to be explained. Deepest first."""

    depth: Int[Tensor, " row"]
    """2 * layer before its attention, 2 * layer + 1 between attention and MLP, 2 * layers before the final norm."""
    position: Int[Tensor, " row"]
    """Where each reads."""
    vectors: Float[Tensor, "row d_model"]
    """Its gradient there."""
    sums: Int[Tensor, " row"] | None = None
    """Ascending number of the sum that each adds to, where functions read several positions (of one depth) and effects on
    their sums alone are wanted; None: each stands for itself."""

    def __len__(self) -> int:
        """Number of functions: of sums, where there are some."""
        return len(self.depth) if self.sums is None else int(self.sums[-1]) + 1


class LocalReplacement:
    """Features, errors, embeddings and constants of one prompt, and the direct effects of all of them on any readout.

    Sources have columns: features, errors by layer and position, tokens by position; then the constants of each layer by
    layer and position, and position embeddings where the model has them.
    """

    def __init__(
        self,
        model: ComponentModel,
        transcoders: TranscoderSet,
        tokens: Sequence[int] | Int[Tensor, " pos"],
        *,
        fixed_prefix: int = 1,
        frozen: FrozenPrompt | None = None,
    ) -> None:
        """tokens: one prompt. fixed_prefix: at so many first positions features and errors are zero (conventions).

        Raises BadTranscoder where the dictionaries do not stand for the model's MLPs.
        """
        check_fit(model, transcoders)
        self.model = model
        self.transcoders = transcoders
        self.fixed_prefix = fixed_prefix
        self.frozen = freeze(model, torch.as_tensor(tokens)) if frozen is None else frozen
        self.width = len(self.frozen.tokens)
        self.layers = len(model.blocks)
        self.mlp_constants: list[Float[Tensor, "pos d_model"]] = []
        """By layer: what is added at the MLP whatever is read."""
        self._by_layer = transcoders.by_layer
        with torch.no_grad():
            self.features = self._find_features()
            self.first_error = len(self.features)
            self.first_token = self.first_error + self.layers * self.width
            self.sources = self.first_token + self.width
            """Number of columns without constants."""
            self.columns = self.sources + (self.layers + (self.frozen.positional is not None)) * self.width
            """Number of columns with them."""
            self.writes: list[list[Writes]] = [self._writes_of(layer) for layer in range(self.layers)]
            """By layer: what features and errors write there."""

    def _read(self, layer: int) -> Float[Tensor, "pos d_in"]:
        """What a layer's dictionary reads."""
        return at_site(self.model.blocks, self.frozen.seen, layer, self.transcoders.reads)[0].to(self.model.dtype)

    def _find_features(self) -> Features:
        parts: list[tuple[Tensor, ...]] = []
        for transcoder in self.transcoders:
            h = transcoder.preactivations(self._read(transcoder.layer))
            a = transcoder.activation(h)
            a[: self.fixed_prefix] = 0
            position, index = a.nonzero(as_tuple=True)
            own = transcoder.encoder_bias.to(h)[index]
            constant = self.frozen.layers[transcoder.layer].mlp_read_constant(self.transcoders.reads)
            if constant is not None:
                own = own + self.encoder_rows(transcoder.layer, index) @ constant
            layer = torch.full_like(index, transcoder.layer)
            parts.append((layer, position, index, a[position, index], h[position, index], own))
        return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def encoder_rows(self, layer: int, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Rows of W_enc, read from where they are stored."""
        return _rows(self._by_layer[layer].encoder, index, self.frozen.embeddings)

    def _writes_of(self, layer: int) -> list[Writes]:
        """What features and errors write at a layer; notes its constants on the way."""
        frozen, site = self.frozen.layers[layer], self.transcoders.writes
        everywhere = torch.arange(self.width, device=self.model.device)
        rest = self.frozen.seen.mlp_out[layer][0].to(self.model.dtype).clone()
        vectors, positions, columns = [], [], []
        for transcoder in self.transcoders.writers_of(layer):
            chosen = (self.features.layer == transcoder.layer).nonzero().squeeze(1)
            rows = _rows(transcoder.decoders[layer], self.features.index[chosen], rest)
            place = self.features.position[chosen]
            vectors.append(frozen.push_mlp_write(rows * self.features.activation[chosen, None], place, site))
            positions.append(place)
            columns.append(chosen)
            rest.index_add_(0, place, vectors[-1], alpha=-1)
        constant = torch.zeros_like(rest)
        if vectors:
            bias = self.transcoders.biases[layer].to(rest).expand_as(rest)
            constant = frozen.push_mlp_write(bias, everywhere, site).clone()
        skip = self._skip_of(layer)
        if skip is not None:
            rest -= frozen.push_mlp_write(self._read(layer) @ skip.t(), everywhere, site)
        # At the fixed prefix the whole output is constant, but for what a skip connection carries.
        constant[: self.fixed_prefix] = rest[: self.fixed_prefix]
        error = rest - constant
        read = frozen.mlp_read_constant(self.transcoders.reads)
        if skip is not None and read is not None:
            constant += frozen.push_mlp_write((skip @ read).expand_as(rest), everywhere, site)
        self.mlp_constants.append(constant)
        vectors.append(error)
        positions.append(everywhere)
        columns.append(self.first_error + layer * self.width + everywhere)
        return arrange(torch.cat(vectors), torch.cat(positions), torch.cat(columns), self.width)

    def _skip_of(self, layer: int) -> Float[Tensor, "d_out d_in"] | None:
        transcoder = self._by_layer.get(layer)
        if transcoder is None or transcoder.skip is None:
            return None
        return transcoder.skip.to(self.model.device, self.model.dtype)

    def feature_readouts(self, chosen: Int[Tensor, " row"]) -> Readouts:
        """Readouts of some features' pre-activations (less `own`), in the order given, which must be deepest first."""
        layers, positions = self.features.layer[chosen], self.features.position[chosen]
        vectors = self.frozen.embeddings.new_empty((len(chosen), self.frozen.embeddings.shape[1]))
        for layer in layers.unique().tolist():
            rows = (layers == layer).nonzero().squeeze(1)
            encoder = self.encoder_rows(layer, self.features.index[chosen[rows]])
            read = self.frozen.layers[layer].pull_mlp_read(encoder, positions[rows], self.transcoders.reads)
            vectors[rows] = read
        parallel = torch.tensor([block.parallel for block in self.model.blocks], device=layers.device)
        return Readouts(2 * layers + (~parallel[layers]).long(), positions, vectors)

    def logit_readouts(self, directions: Float[Tensor, "row d_model"]) -> Readouts:
        """Readouts at the last position of directions behind the final norm, such as demeaned unembedding rows."""
        count = len(directions)
        depth = torch.full((count,), 2 * self.layers, device=directions.device)
        return Readouts(depth, torch.full_like(depth, self.width - 1), self.frozen.pull_logits(directions))

    def direct_effects(self, readouts: Readouts, constants: bool = False) -> Float[Tensor, "column row"]:
        """What every source contributes to every readout along all paths through attention values, norms and skips.

        With constants, rows sum to the readout's value in the model.
        """
        with torch.no_grad():
            return self._pull(readouts, constants)

    def _pull(self, readouts: Readouts, constants: bool) -> Tensor:
        width = int(readouts.position.max()) + 1
        d_model = readouts.vectors.shape[1]
        gradient = readouts.vectors.new_zeros((len(readouts), width, d_model))
        result = gradient.new_zeros((self.columns if constants else self.sources, len(readouts)))
        depths = readouts.depth.tolist()
        if depths != sorted(depths, reverse=True):
            raise ValueError("readouts must come deepest first")
        rows = torch.arange(len(depths), device=gradient.device) if readouts.sums is None else readouts.sums
        first = active = spread = (
            0  # rows before `spread` have been through an attention: the others stand at one position
        )

        def inject(depth: int) -> None:
            nonlocal first, active
            end = first
            while end < len(depths) and depths[end] >= depth:
                end += 1
            if end > first:
                places = (rows[first:end], readouts.position[first:end])
                gradient.index_put_(places, readouts.vectors[first:end], accumulate=True)
                first, active = end, int(rows[end - 1]) + 1

        inject(2 * self.layers)
        for layer in reversed(range(self.layers)):
            live = gradient[:active]
            if active:
                meet(self.writes[layer], live, result)
                skipped = self.pull_skip(layer, live)
                if constants:
                    self._meet_constants(layer, self.mlp_constants[layer], live, result)
                if not self.model.blocks[layer].parallel and skipped is not None:
                    live += skipped
                    skipped = None
            else:
                skipped = None
            inject(2 * layer + 1)
            live = gradient[:active]
            if active:
                if constants:
                    self._meet_constants(layer, self.frozen.layers[layer].attention_constant, live, result)
                spread = spread if readouts.sums is None else active
                self._pull_attention(layer, live, spread, readouts.position[spread:active])
                spread = active
                if skipped is not None:
                    live += skipped
            inject(2 * layer)
        self._meet_entry(gradient, result, constants)
        return result

    def _pull_attention(self, layer: int, live: Tensor, spread: int, positions: Int[Tensor, " fresh"]) -> None:
        """Adds what the attention carries; rows from `spread` on are at one position each."""
        frozen = self.frozen.layers[layer]
        if spread:
            live[:spread] += frozen.pull_attention(live[:spread])
        if spread < len(live):
            rows = torch.arange(spread, len(live), device=live.device)
            live[spread:] += frozen.pull_attention_from(live[rows, positions], positions, live.shape[1])

    def pull_skip(self, layer: int, gradient: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """Through a layer's skip connection to what its MLP reads; None where it has none."""
        skip = self._skip_of(layer)
        if skip is None:
            return None
        frozen, width = self.frozen.layers[layer], gradient.shape[1]
        positions = torch.arange(width, device=gradient.device)
        # A norm behind the MLP is diagonal once its scale is frozen: its pull is its push.
        written = frozen.push_mlp_write(gradient, positions, self.transcoders.writes)
        return frozen.pull_mlp_read(written @ skip, positions, self.transcoders.reads)

    def _meet_constants(self, layer: int, constant: Tensor, gradient: Tensor, result: Tensor) -> None:
        rows, width, _ = gradient.shape
        first = self.sources + layer * self.width
        result[first : first + width, :rows] += torch.einsum("npd,pd->pn", gradient, constant[:width])

    def _meet_entry(self, gradient: Tensor, result: Tensor, constants: bool) -> None:
        width = gradient.shape[1]
        met = torch.einsum("npd,pd->pn", gradient, self.frozen.embeddings[:width])
        result[self.first_token : self.first_token + width] = met
        if constants and self.frozen.positional is not None:
            first = self.sources + self.layers * self.width
            met = torch.einsum("npd,pd->pn", gradient, self.frozen.positional[:width])
            result[first : first + width] = met


def _rows(weights: Tensor, index: Int[Tensor, " n"], like: Tensor) -> Tensor:
    """Some rows of a matrix that may lie on disk, on the device and in the dtype of `like`."""
    return weights[index.to(weights.device)].to(like)


def check_fit(model: ComponentModel, transcoders: TranscoderSet) -> None:
    """Raise BadTranscoder unless the dictionaries can stand for the model's MLPs."""
    name, layers = transcoders.name or "transcoders", len(model.blocks)
    if transcoders.reads not in TRANSCODER_READS or transcoders.writes not in TRANSCODER_WRITES:
        raise BadTranscoder(
            f"{name}: they read {transcoders.reads} and write {transcoders.writes}; a local replacement model needs "
            f"dictionaries that read {', '.join(TRANSCODER_READS)} and write {' or '.join(TRANSCODER_WRITES)}"
        )
    d_model = model.blocks[0].weight("q").shape[-1]
    for transcoder in transcoders:
        if transcoder.layer >= layers or max(transcoder.decoders) >= layers:
            raise BadTranscoder(f"{name}: layer {max(transcoder.decoders)} does not exist: the model has {layers}")
        for matrix in (transcoder.encoder, *transcoder.decoders.values()):
            if matrix.shape[1] != d_model:
                raise BadTranscoder(
                    f"{name}: layer {transcoder.layer} is made for width {matrix.shape[1]}, the model's is {d_model}"
                )

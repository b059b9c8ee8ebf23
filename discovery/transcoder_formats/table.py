"""The table of transcoder formats."""

from __future__ import annotations

from discovery.transcoder import BadTranscoder
from discovery.transcoder_formats.circuit_tracer import CIRCUIT_TRACER
from discovery.transcoder_formats.format import Source, TranscoderFormat
from discovery.transcoder_formats.gemma_scope import GEMMA_SCOPE
from discovery.transcoder_formats.sae_lens import SAE_LENS
from discovery.transcoder_formats.sparsify import SPARSIFY

FORMATS: dict[str, TranscoderFormat] = {
    "circuit-tracer": CIRCUIT_TRACER,
    "sae-lens": SAE_LENS,
    "sparsify": SPARSIFY,
    "gemma-scope": GEMMA_SCOPE,
}
"""Every format by name; the first one that fits the names of the files is taken."""


def format_of(source: Source) -> TranscoderFormat:
    """The format of a directory. Raises BadTranscoder where none fits."""
    for known in FORMATS.values():
        if known.fits(source):
            return known
    raise BadTranscoder(
        f"transcoders {source.name}: the directory is in no known format ({', '.join(FORMATS)}); "
        "it should hold config.yaml, sae_weights.safetensors, sae.safetensors or params.npz"
    )

"""`edgewise connections`: what the weights alone say of one feature, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from pipelines.config import ModelConfig, TranscodersConfig
from pipelines.model_source import load, model_title
from pipelines.settings import ConfigError
from pipelines.summary import table
from pipelines.transcoders import read_transcoders, transcoders_place

if TYPE_CHECKING:
    from discovery.connections import Connection, Connections, Ranked, TokenWeight


def find_connections(
    name: str, model: ModelConfig, transcoders: TranscodersConfig, top: int
) -> tuple[Connections, str]:
    """The connections of the feature that `name` names, and one line about where they are from.

    Raises ValueError in one line for a name, model or transcoders that do not fit.
    """
    from graphs.node import NodeId

    if top < 1:
        raise ConfigError(f"--top {top}: at least 1")
    feature = NodeId.parse(name)
    if feature.kind != "feature":
        raise ConfigError(f"{name} is not a feature (such as f2.31)")
    place = transcoders_place(transcoders.name, model)
    from discovery.connections import connections

    loaded = load(model)
    found = connections(loaded, read_transcoders(place, transcoders), feature, top)
    origin = place if transcoders.name is not None else "the embedded transcoders"
    return found, f"{found.feature} of {origin} in {model_title(model)}"


def as_json(found: Connections, origin: str) -> str:
    """The connections as JSON."""
    return json.dumps({"origin": origin, **found.to_json()}, indent=1, ensure_ascii=False, allow_nan=False)


def connections_summary(found: Connections, origin: str) -> str:
    """The tables of `edgewise connections`: on the left what adds, on the right what takes away."""
    parts = [
        ("tokens whose embeddings excite it", "inhibit it", _tokens(found.excited_by)),
        ("tokens that it promotes", "suppresses", _tokens(found.promotes)),
        ("earlier features that excite it", "inhibit it", _features(found.reads)),
        ("... through a head", "inhibit it", _features(found.reads_through_heads)),
        ("later features that it excites", "inhibits", _features(found.feeds)),
        ("... through a head", "inhibits", _features(found.feeds_through_heads)),
    ]
    lines = [origin, "From weights alone: norm scales, attention patterns and activations are left out."]
    lines.append("x rms: over the root mean square of all tokens, or of all features of that layer along that way.")
    for up, down, rows in parts:
        if rows:
            titles = ("value", "x rms") if len(rows[0]) == 7 else ("via", "value", "x rms")
            lines += ["", *table([(up, *titles, " |", down, *titles), *rows], left=1)]
    return "\n".join(lines)


def _tokens(ranked: Ranked[TokenWeight]) -> list[tuple[str, ...]]:
    return _sides(*([(_quoted(entry.text), *_numbers(entry)) for entry in end] for end in (ranked.up, ranked.down)))


def _features(ranked: Ranked[Connection]) -> list[tuple[str, ...]]:
    def named(entry: Connection) -> tuple[str, ...]:
        return (str(entry.feature), *([] if entry.via is None else [str(entry.via)]), *_numbers(entry))

    return _sides(*(list(map(named, end)) for end in (ranked.up, ranked.down)))


def _sides(left: Sequence[tuple[str, ...]], right: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Both ends side by side; the shorter one is filled up."""
    width = max(map(len, (*left, *right)), default=0)
    pairs = zip_longest(left, right, fillvalue=("",) * width)
    return [(*up, " |", *down) for up, down in pairs]


def _numbers(entry: Any) -> tuple[str, str]:
    return f"{entry.value:.3g}", f"{entry.deviation:.1f}"


def _quoted(text: str) -> str:
    """A token's text, which may hold anything, in quotes on one line."""
    from graphs.escape import clean

    return json.dumps(clean(text), ensure_ascii=False)

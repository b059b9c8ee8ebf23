"""Settings as TOML text; `pipelines.settings` reads them back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pipelines.config import RunConfig
from pipelines.settings import ConfigError


def to_toml(config: RunConfig) -> str:
    """A TOML file that `from_file` reads back as the same configuration. Settings that are None are left out."""
    tables = dataclasses.asdict(config)
    options = tables["method"].pop("options")
    tables["method"] |= options
    scalars = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    lines = _lines(scalars)
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if value is not None and value != {}]


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "a").replace("-", "a").isalnum() else _toml(name)


def _toml(value: Any) -> str:
    """One value as TOML. Raises ConfigError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    raise ConfigError(f"{value!r} cannot be written to a configuration file")

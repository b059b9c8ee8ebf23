"""Files of transcoders on the Hugging Face hub: only those that are needed are fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from discovery.transcoder import BadTranscoder

SUFFIXES = (".json", ".yaml", ".safetensors", ".npz")
"""Endings of the files that any format reads."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"({_PART}/{_PART})((?:/{_PART})*)(?:@([A-Za-z0-9._/-]+))?")


def parse_hub_name(name: str) -> tuple[str, str, str | None]:
    """(repository, folder in it or "", revision or None) of owner/name, owner/name/folder or either with @revision.

    Raises BadTranscoder for what is no hub name."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise BadTranscoder(
            f"transcoders {name!r}: there is no such directory, and it is no hub name (owner/name, owner/name/folder@revision)"
        )
    return match[1], match[2].removeprefix("/"), match[3]


def list_files(repository: str, folder: str, revision: str | None) -> tuple[str, ...]:
    """Files in a folder of a hub repository that a format may read, relative to the folder. Raises BadTranscoder."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise BadTranscoder(
            f"transcoders {repository!r} are neither on this machine nor found on the hub: {_line(error)}"
        ) from error
    start = f"{folder}/" if folder else ""
    return tuple(
        sorted(file.removeprefix(start) for file in files if file.startswith(start) and file.endswith(SUFFIXES))
    )


def fetch(repository: str, folder: str, revision: str | None, files: Sequence[str]) -> Path:
    """Downloads files of a repository (or finds them in the cache); gives the folder that holds them."""
    from huggingface_hub import snapshot_download

    patterns = [f"{folder}/{file}" if folder else file for file in files]
    try:
        place = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise BadTranscoder(f"cannot download {patterns[0]} and others of {repository!r}: {_line(error)}") from error
    return Path(place) / folder


def fetch_uri(uri: str) -> Path:
    """Downloads one file named as hf://owner/name/path?revision=...; gives where it lies."""
    from huggingface_hub import hf_hub_download

    parts = urlsplit(uri)
    name, _, path = unquote(parts.path).removeprefix("/").partition("/")
    if not parts.netloc or not name or not path.endswith(SUFFIXES) or ".." in path:
        raise BadTranscoder(f"{uri!r} is no file on the hub that transcoders are read from")
    revision = parse_qs(parts.query).get("revision", [None])[0]
    try:
        return Path(hf_hub_download(f"{parts.netloc}/{name}", path, revision=revision))
    except Exception as error:
        raise BadTranscoder(f"cannot download {uri}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""The measurements behind the output test of a run's labels: its nodes steered on the corpus that their evidence is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.fingerprint import hash_file
from pipelines.store import EVIDENCE, RunStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from discovery.corpus_files import Document
    from graphs.evidence import Evidence
    from graphs.label import Label
    from graphs.node import NodeId
    from pipelines.label_subject import Subject


def with_steering(
    store: RunStore, labels: Mapping[NodeId, Label], evidence: Mapping[NodeId, Evidence], seed: int
) -> tuple[dict[NodeId, Evidence], str]:
    """The evidence with what steering did to the tokens that labels predict, written back; and why not, where it could not be
    measured (the corpus is gone or was changed). What was measured for the same tokens before is used again."""
    from graphs.evidence_json import evidence_to_json
    from labelers.output_test import tokens_to_steer

    wanted = tokens_to_steer({node: label for node, label in labels.items() if node in evidence}, seed)
    missing = {node: tokens for node, tokens in wanted.items() if not _measured(evidence[node], tokens)}
    if not missing:
        return dict(evidence), ""
    from discovery.steering import steering
    from pipelines.label_subject import subject_of

    subject = subject_of(store)
    documents = _documents(store, subject)
    if documents is None:
        return dict(evidence), "no output test: the corpus is gone or has changed; run edgewise label again"
    found = steering(subject.model, subject.transcoders, evidence, documents, missing)
    result = dict(evidence)
    for node, measured in found.items():
        result[node] = replace(evidence[node], steering=measured)
        store.write_bytes(f"{EVIDENCE}/{node}.json", evidence_to_json(result[node]))
    return result, ""


def _measured(evidence: Evidence, tokens: Sequence[str]) -> bool:
    return evidence.steering is not None and set(tokens) <= {one.token for one in evidence.steering.tokens}


def _documents(store: RunStore, subject: Subject) -> Sequence[Document] | None:
    """The corpus that the evidence was collected on; None where it is not the same any more."""
    made_from, files = store.run.get("evidence") or {}, tuple(store.run.get("corpus") or ())
    hashes = made_from.get("corpus") or {}
    if len(files) != len(hashes) or not all(Path(name).is_file() for name in files):
        return None
    if any(hash_file(Path(name)) != hashes.get(Path(name).name) for name in files):
        return None
    return subject.documents(files, (made_from.get("generated") or {}).get("documents", 0))

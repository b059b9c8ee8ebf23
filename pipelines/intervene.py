"""`edgewise intervene`: what changing nodes or directions does to one prompt or a task, with frozen and with live attention."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import RunConfig
from pipelines.discover import settings_of
from pipelines.fingerprint import edgewise_version, hash_file, hash_settings, versions
from pipelines.inputs import Inputs, read_task
from pipelines.intervene_flags import FREEZES, Request
from pipelines.model_source import hash_model, load, model_title
from pipelines.settings import ConfigError
from pipelines.store import RunStore
from pipelines.transcoders import hash_transcoders, transcoders_place

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.intervention import DirectionEdit
    from discovery.intervention_report import Plan
    from discovery.intervention_text import Intervention
    from discovery.tokenisation import Ids
    from discovery.transcoder import TranscoderSet

RESULT, DIRECTION = "intervene.json", "direction.safetensors"


def intervene(config: RunConfig, request: Request) -> tuple[dict[str, Any], list[Path]]:
    """Makes the runs; gives what intervene.json holds and the files that were written. Raises ValueError in one line."""
    from discovery.intervention_text import parse_interventions

    interventions = parse_interventions(request.interventions)
    _check(request)
    clock = Clock()
    store = RunStore(config.out or _default_directory(config, request))
    written: list[Path] = []
    if request.prompt is None:
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, holdout=0.0))
        inputs = Inputs(config, read_task(config), clock)
        inputs.prepare()
        model = inputs.model
    else:
        with clock.time("model"):
            inputs, model = None, load(config.model)
    with clock.time("transcoders"):
        transcoders = _transcoders(config, request, interventions, model)
    with clock.time("plan"):
        plan, made = _plan(config, request, interventions, model, transcoders, inputs)
    with clock.time("intervene"):
        found = _report(config, request, plan, model, transcoders, inputs)
    if made is not None:
        written.append(store.write_bytes(DIRECTION, made))
    content = found | _record(config, request, transcoders, inputs, clock)
    written.append(store.write_json(RESULT, content))
    return content, written


def _record(
    config: RunConfig,
    request: Request,
    transcoders: TranscoderSet | None,
    inputs: Inputs | None,
    clock: Clock,
) -> dict[str, Any]:
    """What the numbers came from."""
    hashes = {"model": hash_model(config.model)} if inputs is None else inputs.hashes()
    return {
        "edgewise": edgewise_version(),
        "model": model_title(config.model),
        "transcoders": None if transcoders is None else transcoders.name,
        "task": None if inputs is None else inputs.task.name,
        "request": dataclasses.asdict(request),
        "settings": settings_of(config),
        "inputs": {
            **hashes,
            "transcoders": None if transcoders is None else hash_transcoders(transcoders.name),
            **{name: hash_file(Path(name)) for name in (request.direction, *(request.difference or ())) if name},
        },
        "versions": versions(),
        "seconds": {step: round(seconds, 4) for step, seconds in clock.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _check(request: Request) -> None:
    """Refuses what cannot be done before anything is loaded."""
    has_direction = request.direction is not None or request.difference is not None
    if not request.interventions and not has_direction:
        raise ConfigError(
            "nothing to do: give --set NODES=VALUE, or a direction with --direction FILE or --difference A B"
        )
    if request.direction is not None and request.difference is not None:
        raise ConfigError("--direction and --difference exclude each other; give one")
    if request.freeze is not None and request.freeze not in FREEZES:
        raise ConfigError(f"--freeze {request.freeze}: must be one of {', '.join(FREEZES)}")
    for name, value, least in (("--generate", request.generate, 0), ("--top", request.top, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")


def _default_directory(config: RunConfig, request: Request) -> Path:
    what = Path(config.task.source).stem if request.prompt is None else "prompt"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", what).strip("-")[:40] or "task"
    return Path("runs") / f"{name}-intervene-{hash_settings([settings_of(config), dataclasses.asdict(request)])}"


def _transcoders(
    config: RunConfig, request: Request, interventions: tuple[Intervention, ...], model: ComponentModel
) -> TranscoderSet | None:
    """The dictionaries that interventions need, on the model's device; None where they need none."""
    from discovery.transcoder_source import load_transcoders, place_transcoders

    places = [place for one in interventions for place in one.places if place.kind in ("feature", "error")]
    if not places:
        return None
    whole = load_transcoders(transcoders_place(request.transcoders, config.model))
    layers = {place.layer for place in places if place.kind == "feature"}
    for place in places:
        if place.kind == "error":  # what all that write there rebuild
            layers |= {transcoder.layer for transcoder in whole.writers_of(place.layer)}
    chosen = tuple(transcoder for transcoder in whole if transcoder.layer in layers)
    # Where none is left, the engine says which layer has none.
    return place_transcoders(dataclasses.replace(whole, transcoders=chosen or whole.transcoders), model.device)


def _plan(
    config: RunConfig,
    request: Request,
    interventions: tuple[Intervention, ...],
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    inputs: Inputs | None,
) -> tuple[Plan, bytes | None]:
    """What to do, and the file of a direction that was made."""
    from discovery.intervention import prompts_of_batch
    from discovery.intervention_report import Plan, batched_prompts
    from discovery.node_values import mean_values

    directions, made = _directions(config, request, model)
    plan = Plan(
        interventions=interventions,
        directions=tuple(directions),
        freezes=("attention", "none") if request.freeze is None else (request.freeze,),  # type: ignore[arg-type]
        donors={one.donor: _tokens(config, model, one.donor) for one in interventions if one.donor is not None},
        donor=None if request.donor is None else _tokens(config, model, request.donor),
        generate=request.generate,
        top=request.top,
    )
    references = []
    if request.mean_over is not None:
        references = batched_prompts(_prompt_file(config, model, request.mean_over))
    elif inputs is not None:
        references = [prompts_of_batch(batch, corrupt=True) for batch in inputs.train.batches]
    means = mean_values(model, transcoders, plan.places("mean"), references)
    return dataclasses.replace(plan, means=means), made


def _directions(config: RunConfig, request: Request, model: ComponentModel) -> tuple[list[DirectionEdit], bytes | None]:
    """Changes of directions, and the file of a direction that was made."""
    from discovery.direction import difference_of_means, direction_bytes, direction_edits, read_directions
    from discovery.intervention_report import batched_prompts

    made = None
    if request.difference is not None:
        positive, negative = (batched_prompts(_prompt_file(config, model, name)) for name in request.difference)
        made = direction_bytes(difference_of_means(model, positive, negative))
    elif request.direction is None:
        return [], None
    vectors = read_directions(Path(str(request.direction)) if made is None else made, request.vector)
    edits = direction_edits(model, vectors, add=request.add, streams=request.streams, position=request.position)
    return edits, made


def _tokens(config: RunConfig, model: ComponentModel, given: str) -> Ids:
    """Tokens of a prompt, or of a file of token ids. Raises ConfigError for ids that the model does not have."""
    from discovery.single_prompt import prompt_or_file

    ids = prompt_or_file(given, model.tokenizer, config.task.bos, config.task.chat_template)
    return _checked(model, ids, given)


def _prompt_file(config: RunConfig, model: ComponentModel, name: str) -> list[Ids]:
    from discovery.single_prompt import read_prompts

    rows = read_prompts(name, model.tokenizer, config.task.bos, config.task.chat_template)
    return [_checked(model, row, name) for row in rows]


def _checked(model: ComponentModel, ids: Ids, name: str) -> Ids:
    from discovery.batches import model_limits

    longest, vocabulary = model_limits(model.config)
    if not ids:
        raise ConfigError(f"{name!r} has no tokens")
    if vocabulary is not None and max(ids) >= vocabulary:
        raise ConfigError(f"{name!r}: token {max(ids)} is not in the model's vocabulary of {vocabulary}")
    if longest is not None and len(ids) > longest:
        raise ConfigError(f"{name!r} has {len(ids)} tokens, and the model takes {longest}")
    return ids


def _report(
    config: RunConfig,
    request: Request,
    plan: Plan,
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    inputs: Inputs | None,
) -> dict[str, Any]:
    from discovery.intervention_report import prompt_report, task_report

    if inputs is None:
        assert request.prompt is not None
        return prompt_report(model, transcoders, _tokens(config, model, request.prompt), plan)
    return task_report(
        model,
        transcoders,
        inputs.train.batches,
        inputs.metric,
        plan,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )

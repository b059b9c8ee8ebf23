"""Loading models from directories, refusals that name what is wrong, and the first-batch check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from discovery.architecture import UnsupportedModel
from discovery.architectures import ARCHITECTURES, architecture_of
from discovery.component_model import ComponentModel
from discovery.loading import ModelNotLoaded, NotTheSameModel, check_first_batch, commit_of, load_model, pick_device
from tests.discovery.hub_cache import write_hub_cache
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


def edit_configuration(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_as_it_was(family: str, tmp_path: Path) -> None:
    original = tiny_model(family)
    original.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    batch = tiny_batch()
    assert model.tokenizer is None
    assert check_first_batch(model, batch) < 1e-5
    expected = ComponentModel(original).full_logits(batch)
    assert torch.allclose(model.full_logits(batch), expected, atol=1e-5)
    assert model.config._attn_implementation == ("sdpa" if model.arch.sdpa else "eager")


def test_every_family_has_a_tiny_model() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == set(ARCHITECTURES)


def test_an_unknown_architecture_is_named() -> None:
    config = LlamaConfig()
    config.model_type = "weird"
    with pytest.raises(UnsupportedModel, match="'weird' is not supported"):
        architecture_of(config)


def test_an_unknown_configuration_key_is_named(llama: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'residual_multiplier'"):
        load_model(edit_configuration(llama, residual_multiplier=0.5))


def test_descriptive_and_base_keys_pass(llama: Path) -> None:
    load_model(edit_configuration(llama, torch_dtype="float32", license="mit", id2label={"0": "a"}), device="cpu")


def test_a_value_that_changes_the_computation_is_refused(tmp_path: Path) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention=True"):
        load_model(edit_configuration(tmp_path, use_bidirectional_attention=True))


def test_soft_caps_are_never_dropped(tmp_path: Path) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoaded, match="sdpa"):
        load_model(tmp_path, attention="sdpa")


def test_missing_weights_are_not_made_up(llama: Path) -> None:
    with pytest.raises(ModelNotLoaded, match="missing"):
        load_model(edit_configuration(llama, num_hidden_layers=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_dir": "/nowhere/model"}, "does not exist"),
        ({"dtype": "int4"}, "not one of"),
        ({"device": "abacus"}, "device 'abacus'"),
    ],
)
def test_bad_arguments_are_one_line(llama: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ModelNotLoaded, match=message) as caught:
        load_model(**({"name_or_dir": llama} | arguments))
    assert "\n" not in str(caught.value)


def test_auto_device_exists() -> None:
    torch.empty(1, device=pick_device("auto"))


def test_the_first_batch_check_names_the_layer() -> None:
    model = ComponentModel(tiny_model("llama"))
    batch = tiny_batch()
    check_first_batch(model, batch)
    # A layer that does something the record does not say: its output is scaled behind the engine's back.
    handle = model.blocks[1].layer.register_forward_hook(lambda _module, _args, out: out * 1.1)
    model.forget()
    with pytest.raises(NotTheSameModel, match="first difference: layer 2 attention"):
        check_first_batch(model, batch)
    handle.remove()


def test_a_revision_of_a_hub_name_is_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    checkpoints = {"step1": tiny_model("llama", seed=1), "step2": tiny_model("llama", seed=2)}
    commits = write_hub_cache(tmp_path / "hub", "lab/tiny", checkpoints)
    for revision, original in checkpoints.items():
        loaded = load_model("lab/tiny", device="cpu", revision=revision)
        weights = loaded.hf.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in original.state_dict().items())
        assert commit_of("lab/tiny", revision) == commits[revision]
    for call in (load_model, commit_of):
        with pytest.raises(ModelNotLoaded, match="lab/tiny@step3"):
            call("lab/tiny", revision="step3")
    with pytest.raises(ModelNotLoaded, match="is a directory, which has none"):
        load_model(llama, revision="step1")

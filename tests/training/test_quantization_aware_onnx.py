"""Trainings with the numbers that a graph for ONNX Runtime will hold. What these prevent: a training for other layers than the
graph has in 8 bits, embeddings whose rounding nobody saw, and a checkpoint that goes on with another rounding."""

import shutil

import pytest
import torch
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError
from hf_shrink.loading.onnx_export import export_onnx
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_stored import stored_weights
from hf_shrink.quantization.straight_through import check_exported
from hf_shrink.targets import oriented, projections
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

ONNX = QuantizationConfig(backend="onnx")
SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def aware(family, folder, task="classification", *, config=ONNX, model=None, **words):
    model = model or large(family, task)
    return trainer_for(family, task, folder, model=model, more={"quantization": config}, **words)


def large(family, task, **words) -> PreTrainedModel:
    """Weights that lose something in 8 bits."""
    model = model_for(family, task, **words)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


def as_graph(model, folder):
    """A copy that holds what the graph holds, for a Trainer that knows nothing of rounding."""
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    layers = projections(plain)
    for name, weight in stored_weights(folder / "onnx/model_quantized.onnx").items():
        (oriented(layers[name]) if name in layers else plain.get_submodule(name).weight).data.copy_(weight)
    return plain.eval()


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("llama", "lm"), ("gpt2", "lm"), ("gpt2", "classification")]
)
def test_what_was_trained_and_judged_is_what_the_graph_holds(family, task, tmp_path):
    """Judged in float, a model that rounding ruins would look as good as before."""
    words = {"eval_strategy": "steps", "eval_steps": 3, "learning_rate": 0.02, "per_device_eval_batch_size": 16}
    trainer = aware(family, tmp_path / "run", task, **words)
    start = weights(trainer.model)
    trainer.train()
    export_onnx(trainer.model, tmp_path, ONNX)
    check_exported(trainer.model, tmp_path, trainer.roundings)
    after = weights(trainer.model)
    assert any(isinstance(trainer.model.get_submodule(name), torch.nn.Embedding) for name in trainer.roundings)
    assert not any(torch.equal(start[f"{name}.weight"], after[f"{name}.weight"]) for name in trainer.roundings)
    judged = [entry["eval_loss"] for entry in history(trainer) if "eval_loss" in entry][-1]
    held, whole = (
        trainer_for(family, task, tmp_path / "plain", model=model, per_device_eval_batch_size=16).evaluate()["eval_loss"]
        for model in (as_graph(trainer.model, tmp_path), trainer.model)
    )
    assert judged == pytest.approx(held, abs=1e-7) and abs(judged - whole) > 5e-6


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "lm")])
def test_a_checkpoint_is_a_plain_float_model_and_goes_on_bit_for_bit(family, task, tmp_path):
    whole = aware(family, tmp_path / "whole", task, **SAVING)
    whole.train()
    found = weights(whole.model)
    loaded, info = type(whole.model).from_pretrained(tmp_path / "whole/checkpoint-6", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and same(weights(loaded), found)
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "again/checkpoint-2")
    again = aware(family, tmp_path / "again", task, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again.model), found) and history(again)[:-1] == history(whole)[:-1]
    with pytest.raises(MismatchError, match=r"checkpoint-6 rounds \d+ layers, this run \d+"):
        words = SAVING | {"max_steps": 8}
        aware(family, tmp_path / "again", task, config=QuantizationConfig(bits=8), **words).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "lm")])
def test_micro_batches_add_up(family, task, tmp_path):
    """Each has a gradient of its own for a table that was rounded once for all of them."""
    norms = []
    for batch, parts in ((8, 1), (4, 2)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts, "max_steps": 2}
        model = large(family, task, dropout=False)
        trainer = aware(family, tmp_path / str(parts), task, model=model, **words)
        with gradient_norms(trainer) as found:
            trainer.train()
        norms.append(found)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_ranges_by_calibration_change_nothing_of_the_training(tmp_path):
    """They are of activations, which training does not round."""
    found = []
    for mode in ("dynamic", "static"):
        trainer = aware("bert", tmp_path / mode, config=QuantizationConfig(backend="onnx", mode=mode), max_steps=3)
        trainer.train()
        found.append(weights(trainer.model))
    assert same(*found) and not stored_bits(trainer.model)
    batch = {name: torch.tensor([trainer.train_dataset[0][name]]) for name in ("input_ids", "attention_mask")}
    export_onnx(trainer.model, tmp_path, QuantizationConfig(backend="onnx", mode="static"), calibration=[batch])
    check_exported(trainer.model, tmp_path, trainer.roundings)


def test_in_16_bits_the_float_weights_learn(tmp_path):
    """The forward pass that 16 bits leave behind must not come into the graph, nor go from the model."""
    trainer = aware("bert", tmp_path / "run", bf16=True, max_steps=3)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    export_onnx(trainer.model, tmp_path, ONNX)
    check_exported(trainer.model, tmp_path, trainer.roundings)
    assert "_original_forward" in vars(trainer.model)

"""Trainings with weights as they will be stored. What these prevent: a best checkpoint chosen by weights that nobody will use,
float weights lost in a checkpoint, and zeros that grow back."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.quantization import straight_through
from hf_shrink.quantization.bitsandbytes import restored
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.quantize import quantize
from hf_shrink.quantization.straight_through import check_stored
from hf_shrink.targets import oriented
from hf_shrink.training.callbacks import HeldZeros
from tests.tiny import tiny_inputs
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

EIGHT, NF4 = QuantizationConfig(bits=8), QuantizationConfig(bits=4)
SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def aware(family, folder, config=NF4, *, task="classification", model=None, more=None, **words):
    model = model or model_for(family, task, hidden=64, ffn=128)
    return trainer_for(family, task, folder, model=model, more={"quantization": config, **(more or {})}, **words)


@torch.no_grad()
def loss_of(model, trainer):
    """The mean over the evaluation rows, without a Trainer's part in it."""
    keep = ["input_ids", "attention_mask", "labels"]
    rows = [{key: row[key] for key in keep if key in row} for row in trainer.eval_dataset]
    batch = next(iter(DataLoader(rows, batch_size=len(rows), collate_fn=trainer.data_collator)))
    return float(model.eval()(**batch).loss)


@pytest.mark.parametrize(
    ("family", "task", "config"),
    [
        ("bert", "classification", EIGHT),
        ("bert", "classification", NF4),
        ("llama", "lm", NF4),
        ("gpt2", "classification", EIGHT),
    ],
)
def test_what_was_trained_and_judged_is_what_is_stored(family, task, config, tmp_path):
    """Judged in float, a model that rounding ruins would look as good as before."""
    trainer = aware(
        family,
        tmp_path,
        config,
        task=task,
        eval_strategy="steps",
        eval_steps=3,
        learning_rate=0.02,
        per_device_eval_batch_size=16,
    )
    start = weights(trainer.model)
    trainer.train()
    small = quantize(trainer.model, config)
    check_stored(trainer.model, small, trainer.roundings)
    names = [f"{name}.weight" for name in trainer.roundings]
    after = weights(trainer.model)
    assert names and not any(torch.equal(start[name], after[name]) for name in names)
    judged = [entry["eval_loss"] for entry in history(trainer) if "eval_loss" in entry][-1]
    whole, stored = loss_of(trainer.model, trainer), loss_of(small, trainer)
    apart = 1e-3 if config is EIGHT else 1e-6  # its kernels round what they multiply as well
    assert judged == pytest.approx(stored, abs=apart) and trainer.evaluate()["eval_loss"] == pytest.approx(judged, abs=1e-6)
    assert config is EIGHT or abs(judged - whole) > 1e-5
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_checkpoint_is_a_plain_float_model_and_goes_on_bit_for_bit(family, tmp_path):
    """Names of a reparametrisation would load as random layers, rounded weights could not learn any more."""
    whole = aware(family, tmp_path / "whole", **SAVING)
    whole.train()
    assert not any("forward" in vars(module) for module in whole.model.modules())
    last = tmp_path / "whole" / "checkpoint-6"
    stored = load_file(last / "model.safetensors")
    found = weights(whole.model)
    assert stored.keys() <= found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in stored.items())
    loaded, info = type(whole.model).from_pretrained(last, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and same(weights(loaded), found)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = aware(family, tmp_path / "again", **SAVING)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again.model), found) and history(again)[:-1] == history(whole)[:-1]


@pytest.mark.parametrize(("first", "second"), [(NF4, None), (None, NF4), (NF4, EIGHT)])
def test_a_checkpoint_of_another_rounding_is_refused(first, second, tmp_path):
    """Weights that learnt around one rounding are wrong under another, and nobody would hear of it."""
    aware("bert", tmp_path, first, max_steps=2, **SAVING).train()
    assert (tmp_path / "checkpoint-2/quantization_aware.json").exists() == (first is not None)
    with pytest.raises(MismatchError, match=r"checkpoint-2 rounds \d+ layers, this run \d+"):
        aware("bert", tmp_path, second, max_steps=4, **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("family", "task", "words"),
    [
        ("bert", "classification", {"bits": 4, "embeddings": "int8", "compute_dtype": "bfloat16"}),
        ("llama", "lm", {"bits": 4, "embeddings": "int8"}),
        ("llama", "lm", {"bits": 4, "embeddings": "bfloat16"}),
    ],
)
def test_embeddings_and_products_in_16_bits_are_trained_judged_and_stored_alike(family, task, words, tmp_path):
    """The output layer of a language model that is tied to them is as large as they are."""
    config, tied = QuantizationConfig(**words), {"tie_word_embeddings": True} if task == "lm" else {}
    model = model_for(family, task, hidden=64, ffn=128, **tied)
    trainer = aware(family, tmp_path, config, task=task, model=model, learning_rate=0.02, per_device_eval_batch_size=16)
    start = weights(trainer.model)
    trainer.train()
    small = quantize(trainer.model, config)
    check_stored(trainer.model, small, trainer.roundings)
    judged, whole, stored = trainer.evaluate()["eval_loss"], loss_of(trainer.model, trainer), loss_of(small, trainer)
    assert judged == pytest.approx(stored, abs=1e-6) and abs(judged - whole) > 1e-5
    after = weights(trainer.model)
    assert not any(torch.equal(start[f"{name}.weight"], after[f"{name}.weight"]) for name in trainer.roundings)
    save(small, tmp_path / "small")
    verify(tmp_path / "small", small, tiny_inputs(family))


def test_distillation_over_the_vocabulary_sees_the_rounded_output_layer(tmp_path):
    """The fused product would read the float table instead."""
    teacher, config = model_for("gpt2", "lm", seed=5, hidden=64, ffn=128), QuantizationConfig(bits=4, embeddings="int8")
    terms = {"teacher": teacher, "distillation": DistillationConfig(alpha=0.5, losses=(LossTerm(loss="forward_kl"),))}
    found = []
    for given in (config, NF4):
        trainer = aware("gpt2", tmp_path, given, task="lm", more=terms, max_steps=2)
        trainer.train()
        found.append(trainer._heads)
    assert found[0] is None and found[1] is not None


def test_micro_batches_add_up(tmp_path):
    norms = []
    for batch, parts in ((8, 1), (4, 2)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts, "max_steps": 2}
        model = model_for("bert", "classification", dropout=False, hidden=64, ffn=128)
        trainer = aware("bert", tmp_path / str(parts), model=model, **words)
        with gradient_norms(trainer) as found:
            trainer.train()
        norms.append(found)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_each_weight_is_rounded_once_a_step_and_once_an_evaluation(tmp_path, monkeypatch):
    """4 bits cost as much as the product itself: micro-batches and batches of an evaluation would pay for it each time."""
    rounded = []
    real = straight_through.as_stored
    monkeypatch.setattr(straight_through, "as_stored", lambda *args: rounded.append(1) or real(*args))
    trainer = aware("bert", tmp_path, max_steps=2, gradient_accumulation_steps=3, activation_checkpointing=True)
    trainer.train()
    assert len(rounded) == 2 * len(trainer.roundings)
    trainer.evaluate()
    assert len(rounded) == 3 * len(trainer.roundings) and len(trainer.get_eval_dataloader()) > 1


def test_layers_that_run_again_in_backward_are_rounded_again(tmp_path):
    """Activation checkpointing runs them after the loss is there: in float, the gradients would be of another model."""
    found = []
    for again in (False, True):
        trainer = aware("bert", tmp_path / str(again), max_steps=3, activation_checkpointing=again, seed=3)
        trainer.train()
        found.append(weights(trainer.model))
    assert same(*found)


def test_in_16_bits_the_float_weights_learn(tmp_path):
    trainer = aware("bert", tmp_path, bf16=True, max_steps=3)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    small = quantize(trainer.model, NF4)
    check_stored(trainer.model, small, trainer.roundings)
    save(small, tmp_path / "small")
    verify(tmp_path / "small", small, tiny_inputs("bert"))  # the forward pass that 16 bits leave behind is in no file


@pytest.mark.parametrize("config", [EIGHT, NF4], ids=["int8", "nf4"])
def test_masked_weights_are_zero_where_they_are_stored(config, tmp_path):
    mask = PruningConfig(sparsity=0.5, begin_step=1, end_step=4)
    trainer = aware("bert", tmp_path, config, more={"pruning": mask})
    trainer.train()
    small = quantize(trainer.model, config)
    for name in trainer.roundings:
        zero = oriented(trainer.model.get_submodule(name)) == 0
        assert zero.float().mean() == pytest.approx(0.5, abs=1e-3)
        assert not restored(small.get_submodule(name))[zero].any()


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_zeros_that_are_there_stay_whatever_the_optimizer(optim, tmp_path):
    """A student pruned before would grow dense again, at the same file size, under the sparsity on its card."""
    model = model_for("gpt2", "classification", hidden=64, ffn=128)
    held = model.transformer.h[0].mlp.c_fc.weight
    held.data[::2] = 0
    kept = held.detach().clone() != 0
    other = model.transformer.h[1].mlp.c_fc.weight.detach().clone()
    words = {"optim": optim, "weight_decay": 0.1, "learning_rate": 0.01}
    aware("gpt2", tmp_path, model=model, more={"callbacks": [HeldZeros(model)]}, **words).train()
    assert torch.equal(held != 0, kept) and not torch.equal(model.transformer.h[1].mlp.c_fc.weight, other)


def test_what_cannot_be_right_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="a model with adapters leaves them"):
        aware("bert", tmp_path, more={"peft_config": LoraConfig(target_modules=["query"])})
    with pytest.raises(RecipeError, match="torch_compile: not with weights rounded"):
        aware("bert", tmp_path, torch_compile=True)
    with pytest.raises(RecipeError, match=r"pruning\.0: ffn leave the model after it was trained"):
        aware("bert", tmp_path, more={"pruning": PruningConfig(structure="ffn", sparsity=0.5)})


def test_a_model_made_anew_is_rounded_as_well(tmp_path):
    """``model_init`` replaces the model whose layers were looked at."""
    trainer = aware("bert", tmp_path, max_steps=1, **{**SAVING, "save_steps": 1})
    trainer.model_init = lambda: model_for("bert", "classification", hidden=64, ffn=128, layers=3)
    trainer.train()
    record = json.loads((tmp_path / "checkpoint-1/quantization_aware.json").read_text())
    assert len(record) == len(trainer.roundings) == 18 and record["bert.encoder.layer.2.output.dense"]["bits"] == 4

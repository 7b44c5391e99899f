"""Adapters: trained alone, saved alone, resumed bit for bit."""

import shutil

import pytest
from peft import LoraConfig, get_peft_model

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import RecipeError
from tests.training.runs import gradient_norms, model_for, same, trainer_for, weights

SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}


def lora():
    return LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")


def adapted(folder, **words):
    more = {
        "peft_config": lora(),
        "teacher": model_for("bert", "classification", seed=5),
        "distillation": DistillationConfig(alpha=0.5, losses=(LossTerm(),)),
    }
    return trainer_for("bert", "classification", folder, more=more, **SAVING | words)


def test_adapters_learn_and_the_base_stays(tmp_path):
    """Forgotten, the config trains the whole model; applied wrongly, nothing."""
    trainer = adapted(tmp_path)
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, value in weights(trainer.model).items() if not value.equal(before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    assert (tmp_path / "checkpoint-6" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "checkpoint-6" / "model.safetensors").exists()


def test_a_resumed_run_is_equal_bit_for_bit(tmp_path):
    """Adapters left at their start resume with exit code 0."""
    whole = adapted(tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = adapted(tmp_path / "again")
    again.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(again.model))


def test_accumulation_is_right_through_the_wrapper(tmp_path):
    """The wrapper hides the signature of the model it wraps."""
    norms = []
    for batch, steps in ((8, 1), (2, 4)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer = trainer_for("bert", "classification", tmp_path, more={"peft_config": lora()}, dropout=False, **words)
        with gradient_norms(trainer) as seen:
            trainer.train()
        norms.append(seen)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_model_from_model_init_gets_adapters_too(tmp_path):
    """Otherwise every train() starts with the plain model."""
    from hf_shrink.training.trainer import ShrinkTrainer
    from tests.tiny import colour_tokens, tiny_tokenizer
    from tests.training.runs import arguments

    trainer = ShrinkTrainer(
        model_init=lambda: model_for("bert", "classification"),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=colour_tokens(8),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    trainer.train()
    assert hasattr(trainer.model, "peft_config")


def test_adapters_on_adapters_are_refused(tmp_path):
    """The second pair would wrap the first and be saved under names nobody loads."""
    model = get_peft_model(model_for("bert", "classification"), lora())
    with pytest.raises(RecipeError, match="adapters already"):
        trainer_for("bert", "classification", tmp_path, model=model, more={"peft_config": lora()})

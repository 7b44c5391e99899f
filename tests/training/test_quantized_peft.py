"""LoRA on weights that were quantised while loading, with evaluations in between: bitsandbytes' CPU path may repack them."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_shrink import (
    DistillationConfig,
    LossTerm,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    ShrinkTrainer,
    quantize,
)
from hf_shrink.errors import IntegrityError
from tests.tiny import tiny_classifier, tiny_inputs

STORED = {
    "int8": QuantizationConfig(bits=8),
    "int8-0": QuantizationConfig(bits=8, threshold=0.0),
    "nf4": QuantizationConfig(bits=4),
    "nf4-single": QuantizationConfig(bits=4, double_quant=False),
    "fp4": QuantizationConfig(bits=4, quant_type="fp4"),
    "fp4-single": QuantizationConfig(bits=4, quant_type="fp4", double_quant=False),
}
TARGETS = {
    "bert": ["query", "output.dense"],
    "roberta": ["query", "output.dense"],
    "distilbert": ["q_lin", "lin2"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "down_proj"],
    "vit": ["q_proj", "fc2"],
}


FORMATS = [*((ShrinkTrainer, name) for name in STORED), (Trainer, "int8"), (Trainer, "nf4")]
QUICK = {("bert", ShrinkTrainer, "int8"), ("gpt2", ShrinkTrainer, "nf4"), ("llama", Trainer, "nf4")}


@pytest.mark.parametrize(
    ("family", "kind", "stored"),
    [
        pytest.param(family, *how, marks=[] if (family, *how) in QUICK else [pytest.mark.slow])
        for family in TARGETS
        for how in FORMATS
    ],
)
def test_every_adapter_learns_and_nothing_stored_changes(family, stored, kind, tmp_path):
    """Gradients lost in silence after the first evaluation, or weights that are saved corrupt after it."""
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    tiny_classifier(family, hidden=64, ffn=256).save_pretrained(tmp_path / "dense")
    asked = ShrinkConfig(pruning=[PruningConfig(structure="ffn", sparsity=0.5)], quantization=STORED[stored])
    base = auto.from_pretrained(tmp_path / "dense", quantization_config=asked)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = get_peft_model(base, LoraConfig(target_modules=TARGETS[family], r=2))
    start = copy.deepcopy({name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad})
    assert len(start) >= 8
    inputs = tiny_inputs(family, rows=4)
    rows = [{**{key: value[i] for key, value in inputs.items()}, "labels": i % 3} for i in range(4)]
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1, use_cpu=True,
        learning_rate=0.05, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    kind(model=adapted, args=args, train_dataset=rows, eval_dataset=rows).train()
    still = [name for name, p in adapted.named_parameters() if name in start and torch.equal(p, start[name])]
    assert not still, "adapters without a gradient"
    after = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.get_base_model().state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def plain(tmp_path, bits: int):
    """What plain ``from_pretrained`` makes of a stock folder; nothing of ours sees it."""
    quantize(tiny_classifier(hidden=64, ffn=128), QuantizationConfig(bits=bits)).save_pretrained(tmp_path / str(bits))
    return AutoModelForSequenceClassification.from_pretrained(tmp_path / str(bits))


def trainer(model, tmp_path, **more) -> ShrinkTrainer:
    rows = [{"input_ids": [2, 5, 8, 3], "labels": 1}] * 4
    words = {"max_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return ShrinkTrainer(args=TrainingArguments(str(tmp_path / "run"), **words), train_dataset=rows, **model, **more)


def test_the_avx512_path_is_off_for_whoever_is_trained_or_teaches(tmp_path, monkeypatch):
    """After one evaluation on such a CPU the adapters of a plainly loaded folder learnt nothing, without an error."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    teacher, student = plain(tmp_path, 4), plain(tmp_path, 4)
    lora, made = LoraConfig(target_modules=["query"], r=2), []

    def init():
        made.append(plain(tmp_path, 4))
        return made[-1]

    assert on(student) == on(teacher) == 12
    config = DistillationConfig(losses=[LossTerm(loss="forward_kl")])
    trainer({"model": student}, tmp_path, teacher=teacher, distillation=config, peft_config=lora)
    assert on(student) == on(teacher) == 0
    again = trainer({"model_init": init}, tmp_path, peft_config=lora)
    again.train()
    assert made and not any(map(on, made))
    made[-1].bert.encoder.layer[0].output.dense.weight.quant_state.packing_format_for_cpu = True  # evaluated before
    with pytest.raises(IntegrityError, match=r"evaluation has repacked 4-bit .*layer\.0\.output\.dense"):
        trainer({"model": again.model}, tmp_path)


def on(model) -> int:
    return sum(bool(getattr(layer, "support_avx512bf16_for_cpu", False)) for layer in model.modules())


def test_the_warning_of_every_product_comes_once(tmp_path, caplog):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    model = plain(tmp_path, 8)
    for known in list(logger.filters):
        logger.removeFilter(known)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=2))
    with caplog.at_level(logging.WARNING):
        trainer({"model": adapted}, tmp_path).evaluate([{"input_ids": [2, 5, 8, 3], "labels": 1}] * 16)
    assert sum("inputs will be cast" in record.getMessage() for record in caplog.records) == 1

"""LoRA on weights that were quantised while loading, with evaluations in between: bitsandbytes' CPU path may repack them."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, ShrinkTrainer
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

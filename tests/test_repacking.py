"""bitsandbytes' path for CPUs with AVX512-BF16: what it has repacked computes, and is wrong to save, to read and to train."""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_shrink import DistillationConfig, LossTerm, QuantizationConfig, ShrinkTrainer, dequantize, quantize, save
from hf_shrink.distillation.cache_writing import weights_hash
from hf_shrink.errors import IntegrityError
from hf_shrink.loading.verify import verify
from hf_shrink.quantization.bitsandbytes import restored
from hf_shrink.repacking import disable_cpu_repacking, repacked
from hf_shrink.training.merging import merged
from hf_shrink.training.recovery import with_adapters, with_correction
from tests.tiny import tiny_classifier

IDS = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])
FOUR = {
    "nf4": QuantizationConfig(bits=4),
    "nf4-single": QuantizationConfig(bits=4, double_quant=False),
    "fp4": QuantizationConfig(bits=4, quant_type="fp4"),
}
KL = DistillationConfig(losses=[LossTerm(loss="forward_kl")])
SPOILT = "bert.encoder.layer.0.output.dense"
real_path = pytest.mark.skipif(not has_avx512bf16(), reason="the path is for CPUs with AVX512-BF16")


def wide() -> Any:
    return tiny_classifier(hidden=64, ffn=128)


def spoilt() -> Any:
    """As an evaluation on such a CPU marks it; where there is none, the mark has to do."""
    small = quantize(wide(), FOUR["nf4"])
    small.get_submodule(SPOILT).weight.quant_state.packing_format_for_cpu = True
    return small


USES = {
    "save": lambda model, folder: save(model, folder / "again"),
    "verify": lambda model, folder: verify(folder / "small", model, {"input_ids": IDS}),
    "dequantize": lambda model, folder: dequantize(model),
    "recovery": lambda model, folder: with_correction(wide(), model, rank=2),
    "adapters": lambda model, folder: with_adapters(model, rank=2),
    "ShrinkTrainer": lambda model, folder: trainer(model, folder),
    "teacher": lambda model, folder: trainer(wide(), folder, teacher=model, distillation=KL),
    "cache": lambda model, folder: weights_hash([model]),
    "merge": lambda model, folder: merged(get_peft_model(model, LoraConfig(r=2, target_modules=["query"])), {}),
}


def trainer(model: Any, folder: Path, **more: Any) -> ShrinkTrainer:
    arguments = TrainingArguments(str(folder / "run"), report_to="none", use_cpu=True)
    return ShrinkTrainer(get_peft_model(model, LoraConfig(r=2, target_modules=["query"])), arguments, **more)


def test_it_is_off_in_whatever_is_quantised_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu  # the switch is where it was
    layers = [m for m in quantize(wide(), FOUR["nf4"]).modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 12 and not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("use", USES)
def test_weights_that_were_repacked_are_refused_by_name(use, tmp_path: Path):
    """Read back, they are off by more than their own size; saved and trained, they are as wrong, without a word."""
    save(quantize(wide(), FOUR["nf4"]), tmp_path / "small")
    says = rf"evaluation has repacked 4-bit weights for the CPU \(layers: 1, first \S*{SPOILT}\);(.|\n)*Load the model again"
    with pytest.raises(IntegrityError, match=says):
        USES[use](spoilt(), tmp_path)
    assert not (tmp_path / "again").exists()


def test_one_layer_alone_is_refused_too():
    """Whoever asks for a weight gets it through here: reports, merging, training for the stored numbers."""
    layer = spoilt().get_submodule(SPOILT)
    with pytest.raises(IntegrityError, match=r"4-bit weights of 64 x 128: an evaluation has repacked .* \(one layer"):
        restored(layer)
    del layer.weight.quant_state.packing_format_for_cpu
    assert restored(layer).shape == (64, 128)


@real_path
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("packed_back", [False, True])
def test_a_real_evaluation_of_what_plain_transformers_loaded_is_told(use, packed_back, tmp_path: Path):
    """The mark above is bitsandbytes' own: were it renamed, every refusal would go silent. ``state_dict`` packs back, badly."""
    save(quantize(wide(), FOUR["nf4"]), tmp_path / "small")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    assert repacked(model) == []
    with torch.no_grad():
        model(IDS)
    if packed_back:
        model.state_dict()
    assert len(repacked(model)) == 12
    with pytest.raises(IntegrityError, match=r"has repacked 4-bit weights for the CPU \(layers: 12, first"):
        USES[use](model, tmp_path)


@real_path
@pytest.mark.parametrize("how", FOUR)
def test_after_an_evaluation_ours_saves_the_same_file_and_trains_the_same_gradients(how, tmp_path: Path):
    """Without that, on such a CPU: eight of twelve adapters without a gradient, and a file that is off by its own size."""
    small = quantize(wide(), FOUR[how])
    save(small, tmp_path / "before")
    gradients = []
    for folder in ("before", "after"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "before")
        disable_cpu_repacking(model)
        if folder == "after":
            with torch.no_grad():
                small.eval()(IDS), model.eval()(IDS)
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        adapted.eval()(IDS, labels=torch.tensor([0, 2])).loss.backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) >= 24 and all(g is not None and g.abs().max() > 0 for g in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    save(small, tmp_path / "after")
    one, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("before", "after"))
    assert one == other

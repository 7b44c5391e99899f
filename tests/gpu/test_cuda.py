"""On a CUDA device: kernels by the format's definition; pruning, training and loading against the same on the CPU."""

import copy
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_shrink import (
    DistillationConfig,
    LossTerm,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    ShrinkTrainer,
    prune,
    quantize,
)
from hf_shrink.distillation.divergences import forward_kl
from hf_shrink.distillation.fused import LastProduct, fused_sum
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.memory import memory
from hf_shrink.measurement.size import weight_bytes
from hf_shrink.quantization.bitsandbytes import restored
from tests.tiny import colour_tokens, tiny_classifier, tiny_inputs, tiny_tokenizer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
WIDTHS = range(64, 1025, 64)
FORMATS = {
    "int8": QuantizationConfig(bits=8, dtype="float16"),
    "nf4, fp16": QuantizationConfig(bits=4, dtype="float16", compute_dtype="float16"),
    "nf4, bf16": QuantizationConfig(bits=4, dtype="bfloat16", compute_dtype="bfloat16"),
    "fp4, fp16": QuantizationConfig(bits=4, quant_type="fp4", dtype="float16", compute_dtype="float16"),
}


@pytest.fixture(autouse=True)
def device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


def there(model: Any) -> Any:
    return copy.deepcopy(model).to(DEVICE)


def sent(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(DEVICE) for name, value in inputs.items()}


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_the_kernels_multiply_by_the_weights_that_are_stored(kind, compute):
    """A wrong kernel gives plausible nonsense for some widths only."""
    wrong = {}
    for width in WIDTHS:
        torch.manual_seed(width)
        weight, inputs = torch.randn(64, width), torch.randn(8, width, device=DEVICE, dtype=compute)
        layer: Any
        if kind == "int8":
            layer = bnb.nn.Linear8bitLt(width, 64, bias=False, has_fp16_weights=False, threshold=0.0)
            layer.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False)
        else:
            layer = bnb.nn.Linear4bit(width, 64, bias=False, quant_type=kind, compute_dtype=compute)
            layer.weight = bnb.nn.Params4bit(weight.to(compute), requires_grad=False, quant_type=kind)
        layer = layer.to(DEVICE).eval()
        with torch.no_grad():
            product = layer(inputs).float()
        stored = restored(layer).float().to(DEVICE)
        expected = inputs.float() @ stored.T
        error = float((product - expected).norm() / expected.norm())
        off = float((stored.cpu() - weight).norm() / weight.norm())
        if error > 0.02 or off > (0.02 if kind == "int8" else 0.2):
            wrong[width] = (error, off)
    assert not wrong


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_loads_on_the_device_to_what_was_quantised_there(name, tmp_path):
    """Other numbers after loading than before saving, or a head in few bits: no error in either case."""
    model = quantize(there(tiny_classifier(hidden=64, ffn=128)), FORMATS[name])
    assert type(model.classifier) is nn.Linear
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map={"": 0}).eval()
    inputs = sent(tiny_inputs("bert"))
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, again(**inputs).logits)


def test_pruning_and_quantising_while_loading_reads_the_same_on_both_devices(tmp_path):
    """Masks of scores that another device rounds in another way."""
    tiny_classifier(hidden=64, ffn=128).save_pretrained(tmp_path)
    config = ShrinkConfig(pruning=[PruningConfig(structure="ffn", sparsity=0.5)], quantization=QuantizationConfig(bits=8))
    cpu, gpu = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=config, device_map=where)
        for where in ("cpu", {"": 0})
    )
    for (name, expected), found in zip(cpu.state_dict().items(), gpu.state_dict().values(), strict=True):
        assert torch.equal(expected, found.cpu()), name


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda", "sparsegpt"])
def test_pruning_on_calibration_data_takes_the_same_weights(criterion):
    data = [tiny_inputs("bert", rows=8, seed=seed) | {"labels": torch.arange(8) % 3} for seed in range(3)]
    entry = PruningConfig(criterion=criterion, sparsity=0.5, when="before")
    expected = prune(tiny_classifier(), entry, calibration=data)
    found = prune(there(tiny_classifier()), entry, calibration=[sent(batch) for batch in data])
    for (name, ours), theirs in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert theirs.device.type == torch.device(DEVICE).type
        assert float(((ours == 0) == (theirs.cpu() == 0)).float().mean()) > 0.98, name


def test_a_training_with_teacher_and_pruning_ends_where_it_does_on_the_cpu(tmp_path):
    """A teacher that stays behind, masks on another device, or sums that are not float32."""
    ends = []
    for on_cpu in (True, False):
        args = TrainingArguments(
            output_dir=str(tmp_path / str(on_cpu)),
            max_steps=6,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            optim="sgd",
            use_cpu=on_cpu,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        student = tiny_classifier(seed=1)
        student.config.hidden_dropout_prob = student.config.attention_probs_dropout_prob = 0.0
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer = ShrinkTrainer(
            student,
            args,
            train_dataset=colour_tokens(48),
            processing_class=tiny_tokenizer(),
            teacher=tiny_classifier(seed=2),
            distillation=DistillationConfig(alpha=0.5, losses=[LossTerm(loss="forward_kl", temperature=2.0)]),
            pruning=[PruningConfig(structure="ffn", sparsity=0.5, end_step=4)],
        )
        trainer.train()
        ends.append(trainer.shrink().to("cpu").state_dict())
    cpu, gpu = ends
    for name, value in cpu.items():
        torch.testing.assert_close(gpu[name], value, atol=1e-3, rtol=1e-3, msg=name)


def test_the_fused_loss_equals_the_one_over_all_logits():
    """TF32 products, or sums in half precision, only make gradients a little wrong."""
    torch.manual_seed(0)
    hidden, theirs = torch.randn(300, 32), torch.randn(300, 48)
    head, other = nn.Linear(32, 500), nn.Linear(48, 500)
    found = []
    for where in ("cpu", DEVICE):
        own, own_head = hidden.to(where).requires_grad_(), copy.deepcopy(head).to(where)
        teacher_head = copy.deepcopy(other).to(where)

        def score(student: Tensor, teacher: Tensor, rows: slice) -> Tensor:
            return forward_kl(student, teacher, temperature=2.0).sum()[None]

        factors = torch.full((1,), 1 / 300, device=where)
        total, _ = fused_sum(
            own, own_head, LastProduct(theirs.to(where), teacher_head.weight, teacher_head.bias), score, factors, chunk=64
        )
        total.backward()
        found.append([total.detach().cpu(), own.grad.cpu(), own_head.weight.grad.cpu()])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_peak_memory_is_that_of_the_device(tmp_path):
    """bitsandbytes puts its weights on the GPU, where the process's own memory does not count them."""
    quantize(tiny_classifier(hidden=256, ffn=1024), FORMATS["int8"]).save_pretrained(tmp_path)
    [found] = memory(tmp_path, MeasurementConfig(batch_sizes=(2,), length=8), threads=1)
    assert found.setting.startswith("cuda, ") and "allocated by torch" in found.setting
    assert 0.9 * weight_bytes(tmp_path) < found.value < 50 * weight_bytes(tmp_path)

"""Adapters that start as the error of quantisation: the best of their rank, saved and loaded, and trainable from there."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import TrainingArguments

from hf_shrink import DistillationConfig, LossTerm, QuantizationConfig, ShrinkTrainer
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.loading.save import save
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.low_rank import input_moments, low_rank
from hf_shrink.quantization.quantize import quantize
from hf_shrink.repacking import disable_cpu_repacking
from hf_shrink.training.recovery import with_correction
from tests.tiny import tiny_causal_lm

FOUR, EIGHT = QuantizationConfig(bits=4), QuantizationConfig(bits=8)


def wide(family="llama"):
    model = tiny_causal_lm(family, hidden=64, ffn=128).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


def batches(seed, rows=16, length=12):
    ids = torch.randint(4, 20, (rows, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)]


def test_it_is_the_truncated_svd_weighted_by_the_inputs():
    """The second implementation takes a root of the moment and its inverse: arXiv:2410.06040, theorem 1."""
    draw = torch.Generator().manual_seed(0)
    error, x = torch.randn(24, 16, generator=draw), torch.randn(200, 16, generator=draw) * torch.logspace(0, 2, 16)
    moment = x.T @ x
    values, vectors = torch.linalg.eigh(moment.double())
    root, back = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    for rank in (1, 5, 16):
        for at, inverse, given in ((root, back, moment), (torch.eye(16).double(), torch.eye(16).double(), None)):
            u, s, v = torch.linalg.svd(error.double() @ at, full_matrices=False)
            expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ inverse
            a, b = low_rank(error, rank, given)
            assert a.shape == (rank, 16) and b.shape == (24, rank)
            torch.testing.assert_close((b @ a).double(), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_moments_count_what_is_no_padding(monkeypatch: pytest.MonkeyPatch):
    """And are the same where the layers do not fit into memory together."""
    model, batch = wide(), batches(0)[0]
    batch["attention_mask"][:, 7:] = 0
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    seen = {}
    hook = model.get_submodule(names[0]).register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    found = dict(input_moments(model, names, [batch]))
    hook.remove()
    x = seen["x"][:, :7].flatten(0, 1)
    torch.testing.assert_close(found[names[0]], x.T @ x / len(x))
    monkeypatch.setattr("hf_shrink.quantization.low_rank._ROOM", 1)
    assert all(torch.equal(moment, found[name]) for name, moment in input_moments(model, names, [batch]))


@pytest.mark.parametrize(("family", "config"), [("llama", FOUR), ("gpt2", FOUR), ("gpt2", EIGHT)])
def test_more_rank_gives_more_back_up_to_everything(family, config):
    """A transposed or wrongly scaled adapter would make the answers worse, and rank 64 would not restore the model."""
    model, unseen = wide(family), batches(1)
    before = copy.deepcopy(model.state_dict())
    reference = Divergence(model, unseen)
    losses = [reference.of(quantize(model, config))]
    losses += [reference.of(with_correction(model, quantize(model, config), rank=r, calibration=batches(0))) for r in (8, 999)]
    assert losses[1] < losses[0] and losses[2] < losses[0] * (0.01 if config is FOUR else 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weighing_by_the_inputs_is_worth_it():
    model, reference = wide(), Divergence(wide(), batches(1))
    plain = reference.of(with_correction(model, quantize(model, FOUR), rank=8))
    assert reference.of(with_correction(model, quantize(model, FOUR), rank=8, calibration=batches(0, rows=64))) < plain


def test_the_adapters_load_with_peft_on_the_saved_base(tmp_path):
    model = wide()
    small = quantize(model, FOUR)
    save(small, tmp_path / "base")
    adapted = with_correction(model, small, rank=4, calibration=batches(0))
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    disable_cpu_repacking(again)
    with torch.no_grad():
        ids = batches(1)[0]["input_ids"]
        assert torch.equal(again(ids).logits, adapted(ids).logits)


def test_the_trainer_goes_on_from_there(tmp_path, caplog):
    """The whole of it: quantise, give back, distil from the dense model; what is stored stays as it is."""
    model = wide()
    adapted = with_correction(model, quantize(model, FOUR), rank=4, calibration=batches(0))
    reference = Divergence(model, batches(1))
    before = reference.of(adapted)
    rows = [{"input_ids": ids, "labels": ids} for batch in batches(2, rows=32) for ids in batch["input_ids"]]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=8, learning_rate=2e-3, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    distillation = DistillationConfig(alpha=1.0, losses=[LossTerm(loss="forward_kl")])
    ShrinkTrainer(adapted, arguments, train_dataset=rows, teacher=Teacher(model), distillation=distillation).train()
    assert reference.of(adapted) < before and "swapped" not in caplog.text  # with its adapters it has more than the teacher


def test_what_cannot_be_corrected_is_refused():
    model = wide()
    with pytest.raises(MismatchError, match="no layer of the model is quantised"):
        with_correction(model, copy.deepcopy(model), rank=4)
    with pytest.raises(RecipeError, match="rank 0; give 1 or more"):
        with_correction(model, quantize(model, FOUR), rank=0)
    with pytest.raises(RecipeError, match="without batches"):
        with_correction(model, quantize(model, FOUR), rank=4, calibration=[])
    with pytest.raises(MismatchError, match="has no such layer"):
        with_correction(wide("gpt2"), quantize(model, FOUR), rank=4)

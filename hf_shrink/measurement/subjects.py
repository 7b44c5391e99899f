"""What is measured: models in memory, folders, or the predictions of something that is no model at all."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from hf_shrink.adapters import attach, holds_adapter
from hf_shrink.errors import MismatchError, ResourceError, ShrinkError
from hf_shrink.families import embedding_parameters
from hf_shrink.finite import check_finite
from hf_shrink.graph_folders import holds_graph, refuse_graphs
from hf_shrink.headers import check_record, check_storage
from hf_shrink.lines import first_line
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.values import Measurement
from hf_shrink.onnx_model import OnnxModel
from hf_shrink.quiet import quiet_loading
from hf_shrink.tasks import TASKS, task_of

Rewritten: TypeAlias = Callable[[str | None, Any], Any]
"""Kind of disturbance, or None, and a tokenizer -> tokenised rows with ``labels``."""


@dataclass(frozen=True)
class Subject:
    """One thing to measure; what it lacks is simply not measured.

    Attributes:
        model: a model of transformers with the head of a task, in memory, or a graph in its place.
        folder: where that model is saved; bytes on disk and memory need it.
        predictions: its answers on the evaluation data; quality needs them.
        order: class ``i`` of the data is class ``order[i]`` of the model; None where both agree.
        tokenizer: the model's own, where the evaluation data are tokenised for others; None takes the bench's.
        spent: what its training took, noted down while it trained.
        missing: weights that the folder lacks and transformers made up: size and speed hold, quality would mean nothing.
    """

    name: str
    title: str = ""
    did: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    model: Any | None = None
    folder: Path | None = None
    predictions: Answers | None = None
    missing: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    tokenizer: Any | None = None
    spent: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Bench:
    """All subjects of one measurement, so that they can take turns and be compared on the same samples.

    Attributes:
        baseline: index of the subject that the others are set against.
        dataset: tokenised evaluation data, for subjects that bring no predictions.
        tokenizer: pads it; None takes the one in the subject's folder.
        rewritten: the test rows disturbed and tokenised; None where only tokens are known.
        answers: what the subjects said, empty until it is first asked for.
    """

    subjects: tuple[Subject, ...]
    config: MeasurementConfig
    baseline: int = 0
    dataset: Any | None = None
    tokenizer: Any | None = None
    rewritten: Rewritten | None = None
    answers: list[Answers | None] = field(default_factory=list, compare=False, repr=False)


def load(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The model in ``folder`` as any user of transformers or ONNX Runtime would load it, and the names of weights it lacks.

    Its config names the task; a model without a head is taken for a classifier that lacks one.

    Raises:
        MismatchError: transformers cannot load the folder.
        ResourceError: a package is missing.
        NonFiniteError: a weight is NaN or infinite.
    """
    import transformers

    if not folder.is_dir():
        raise MismatchError(f"{folder.name}: not a folder. Give the folder that `save_pretrained` or a run wrote.")
    if holds_graph(folder):
        return OnnxModel.from_pretrained(folder).eval(), ()
    refuse_graphs(folder)
    with explained(f"loading {folder.name}"), quiet_loading():
        check_record(folder.name, folder)
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        check_storage(folder.name, getattr(config, "quantization_config", None), folder)
        named = (config.architectures or [""])[0]
        task = TASKS[task_of(named, config.problem_type) or "text-classification"]
        auto: Any = getattr(transformers, task.auto_class)
        model, found = auto.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        if holds_adapter(folder):
            attach(model, folder)
    check_finite(model, folder.name)
    return model.eval(), tuple(sorted(found["missing_keys"]))


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what torch or transformers raise about a model and its input into one line that says ``where``."""
    try:
        yield
    except ShrinkError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{where}: not enough memory. Use a smaller batch.") from error
    except ImportError as error:
        raise ResourceError(f"{where}: a package is missing: {first_line(error)}") from error
    except (ValueError, RuntimeError, IndexError, KeyError, TypeError, AssertionError, OSError) as error:
        line = first_line(error)
        kind = ResourceError if "alloc" in line else MismatchError
        raise kind(f"{where}: {line}") from error


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no line of log at every 8-bit product; every module leaves in the mode it came in."""
    training = [module for module in model.modules() if module.training]
    chatter = logging.getLogger("bitsandbytes.autograd._functions")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        chatter.setLevel(level)
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return torch.device("cpu") if isinstance(model, OnnxModel) else next(model.parameters()).device


def precision_of(model: nn.Module) -> str:
    """How most of the model's weights outside its embeddings are stored: one of ``PRECISIONS``."""
    if isinstance(model, OnnxModel):
        return model.precision
    embeddings = {id(p) for p in embedding_parameters(model).values()}
    stored: dict[str, int] = {}
    for parameter in model.parameters():
        if id(parameter) not in embeddings:
            kind = _stored_as(parameter)
            stored[kind] = stored.get(kind, 0) + parameter.numel()
    return max(stored, key=lambda kind: stored[kind])


def _stored_as(parameter: nn.Parameter) -> str:
    if getattr(parameter, "quant_state", None) is not None:
        return "4-bit"
    return "8-bit" if parameter.dtype == torch.int8 else str(parameter.dtype).removeprefix("torch.")

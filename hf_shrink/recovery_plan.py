"""The stage of a plan that gives back what quantising took."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.size import adapter_bytes, adapter_parameters
from hf_shrink.ranks import refuse_several_processes
from hf_shrink.stage_plan import StagePlan
from hf_shrink.training.arguments import optimizer_steps, training_arguments
from hf_shrink.training.config import RecoveryConfig
from hf_shrink.words import recovery_words


def recovered(
    config: RecoveryConfig,
    student: PreTrainedModel,
    stored: QuantizationConfig,
    before: StagePlan,
    layers: Sequence[str],
    seed: int,
    rows: int,
) -> StagePlan:
    """The stage after ``before``, the quantised student.

    Args:
        config: the recipe's section.
        student: in float, perhaps without weights.
        stored: how it is quantised.
        before: the plan of that stage.
        layers: those that are quantised; for ``bits: auto`` all that can be.
        seed: of the recipe.
        rows: of the training split.

    Raises:
        RecipeError: words that TrainingArguments refuse, or a training among several processes.
    """
    steps = 0
    if config.training is not None:
        refuse_several_processes("recovery.training")
        words = training_arguments(config.training, output_dir=Path("unused"), seed=seed, where="recovery.training")
        steps = optimizer_steps(words, rows)
    parameters, size = before.parameters, before.bytes
    if config.keep == "adapter":
        parameters = student.num_parameters() + adapter_parameters(student, layers, config.rank)
        size = None if size is None else size + adapter_bytes(student, stored, layers, config.rank)
    return StagePlan("recovered", tuple(recovery_words(config, len(layers), steps)), before.leaves, parameters, size, ".")

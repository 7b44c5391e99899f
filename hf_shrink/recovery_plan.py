"""The stage of a plan that gives back what quantising took."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.roundings import refuse_unseen
from hf_shrink.quantization.size import adapter_bytes, adapter_parameters
from hf_shrink.ranks import refuse_several_processes
from hf_shrink.stage_plan import StagePlan
from hf_shrink.training.arguments import optimizer_steps, training_arguments
from hf_shrink.training.config import RecoveryConfig
from hf_shrink.training.freeze import freeze
from hf_shrink.training.rounded import refuse_compiler
from hf_shrink.words import recovery_words


def recovered(
    config: RecoveryConfig,
    student: PreTrainedModel,
    stored: QuantizationConfig,
    before: StagePlan,
    layers: Sequence[str],
    seed: int,
    rows: int,
    frozen: Sequence[str] = (),
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
        frozen: ends of modules that do not learn; adapters stand beside others.

    Raises:
        RecipeError: words that TrainingArguments refuse, or a training among several processes; for qat also one without a
            step, with a compiler, or of which it would see a part (``refuse_unseen``).
    """
    steps = 0
    if config.method == "qat":
        refuse_unseen(stored)
    if config.training is not None:
        refuse_several_processes("recovery.training")
        words = training_arguments(config.training, output_dir=Path("unused"), seed=seed, where="recovery.training")
        steps = optimizer_steps(words, rows)
        if config.method == "qat":
            refuse_compiler(words, "recovery.training.torch_compile")
            if steps < 1:
                raise RecipeError("recovery.training: 0 steps, and method: qat is nothing but its training; give it some.")
    parameters, size = before.parameters, before.bytes
    if config.leaves_adapter:
        parameters = student.num_parameters() + adapter_parameters(student, layers, config.rank)
        size = None if size is None else size + adapter_bytes(student, stored, layers, config.rank)
    leaves = before.leaves
    if config.method == "qat":
        leaves = leaves | dict.fromkeys(freeze(student, frozen, "optimization.freeze"), "frozen")
    return StagePlan("recovered", tuple(recovery_words(config, len(layers), steps)), leaves, parameters, size, ".")

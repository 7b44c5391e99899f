"""The stage of a plan that gives back what quantising took."""

from pathlib import Path

from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.quantization.config import rounds_training
from hf_shrink.quantization.mixed import least_and_most
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.roundings import refuse_unseen
from hf_shrink.quantization.size import adapter_bytes, adapter_parameters
from hf_shrink.ranks import refuse_several_processes
from hf_shrink.recipe import Recipe
from hf_shrink.stage_plan import StagePlan
from hf_shrink.training.arguments import optimizer_steps, training_arguments
from hf_shrink.training.freeze import freeze
from hf_shrink.training.rounded import refuse_compiler
from hf_shrink.words import recovery_words


def recovered(recipe: Recipe, student: PreTrainedModel, before: StagePlan, rows: int) -> StagePlan:
    """The stage after ``before``: the quantised student, or the float one that a graph will be made of.

    Args:
        recipe: with a ``recovery``.
        student: in float, perhaps without weights.
        before: the plan of that stage.
        rows: of the training split.

    Raises:
        RecipeError: a budget under which nothing is quantised, words that TrainingArguments refuse, or a training among several
            processes; for qat also one without a step, with a compiler, or of which it would see a part (``refuse_unseen``).
    """
    config, stored, steps = recipe.recovery, rounds_training(recipe.quantization), 0
    assert config is not None and stored is not None, "the recipe has checked that there are both"
    if stored.bits == "auto" and before.bytes == least_and_most(student, stored)[1]:
        raise RecipeError(
            "recovery: would be ignored: under quantization.budget every layer stays in float; give less, or remove it."
        )
    layers = keep_plan(student, stored).quantized
    if config.method == "qat":
        refuse_unseen(stored)
    if config.training is not None:
        refuse_several_processes("recovery.training")
        words = training_arguments(config.training, output_dir=Path("unused"), seed=recipe.seed, where="recovery.training")
        steps = optimizer_steps(words, rows)
        if config.method == "qat":
            refuse_compiler(words, "recovery.training.torch_compile")
            if steps < 1:
                raise RecipeError("recovery.training: 0 steps, and method: qat is nothing but its training; give it some.")
    parameters, size = before.parameters, before.bytes
    if config.leaves_adapter:
        parameters = student.num_parameters() + adapter_parameters(student, layers, config.rank)
        size = None if size is None else size + adapter_bytes(student, stored, layers, config.rank)
    leaves = {} if stored.backend == "onnx" else before.leaves  # what is not quantised stands at the stage that quantises
    if config.method == "qat":
        leaves = leaves | dict.fromkeys(freeze(student, recipe.optimization.freeze, "optimization.freeze"), "frozen")
    does = tuple(recovery_words(config, stored, len(layers), steps))
    return StagePlan("recovered", does, leaves, parameters, size, ".")

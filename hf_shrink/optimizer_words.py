"""Words of a ``training`` section about optimizers and schedules that transformers would read and then not use."""

from collections.abc import Iterator, Mapping
from typing import Any

_ADAM = {"adam_beta1", "adam_beta2", "adam_epsilon"}
_WITHOUT_ADAM = {"sgd", "adagrad", "rmsprop", "adafactor"}
_ARGUMENTS = {
    "adamw_torch": set[str](),
    "adamw_torch_fused": set[str](),
    "adafactor": set[str](),
    "sgd": {"momentum", "dampening", "nesterov"},
    "adagrad": {"lr_decay", "eps"},
    "rmsprop": {"momentum", "alpha", "eps", "centered"},
}
_WITHOUT_WARMUP = {"constant": "constant_with_warmup", "reduce_lr_on_plateau": "linear", "greedy": "linear"}
_WITHOUT_WORDS = {"constant", "constant_with_warmup"}
_STEPS = {"step", "multistep", "multi_step", "step_lr", "multistep_lr", "exponential"}


def optimizer_problems(words: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would be ignored in a ``training`` section, as (word, message); optimizers that are not torch's are passed over."""
    optim, schedule = words.get("optim", "adamw_torch"), words.get("lr_scheduler_type", "linear")
    if isinstance(optim, str):
        yield from _arguments(optim, words.get("optim_args"))
        for word in sorted(_ADAM & words.keys() if optim in _WITHOUT_ADAM else ()):
            yield word, f"would be ignored: {optim} does not read it. Remove it."
    if not isinstance(schedule, str):
        return
    if schedule in _STEPS:
        yield "lr_scheduler_type", f"transformers has no {schedule!r}; write `optimization: {{schedule: {{every: 100}}}}`."
    if schedule in _WITHOUT_WORDS and words.get("lr_scheduler_kwargs"):
        yield "lr_scheduler_kwargs", f"would be ignored: {schedule} takes none. Remove it."
    if schedule in _WITHOUT_WARMUP and words.get("warmup_steps"):
        yield "warmup_steps", f"would be ignored: {schedule} has no warm-up. Use {_WITHOUT_WARMUP[schedule]}, or remove it."
    if schedule == "reduce_lr_on_plateau" and words.get("eval_strategy", "no") == "no":
        yield "lr_scheduler_type", "reduce_lr_on_plateau waits for evaluations; set eval_strategy: epoch."


def _arguments(optim: str, given: Any) -> Iterator[tuple[str, str]]:
    if optim not in _ARGUMENTS or not isinstance(given, str) or not given:
        return
    known = ", ".join(sorted(_ARGUMENTS[optim])) or "none"
    for pair in given.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if not equals or not value:
            yield "optim_args", f"expected name=value pairs with commas between, got {pair[:40]!r}."
        elif name == "weight_decay":
            yield "optim_args", "weight_decay would be ignored here; use the word weight_decay of `training`."
        elif name not in _ARGUMENTS[optim]:
            yield "optim_args", f"{name[:40]!r} would be ignored: {optim} takes {known}. Remove it."

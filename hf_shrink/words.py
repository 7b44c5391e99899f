"""The same sentences for plan, report and card: what a recipe's sections do."""

from collections.abc import Iterator, Sequence
from typing import Any

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.stages import Stage
from hf_shrink.families import family_of, stacks_of
from hf_shrink.models.scratch import sizes_of
from hf_shrink.models.student import kept_layers
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.touched import PruningPlan
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.recipe import Recipe
from hf_shrink.tables import own_name
from hf_shrink.training.config import OptimizationConfig, RecoveryConfig
from hf_shrink.training.depths import depths_of
from hf_shrink.training_words import trackers


def layers_words(recipe: Recipe, start: Any) -> str:
    """Where the student starts; ``start`` is the model before layers are dropped."""
    if recipe.student.start == "scratch":
        sizes = ", ".join(f"{word} {size}" for word, size in sizes_of(start.config, recipe.student.config).items())
        return f"starts from random weights, of the kind of {recipe.model} with {sizes}"
    source = "the teacher" if recipe.student.start == "teacher" else recipe.model
    if recipe.student.layers is None:
        return f"starts from {source}"
    total = len(stacks_of(start, family_of(start, "student.layers"))[0][1])
    kept = kept_layers(total, recipe.student.layers, recipe.student.layer_choice)
    fitted = ", each fitted to stand for those up to the next" if recipe.student.reconstruct else ""
    return f"starts from layers {', '.join(map(str, kept))} of {source}'s {total} (counted from 0){fitted}"


def distillation_words(config: DistillationConfig | None) -> Iterator[str]:
    """The loss as a formula, where there is distillation."""
    if config is not None:
        terms = " + ".join(map(_term_words, config.losses))
        if config.alpha_end is None:
            yield f"loss: {1 - config.alpha:g} x task + {config.alpha:g} x ({terms})"
        else:
            yield f"loss: (1 - alpha) x task + alpha x ({terms}), alpha {_ramp(config.alpha, config.alpha_end)}"
        if (own := config.on_policy) is not None:
            most = f"up to {own.max_new_tokens} tokens at temperature {own.temperature:g}"
            yield f"{own.mix:.0%} of the batches go on from their prompts in the student's own words, {most}"


def stage_words(stages: Sequence[Stage]) -> Iterator[str]:
    """One sentence a stage of a progressive distillation, and one for what follows."""
    for stage in stages:
        first, last = max(stage.depths[0] - 1, 0), stage.depths[-1] - 1
        who = f"layer {last}" if first == last else f"layers {first} to {last}"
        who = f"embeddings and {who}" if stage.depths[0] == 0 else who
        yield f"steps {stage.begin} to {stage.end - 1} teach {who} alone, by {' + '.join(stage.pairs)}"
    if stages:
        yield f"from step {stages[-1].end} on: the whole student learns from everything"


def optimization_words(config: OptimizationConfig, student: Any) -> Iterator[str]:
    """What the ``optimization`` section does to ``student`` beside freezing."""
    staged = config.layer_decay is not None or config.unfreeze_every is not None
    top = max(depths_of(student, "optimization").values()) if staged else 0
    if config.layer_decay is not None:
        lowest = f"x {config.layer_decay**top:.2g} at the embeddings"
        yield f"learning rates: whole above the layers, x {config.layer_decay:g} for each layer down, {lowest}"
    if config.unfreeze_every is not None:
        last = f"the embeddings from step {top * config.unfreeze_every}"
        yield f"unfreezes from the top, one layer more every {config.unfreeze_every} steps, {last}"
    if (schedule := config.schedule) is not None:
        when = f"every {schedule.every} steps" if schedule.every else f"at steps {', '.join(map(str, schedule.at))}"
        yield f"learning rate: x {schedule.factor:g} {when}"
    if config.penalty is not None:
        yield f"adds {config.penalty.weight:g} x {config.penalty.kind} of the trained weights to the loss"


def _term_words(term: LossTerm) -> str:
    loss = as_loss(term.loss)
    temperature = f" at temperature {_ramp(term.temperature, term.temperature_end)}" if "temperature" in loss.takes else ""
    beta = "" if term.beta is None else f", beta {term.beta:g}"
    layers = term.layers or loss.layers
    pairs = (
        layers if layers is None or isinstance(layers, str) else ", ".join(f"{ours} from {theirs}" for ours, theirs in layers)
    )
    return f"{_ramp(term.weight, term.weight_end)} x {own_name(term.loss)}{temperature}{beta}" + (
        f" (layers: {pairs})" if pairs else ""
    )


def _ramp(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None else f"{start:g} to {end:g}"


def before_words(entries: Sequence[PruningConfig], prunes: PruningPlan) -> list[str]:
    """One sentence an entry that acts at once before training."""
    found = []
    for entry, what in _amounts(entries, prunes):
        refits = ", and refits what reads the rest" if entry.reconstruct or entry.criterion == "sparsegpt" else ""
        found.append(f"prunes {what} before training{refits}")
    return found


def pruning_words(entries: Sequence[PruningConfig], prunes: PruningPlan, steps: int) -> Iterator[str]:
    """One sentence an entry that has masks: what goes, by which score, when."""
    for entry, what in _amounts(entries, prunes):
        schedule = "" if entry.threshold is not None else f"{entry.schedule} "
        yield f"prunes {what}, {schedule}from step {entry.begin_step} to {steps if entry.end_step is None else entry.end_step}"


def _amounts(entries: Sequence[PruningConfig], prunes: PruningPlan) -> Iterator[tuple[PruningConfig, str]]:
    for place, entry in named(entries):
        rows = [row for row in prunes.rows if row.entry == place]
        kept, before, unit = prunes.totals[place], sum(row.before for row in rows), rows[0].unit
        amount = f"what scores below {entry.threshold:g}" if kept is None else f"keeps {kept:,} of {before:,} {unit}"
        multiple = max(row.multiple for row in rows)
        rounded = f", in multiples of {multiple}" if multiple > 1 else ""
        shared = "" if entry.allocation == "uniform" else f", shared out by {entry.allocation} scores"
        yield entry, f"{entry.structure}: {amount} in {len(rows)} places{rounded}{shared}, by {own_name(entry.criterion)}"


def quantization_words(config: QuantizationConfig, modules: int) -> str:
    """How weights are stored."""
    tables = "8 bits, a scale a row" if config.embeddings == "int8" else config.embeddings
    if config.bits == 16 and config.dtype in (None, "float32"):
        return f"stores the embeddings in {tables}"
    stored = _stored_words(config, modules)
    return stored if config.embeddings == "keep" else f"{stored}; the embeddings in {tables}"


def _stored_words(config: QuantizationConfig, modules: int) -> str:
    if config.bits == 16:
        return f"stores every weight in {config.dtype}"
    if config.bits == "auto":
        assert config.budget is not None
        amount = next(f"{name} {value:,}" for name, value in config.budget.model_dump().items() if value is not None)
        rows = f"measured on at most {config.calibration_rows} training rows"
        stored = f"stores the weights of {modules} projections in 4, 8 or float bits each within {amount}"
        return f"{stored}, by what each loses, {rows}"
    kind = "8 bits" if config.bits == 8 else f"4 bits ({config.quant_type}{', double' if config.double_quant else ''})"
    return f"stores the weights of {modules} projections in {kind} with bitsandbytes"


def recovery_words(config: RecoveryConfig, stored_as: QuantizationConfig, layers: int, steps: int) -> list[str]:
    """What is given back, how it is learnt, and what becomes of it."""
    if config.method == "qat":
        for_graph = stored_as.backend == "onnx"
        tables = " and the embeddings" if for_graph or stored_as.embeddings != "keep" else ""
        stored = "the graph stores them" if for_graph else "they are stored"
        rounded = f"the weights of {layers} projections{tables} rounded as {stored}"
        learnt = f"trains the float student for {steps} steps with {rounded}, itself as it was as the teacher"
        kept = "keeps it in float, for the graph" if for_graph else "stores it as it was trained"
        return [learnt, *distillation_words(config.learns()), f"holds its zeros, and {kept}"]
    begins = {
        "inputs": f"that start as the least error of their outputs on at most {config.calibration_rows} training rows",
        "weights": "that start as the least error of their weights",
        "none": "that start as nothing",
    }[config.start]
    found = [f"gives back what quantising took, by adapters of rank {config.rank} on {layers} projections, {begins}"]
    if config.training is not None:
        found += [f"trains them for {steps} steps, the float student as the teacher", *distillation_words(config.learns())]
    kept = "keeps them in adapter/, beside the quantised model"
    return [*found, kept if config.keep == "adapter" else "adds them to the weights, which are quantised again"]


def onnx_words(config: QuantizationConfig, modules: int) -> str:
    """What the graph for CPUs holds."""
    ranges = "found while it runs" if config.mode == "dynamic" else f"from at most {config.calibration_rows} training rows"
    both = "; keeps the float graph as well" if config.float_graph else ""
    return f"exports a graph for ONNX Runtime: {modules} projections and the embeddings in 8 bits, ranges {ranges}{both}"


def report_words(recipe: Recipe, judged: str, gate: Sequence[str]) -> tuple[str, ...]:
    """What happens at the end of a run; ``judged`` says on what, ``gate`` what decides."""
    batches = " and ".join(str(size) for size in recipe.measurement.batch_sizes)
    does = [
        f"measures every stage: quality on {judged}, size, memory, MACs, speed at batch {batches}",
        *gate,
        "writes the card, loads the folder again and compares its logits",
    ]
    if (robust := recipe.measurement.robust) is not None:
        ways = ", ".join(kind.replace("_", " ") for kind in robust.rates)
        does.append(f"measures accuracy on at most {robust.rows:,} test texts under {ways}")
    if (harness := recipe.measurement.lm_eval) is not None:
        most = "" if harness.limit is None else f", on at most {harness.limit:,} examples of each"
        does.append(f"asks lm-eval for {', '.join(harness.tasks)}{most}")
    if told := trackers(recipe.training):
        does.append(f"tells {' and '.join(told)} what every stage measured")
    if recipe.publishing.push_to is not None:
        seen = "public" if recipe.publishing.public else "private"
        does.append(f"publishes the folder to {recipe.publishing.push_to} on the Hub, {seen}, in one commit")
    return tuple(does)

"""What a recipe's gate lets stand of a run: all of it, the last stages that held, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_shrink.errors import QualityError
from hf_shrink.measured import Measured
from hf_shrink.measurement.gate import Verdict, judge_gate, score_for
from hf_shrink.onnx_model import FOLDER
from hf_shrink.recipe import Recipe


@dataclass(frozen=True)
class Kept:
    """What the artefact is after the gate.

    Attributes:
        model: the stage whose model lies in ``output_dir``.
        graph: whether a graph lies beside it.
        held: whether both are good enough; False leaves all as it was made, to be looked at.
        dropped: stages that were rolled back, each with the reason.
    """

    verdict: Verdict
    model: str
    graph: bool
    held: bool
    dropped: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the report."""
        return {**self.verdict.to_json(), "held": self.held, "model": self.model, "dropped": self.dropped}


def decide(recipe: Recipe, label_names: Sequence[str], measured: Measured) -> Kept | None:
    """Apply the recipe's gate to the measured stages; None where there is none.

    The baseline is no result of a roll-back, with one exception: it is the model under a graph that holds and was made of it.
    """
    config = recipe.gate
    if config is None:
        return None
    score = score_for(config, recipe.task, label_names)
    verdict = judge_gate(config, score, measured.reports, baseline=measured.baseline)
    names, base = [stage.name for stage in verdict.stages], measured.reports[measured.baseline].name
    models = [base, *(name for name in names if name != FOLDER)]
    graph = FOLDER in names
    delivered = [*models[1:][-1:], *([FOLDER] if graph else [])]
    if all(map(verdict.held, delivered)):
        return Kept(verdict, models[-1], graph, held=True)
    if config.on_miss == "roll_back" and (rolled := _rolled_back(verdict, models, graph)) is not None:
        return rolled
    return Kept(verdict, models[-1], graph, held=False)


def _rolled_back(verdict: Verdict, models: Sequence[str], graph: bool) -> Kept | None:
    """The last model that held, and the graph where it held and what it was made of still stands; None where none did.

    Args:
        models: the baseline, then every stage that made a model of torch.
        graph: whether there is a graph; it is made of the last model that is not quantised.
    """
    stored = ("quantized", "recovered") if "quantized" in models else ()
    source = max(i for i, name in enumerate(models) if name not in stored)
    last = max((i for i, name in enumerate(models) if i and verdict.held(name)), default=0)
    holds = graph and verdict.held(FOLDER) and source <= last
    if not last and not holds:
        return None
    why = {stage.name: stage.why for stage in verdict.stages}
    dropped = {name: why[name] for name in models[last + 1 :]}
    if graph and not holds:
        missed = not verdict.held(FOLDER)
        dropped[FOLDER] = why[FOLDER] if missed else f"It is made of {models[source]}, which was dropped."
    return Kept(verdict, models[last], holds, held=True, dropped=dropped)


def check_quality(report: dict[str, Any], folder: str) -> None:
    """Refuse to go on with a model that its gate does not let stand.

    Args:
        report: the contents of ``hf_shrink_report.json``.
        folder: where it lies, for the message.

    Raises:
        QualityError: the gate was missed.
    """
    gate = report.get("gate")
    if not gate or gate["held"]:
        return
    missed = [stage for stage in gate["stages"] if not stage["held"]]
    last = next((stage for stage in missed if stage["name"] == gate["model"]), missed[-1])
    asked = "" if gate["bound"] is None else f" ({gate['rule']})"
    told = "" if any("failed" in known for known in (report.get("usage") or {}).values()) else " and on the card there"
    raise QualityError(
        f"gate missed: {last['why']}{asked}\n"
        f"Every number is in {folder}/hf_shrink_report.json{told}; nothing was published.\n"
        "Shrink less or train longer; or change `gate` and run again, which judges anew without training."
    )

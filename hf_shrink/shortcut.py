"""``hf-shrink prune``, ``quantize`` and ``export``: one step on one model, without a training."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.calibrated import calibrated
from hf_shrink.errors import RecipeError, ResourceError, ShrinkError
from hf_shrink.files import write_text
from hf_shrink.loading.oneshot import prune, quantize, recorded
from hf_shrink.loading.remote_code import add_remote_code
from hf_shrink.loading.save import save
from hf_shrink.loading.uniform import example_inputs
from hf_shrink.loading.verify import verify
from hf_shrink.measurement.size import non_zero
from hf_shrink.models.load import load_model
from hf_shrink.overrides import apply
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.publishing.plots import plot_histograms, plot_trade
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.fidelity import Fidelity, fidelity, histograms
from hf_shrink.quantization.mixed_table import MixedPlan
from hf_shrink.quantization.quantize import quantize_by_budget
from hf_shrink.quantization.size import differs, predicted_bytes
from hf_shrink.recipe import Recipe
from hf_shrink.samples import samples_of, tokenizer_of
from hf_shrink.yaml_core import write as write_yaml
from hf_shrink.yaml_source import parse


@dataclass(frozen=True)
class Made:
    """What a one-step command wrote.

    Attributes:
        folder: where.
        tier: ``stock`` (plain transformers loads it) or ``plugin`` (after ``import hf_shrink``).
        parameters, bytes: before and after; bytes are those of the weights on disk.
        zeros: weights that are zero and stay in the file.
        max_difference: of the logits after loading the folder again; 0.0, or there would be no folder.
    """

    folder: str
    tier: str
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    zeros: int
    max_difference: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Table:
        """A table for the terminal."""
        table = Table("", "before", "after", title=f"{self.folder}: loads with {_LOADS[self.tier]}")
        table.add_row("parameters", *(f"{count:,}" for count in self.parameters))
        table.add_row("MB", *(f"{size / 1e6:.1f}" for size in self.bytes))
        if self.zeros:
            table.add_row("zeros", "", f"{self.zeros:,} (they save no byte and no time)")
        return table


_LOADS = {"stock": "plain transformers", "plugin": "transformers after import hf_shrink"}


def prune_model(
    reference: str,
    folder: Path,
    entry: PruningConfig,
    *,
    revision: str | None = None,
    recipe: Recipe | None = None,
    texts: Path | None = None,
    save_recipe: Path | None = None,
) -> Made:
    """Prune a model at once and write it to ``folder``, which must not hold anything yet.

    Args:
        reference: a folder, a Hub id or ``package:NAME/PATH``.
        folder: made where it is missing.
        entry: what goes; without the words that say when.
        recipe: where calibration data comes from, with labels: the first rows of its training split. Its validation rows are
            what ``allocation: sensitivity`` is measured on.
        texts: or a text file, a sample a line; for language models, whose labels are the texts themselves.
        save_recipe: a new file for ``recipe_for``; then ``recipe`` is asked for data only where ``entry`` reads any.

    Raises:
        ShrinkError: whatever is wrong; nothing is written then.
    """
    check_empty(folder)
    stands_for = None
    if save_recipe is not None and recipe is not None:
        _check_new(save_recipe)
        stands_for = recipe_for(recipe, entry, reference, folder, revision).to_yaml()
    model, tokenizer = load_model(reference, revision=revision), tokenizer_of(reference, revision)
    entry, batches, fractions = calibrated(entry, model, tokenizer, recipe, texts, always=stands_for is None)
    small = prune(model, entry, batches, fractions=fractions)
    made = write(small, folder, tokenizer, before=model)
    if stands_for is not None and save_recipe is not None:
        write_text(save_recipe, stands_for)
    return made


@dataclass(frozen=True)
class Quantized:
    """What ``quantize`` wrote and how many bytes it should have, what it did to each layer, and how many bits each got.

    The last two are None where they were not asked for.
    """

    made: Made
    predicted: int
    layers: Fidelity | None
    bits: MixedPlan | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return self.made.to_json() | (
            {"predicted_bytes": self.predicted}
            | ({} if self.layers is None else {"layers": self.layers.to_json()})
            | ({} if self.bits is None else {"layer_bits": self.bits.to_json()})
        )

    def rich(self) -> Group:
        """Tables for the terminal."""
        said = f"predicted {self.predicted:,} bytes of weights, wrote {self.made.bytes[1]:,}"
        off = [said] if differs(self.predicted, self.made.bytes[1]) else []
        return Group(self.made.rich(), *off, *(part.rich() for part in (self.bits, self.layers) if part is not None))


def quantize_model(
    reference: str,
    folder: Path,
    words: Sequence[str],
    *,
    revision: str | None = None,
    recipe: Recipe | None = None,
    texts: Path | None = None,
    report: bool = False,
    plots: Path | None = None,
) -> Quantized:
    """Store a model in fewer bits in ``folder``, which must not hold anything yet.

    Args:
        reference: a folder, a Hub id or ``package:NAME/PATH``.
        folder: made where it is missing.
        words: of a ``QuantizationConfig``, as ``KEY=VALUE`` with values in YAML.
        recipe: for ``bits=auto``: what layers lose is measured on the first rows of its training split.
        texts: or a text file, a sample a line.
        report: also compare every layer with its float weights.
        plots: where histograms of the float weights go and, with ``bits=auto``, KL against bytes.

    Raises:
        ShrinkError: whatever is wrong; nothing is written then.
    """
    check_empty(folder)
    config = quantization_of(words)
    if config.backend == "onnx":
        raise RecipeError("quantize: backend: onnx makes graphs, not a model. Run: hf-shrink export MODEL FOLDER --onnx")
    model, tokenizer = load_model(reference, revision=revision), tokenizer_of(reference, revision)
    bits = None
    if config.bits == "auto":
        mixed = quantize_by_budget(model, config, samples_of(config, recipe, texts, tokenizer, model))
        small, bits = recorded(mixed.model), mixed.plan
    elif recipe is not None or texts is not None:
        raise RecipeError(f"quantize: --recipe and --texts would be ignored with bits: {config.bits}; leave them out.")
    else:
        small = quantize(model, config)
    if bits is not None and plots is not None:
        plot_trade(bits, plots)
    layers = fidelity(model, small, config) if report or plots is not None else None
    if layers is not None and plots is not None:
        plot_histograms(histograms(layers), plots)
    predicted = predicted_bytes(model, config) if bits is None else bits.measured["chosen"].bytes
    return Quantized(write(small, folder, tokenizer, before=model), predicted, layers if report else None, bits)


def quantization_of(words: Sequence[str]) -> QuantizationConfig:
    """The section that options of the command line say, as ``KEY=VALUE`` with values in YAML."""
    source = apply(parse("quantization: {}", name="options"), [f"quantization.{word}" for word in words])
    return QuantizationConfig(**source.data["quantization"])


def entry_of(structure: str, criterion: str, sparsity: float | None, more: Sequence[str]) -> PruningConfig:
    """One pruning entry from options of the command line; ``more`` are ``KEY=VALUE`` with values in YAML."""
    words: dict[str, Any] = {"structure": structure}
    if structure != "vocabulary":
        words["criterion"] = criterion
    if sparsity is not None:
        words["sparsity"] = sparsity
    base = write_yaml({"pruning": [words]})
    source = apply(parse(base, name="options"), [f"pruning.0.{assignment}" for assignment in more])
    return PruningConfig(**source.data["pruning"][0])


def recipe_for(recipe: Recipe, entry: PruningConfig, reference: str, folder: Path, revision: str | None) -> Recipe:
    """The run that pruning ``reference`` by ``entry`` stands for: on the data of ``recipe``, at once, then trained as there.

    It writes beside ``folder``, as ``NAME-run``: that of ``recipe`` holds another run, which ``reference`` may be a part of.
    """
    left = {"teacher", "student", "distillation", "cache", "revision", "pruning", "publishing"}
    words = recipe.model_dump(exclude_unset=True, exclude=left)
    when = {} if entry.is_cut_at_once else {"when": "before"}
    own = {"model": reference, "output_dir": f"{folder}-run", "pruning": (entry.model_dump(exclude_unset=True) | when,)}
    return Recipe(**words | own | ({} if revision is None else {"revision": revision}))


@dataclass(frozen=True)
class WithCode:
    """A copy of a folder that loads without hf_shrink where its code may run."""

    folder: str
    file: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> str:
        """One line for the terminal."""
        return f"wrote {self.folder}; {self.file} in it loads the model where trust_remote_code is on"


def export_with_code(source: Path, folder: Path) -> WithCode:
    """A copy of ``source`` with a file for users who trust remote code; nothing is left where that fails."""
    check_empty(folder)
    if not source.is_dir():
        raise RecipeError(f"{source.name}: not a folder; name one that holds a pruned model.")
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stages", ".*"))
    try:
        file = add_remote_code(folder)
    except ShrinkError:
        shutil.rmtree(folder)
        raise
    return WithCode(str(folder), file.name)


def write(small: PreTrainedModel, folder: Path, tokenizer: Any, *, before: PreTrainedModel) -> Made:
    """Save ``small``, load it again and compare; ``before`` is what the numbers are set against.

    ``folder`` is new or empty; nothing is left in it where anything fails.
    """
    try:
        tier = save(small, folder, tokenizer=tokenizer)
        reload = verify(folder, small, example_inputs(small))
    except BaseException:  # whoever finds a model here may trust it
        shutil.rmtree(folder, ignore_errors=True)
        raise
    zeros = (non_zero(before) or 0) - (non_zero(small) or 0)  # of what multiplies: a byte of two 4-bit codes may be 0, too
    return Made(
        folder=str(folder),
        tier=tier,
        parameters=(before.num_parameters(), small.num_parameters()),
        bytes=(_bytes(before), sum(path.stat().st_size for path in folder.glob("*.safetensors"))),
        zeros=max(zeros, 0) if small.num_parameters() == before.num_parameters() else 0,
        max_difference=reload.max_difference,
    )


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something: what is there stays as it is."""
    if folder.is_file():
        raise RecipeError(f"{folder.name}: is a file; name a folder.")
    if folder.is_dir() and (found := sorted(path.name for path in folder.iterdir())):
        raise RecipeError(f"{folder.name}: not empty ({', '.join(found[:3])}); name a new folder.")


def _check_new(file: Path) -> None:
    """Refuse a file that is there, or that cannot be written when the work is done."""
    if file.exists():
        raise RecipeError(f"{file.name}: is there already and stays as it is; name another file.")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ResourceError(
            f"{file.name}: cannot be written there ({error.strerror}). Name a file in a folder that takes it."
        ) from None


def _bytes(model: PreTrainedModel) -> int:
    found: Mapping[int, Tensor] = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())

"""Write a model as a folder that loads with as little as it can: plain transformers wherever a stock config says it all."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.adapters import CONFIG, FOLDER, WEIGHTS, carries_adapter
from hf_shrink.errors import MismatchError, ResourceError
from hf_shrink.files import files_below, share, sync
from hf_shrink.lines import first_line
from hf_shrink.loading.align import align
from hf_shrink.loading.conversions import drop_quantizer_conversions
from hf_shrink.loading.quantizer import ShrinkQuantizer
from hf_shrink.loading.shapes import odd_head_dim, odd_shapes
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.embeddings import RECORD, recorded_dtype
from hf_shrink.quiet import quiet_loading
from hf_shrink.repacking import refuse_repacked

_INDEX = "model.safetensors.index.json"

Tier = Literal["stock", "plugin"]
"""``stock``: plain transformers loads it. ``plugin``: after ``import hf_shrink``."""


def save(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Tier:
    """Write config, weights and tokenizer; a file is in ``folder`` whole or not at all, and the config comes last.

    Also for a model that came from a bitsandbytes checkpoint, whose own ``save_pretrained`` raises NotImplementedError in
    transformers: the numbers are written bit for bit as they were read.

    Args:
        model: with any shapes, quantised by bitsandbytes or not; it stays as it is.
        folder: made where it is missing. Files of the same names are replaced.
        tokenizer: saved beside the model.

    Returns:
        The lowest tier that can express the model: ``stock`` loads with plain transformers, ``plugin`` after
        ``import hf_shrink``.

    Raises:
        IntegrityError: the model's 4-bit weights can no longer be saved.
        MismatchError: no transformers model, adapters on it, shapes that neither a stock config nor ours can say, or
            files in ``folder`` that would be loaded in the place of the model or with it.
        ResourceError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    _check(model, folder)
    refuse_repacked(model, folder.name)
    with fresh_folder(folder) as fresh, quiet_loading(), _stored_config(model) as tier:
        model.save_pretrained(fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
    return tier


def _check(model: Any, folder: Path) -> None:
    """What would be written must be the whole model, and what is loaded from ``folder`` later must be that alone."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise MismatchError(f"save: expected a transformers PreTrainedModel, got {name}.")
    if carries_adapter(model):
        raise MismatchError(
            f"save: {name} carries adapters, which are no part of the model's file, or wrappers that delete_adapter() left.\n"
            "Save them by its own save_pretrained(), merge them (merge_and_unload) or take them off (unload) before."
        )
    if held := [found for found in (_INDEX, CONFIG) if (folder / found).exists()]:
        raise MismatchError(
            f"{folder.name}: holds {held[0]}, so that from_pretrained would read other weights too. Choose another folder."
        )


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Write adapters into ``folder / "adapter"``, beside the model that they belong to: the same bytes every time.

    Args:
        adapted: whose adapters; its base is what ``save`` wrote to ``folder``.
        folder: where that lies.
    """
    target = folder / FOLDER
    adapted.save_pretrained(str(target))
    (target / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    config = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None  # a path of this machine; the model is the one above
    config["target_modules"] = sorted(config["target_modules"])
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    align(target / WEIGHTS)


def record_shapes(model: PreTrainedModel) -> Tier:
    """Write the shapes of ``model`` into its config, so that its own ``save_pretrained`` makes a folder that loads again."""
    shapes, head_dim, eight, tables = odd_shapes(model), odd_head_dim(model), _eight_bits(model), _tables(model)
    stored = _stored(model, shapes, head_dim, eight, tables)
    if stored is not None:
        model.config.quantization_config = stored
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return "plugin" if isinstance(stored, ShrinkConfig) else "stock"


def _tables(model: PreTrainedModel) -> str | None:
    """How the embeddings lie in the file, where plain transformers would read them wrongly; see ``embeddings.file_shape``."""
    kind = recorded_dtype(model)
    if kind is None and hasattr(model.config, RECORD):
        delattr(model.config, RECORD)  # they were trained, cut or made floats again since
    return kind if kind == "int8" or stored_bits(model) else None


def write_embeddings(model: PreTrainedModel) -> None:
    """Let ``save_pretrained`` of ``model`` ask us what it writes, where its embeddings lie otherwise in the file."""
    stored, quantizer = getattr(model.config, "quantization_config", None), getattr(model, "hf_quantizer", None)
    if not hasattr(model.config, RECORD) or isinstance(quantizer, ShrinkQuantizer):
        return
    config = stored if isinstance(stored, ShrinkConfig) else ShrinkConfig()
    setattr(model, "hf_quantizer", ShrinkQuantizer(config, pre_quantized=True))  # noqa: B010 - see above


def _eight_bits(model: PreTrainedModel) -> dict[str, Any] | None:
    """Layers with 8 bits, and their threshold, where others have 4; None where all have the same."""
    bits = stored_bits(model)
    if {*bits.values()} != {4, 8}:
        return None
    eight = [name for name, width in bits.items() if width == 8]
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    state: Any = model.get_submodule(eight[0]).state
    return {"layers": [name.removeprefix(prefix) for name in eight], "threshold": float(state.threshold)}


def _stored(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, int]],
    head_dim: int | None,
    eight: Mapping[str, Any] | None,
    tables: str | None,
) -> Any:
    """The value of ``quantization_config`` in the saved config; None where there is none."""
    existing = getattr(model.config, "quantization_config", None)
    if isinstance(existing, ShrinkConfig):
        existing = existing.bitsandbytes
    if not shapes and head_dim is None and eight is None and tables is None:
        return existing
    if existing is None:
        return ShrinkConfig(shapes, head_dim=head_dim, embeddings=tables)
    options = existing if isinstance(existing, dict) else existing.to_dict()
    method = getattr(options["quant_method"], "value", options["quant_method"])
    if method != "bitsandbytes":
        raise MismatchError(f"{METHOD} cannot store a model quantised by {method} in these shapes; use bitsandbytes.")
    return ShrinkConfig(shapes, bitsandbytes=_plain(options), head_dim=head_dim, eight_bits=eight, embeddings=tables)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without enums, which JSON would spell otherwise."""
    return {key: getattr(value, "value", value) for key, value in options.items()}


@contextmanager
def _stored_config(model: PreTrainedModel) -> Iterator[Tier]:
    """The config as it is to be written; saving also turns ``config.dtype`` into text, so all of it is put back after."""
    before, quantizer = dict(vars(model.config)), getattr(model, "hf_quantizer", None)
    conversions = drop_quantizer_conversions(model)
    try:
        tier = record_shapes(model)
        write_embeddings(model)
        yield tier
    finally:
        if quantizer is not None:
            setattr(model, "hf_quantizer", quantizer)  # noqa: B010 - nn.Module types attributes as tensors
        elif hasattr(model, "hf_quantizer"):
            del model.hf_quantizer
        vars(model.config).clear()
        vars(model.config).update(before)
        if conversions is not None:
            setattr(model, "_weight_conversions", conversions)  # noqa: B010 - nn.Module types attributes as tensors


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``; what is in it at the end is synced and moved into ``folder``, a file at a time."""
    new, done = not folder.exists(), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ResourceError(f"{folder.name}: cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        yield fresh
        for weights in fresh.glob("*.safetensors"):
            align(weights)
        written = [path.relative_to(fresh) for path in files_below(fresh)]
        for name in sorted(written, key=lambda name: name.name == "config.json"):
            share(fresh / name)
            sync(fresh / name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(folder / name)
        sync(folder)
        done = True
    except OSError as error:
        raise ResourceError(f"{folder.name}: not saved ({error.strerror or error}). Free some space and try again.") from error
    except SafetensorError as error:
        if "os error" not in str(error):
            raise
        raise ResourceError(f"{folder.name}: not saved ({first_line(error)}). Free some space and try again.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new and not done:
            with suppress(OSError):  # it holds something by now
                folder.rmdir()

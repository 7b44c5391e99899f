"""Load a model for a task, its tokenizer or config, strictly: what a checkpoint lacks is named, never made up in silence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_shrink.class_names import labels_of
from hf_shrink.errors import MismatchError, RecipeError, ResourceError, SecurityError
from hf_shrink.finite import check_finite
from hf_shrink.headers import check_record, check_storage
from hf_shrink.lines import few
from hf_shrink.models.config import DType
from hf_shrink.models.explained import explained
from hf_shrink.models.reference import check_source, is_local, refuse_adapter, shown
from hf_shrink.quiet import quiet_loading
from hf_shrink.sentences import as_sentence_model
from hf_shrink.tables import pick
from hf_shrink.tasks import SENTENCES, TASKS, Task

_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model", "tekken.json"),
)


def load_tokenizer(reference: str, *, revision: str | None = None, download: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token (GPT-2, Llama) pads with its end-of-text token.

    Args:
        reference: a Hub id, a folder, or ``package:NAME/PATH``.
        revision: commit, tag or branch on the Hub.
        download: False looks at this machine alone.

    Raises:
        ResourceError: not there, not cached and not to be had, or it needs a package that is missing.
        SecurityError: it would run code of its own, or the reference leaves its package.
    """
    source = check_source(reference, revision)
    missing = ResourceError(f"tokenizer of {shown(reference)}: not there. Save the model's tokenizer beside it.")
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZERS):
        raise missing
    with explained(f"tokenizer of {shown(reference)}", revision):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=not download
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise missing  # transformers makes an empty one for some families
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def config_of(
    reference: str,
    *,
    task: str = "text-classification",
    revision: str | None = None,
    label_names: Sequence[str] | None = None,
    download: bool = False,
) -> PreTrainedConfig:
    """The config of a model, from this machine alone unless ``download`` allows more.

    Args:
        reference: a Hub id, a folder, or ``package:NAME/PATH``.
        task: a name of ``TASKS``; one whose head is not made for labels takes no classes.
        revision: commit, tag or branch on the Hub.
        label_names: classes for a new head; None leaves the config's own.
        download: whether a config that is not in the cache may be fetched.

    Raises:
        ResourceError: not a folder here and not in the cache; the message names what is missing.
        SecurityError: as ``load_tokenizer``.
    """
    config = _config(reference, revision, local_files_only=not download)
    kind = pick(TASKS, task, "task")
    if label_names is not None and kind.labelled:
        _set_labels(config, label_names, kind)
    if label_names is not None and kind.outputs is not None:
        config.num_labels = kind.outputs
    return config


def load_for(
    task: str,
    reference: str,
    *,
    label_names: Sequence[str] | None = None,
    revision: str | None = None,
    dtype: DType = "float32",
    new_head: bool,
) -> PreTrainedModel:
    """A model with the head of a task in eval mode, every weight accounted for and finite; only safetensors are read.

    Args:
        task: a name of ``TASKS``.
        reference: a Hub id, a folder, or ``package:NAME/PATH``.
        label_names: the classes in order. With ``new_head`` they become the model's; without, the model keeps its own and
            only the set of names is compared.
        revision: commit, tag or branch on the Hub.
        dtype: precision the weights are loaded in.
        new_head: whether weights outside the base model, and a pooler, may be missing or of another shape. They start random
            (seed before the call). Without it nothing may be. A head that knows the same names in another order is turned.
            A task whose head belongs to the pretrained model never takes a new one, and one without labels no classes.

    Raises:
        MismatchError: keys missing, unexpected or of another shape (up to ten are listed), or other label names.
        NonFiniteError: a weight is NaN or infinite.
        ResourceError, SecurityError: as ``load_tokenizer``. IntegrityError: the weights file is damaged.
    """
    refuse_adapter(reference)
    name = f"model {shown(reference)}"
    config, kind = _config(reference, revision), pick(TASKS, task, "task")
    known = [name for _, name in sorted(dict(config.id2label or {}).items())]
    new_head = new_head and kind.new_head
    label_names = label_names if kind.labelled else None
    if new_head and kind.labelled:
        _set_labels(config, label_names, kind)
    if new_head and kind.outputs is not None:
        config.num_labels = kind.outputs
    set_padding(config, kind)
    auto: Any = getattr(transformers, kind.auto_class)
    with explained(name, revision), quiet_loading():
        model, info = auto.from_pretrained(
            check_source(reference, revision),
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that every key arrives in the report; the check below refuses them
            output_loading_info=True,
        )
    assert isinstance(model, PreTrainedModel)
    _check_keys(name, model, info, new_head, drops=kind.drops)
    check_finite(model, name)
    if new_head and label_names is not None and set(known) == set(label_names):
        _turn_head(model, [known.index(label) for label in label_names])
    if not new_head and label_names is not None:
        _check_labels(name, model, label_names)
    return as_sentence_model(model) if task == SENTENCES else model


def load_model(reference: str, *, revision: str | None = None) -> PreTrainedModel:
    """Any model as its checkpoint says it is: of the class that its config names, in the precision that it is stored in.

    In eval mode, every weight accounted for and finite; only safetensors are read. Arguments and errors as in
    ``load_for``.
    """
    refuse_adapter(reference)
    name, config = f"model {shown(reference)}", _config(reference, revision)
    named = (config.architectures or [""])[0]
    kind: Any = getattr(transformers, named, AutoModel)
    with explained(name, revision), quiet_loading():
        model, info = kind.from_pretrained(
            check_source(reference, revision),
            revision=revision,
            dtype="auto",
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    assert isinstance(model, PreTrainedModel)
    _check_keys(name, model, info, new_head=False)
    check_finite(model, name)
    return model


def _config(reference: str, revision: str | None, **options: Any) -> PreTrainedConfig:
    source = check_source(reference, revision)
    if is_local(source) and not Path(source, "config.json").is_file():
        raise ResourceError(f"{shown(reference)}: the folder has no config.json. Name the folder that save_pretrained wrote.")
    check_record(f"model {shown(reference)}", Path(source))
    with explained(f"config of {shown(reference)}", revision):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
    check_storage(f"model {shown(reference)}", getattr(config, "quantization_config", None), Path(source))
    if "/" in (kernel := config._attn_implementation or ""):
        raise SecurityError(f"config of {shown(reference)}: attention {kernel!r} is code from the Hub. Remove the key.")
    return config


def set_padding(config: PreTrainedConfig, task: Task) -> None:
    """Let the config of a model for ``task`` say which token pads, in place.

    A classifier finds the last real token by it. To a language model the end of a text is a token like others: as the
    padding token its embedding would get no gradient, and batches say by their mask what is padding."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if not task.labelled and config.pad_token_id in ends:
        config.pad_token_id = None
    if task.labelled and config.pad_token_id is None and isinstance(config.eos_token_id, int):  # of several, none is sure
        config.pad_token_id = config.eos_token_id


def _set_labels(config: PreTrainedConfig, label_names: Sequence[str] | None, task: Task) -> None:
    least = 1 if task.problem_type == "regression" else 2
    if label_names is None or len(label_names) < least or len(set(label_names)) < len(label_names):
        raise RecipeError(f"label_names: a new head needs {least} or more different names, got {label_names!r}.")
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    config.problem_type = task.problem_type  # a checkpoint may say regression or several labels at once


def _turn_head(model: PreTrainedModel, order: list[int]) -> None:
    """A head that has learnt these very classes in another order: row ``order[i]`` becomes row ``i``."""
    inside = f"{model.base_model_prefix}."
    head = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith(inside)][-1]
    assert head.out_features == len(order), "the last projection outside the base model gives the classes"
    for parameter in head.parameters():
        parameter.data = parameter.data[order]


def _check_labels(where: str, model: PreTrainedModel, label_names: Sequence[str]) -> None:
    own = labels_of(model)
    if set(own) != set(label_names) and not len(own) == len(label_names) == 1:  # one number needs no name
        raise MismatchError(
            f"{where} has {len(own)} labels {few(own)}; the data has {len(label_names)}: {few(label_names)}.\n"
            "Fine-tune it on these labels first, or set id2label in its config."
        )


def _check_keys(where: str, model: PreTrainedModel, info: dict[str, Any], new_head: bool, *, drops: bool = False) -> None:
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."  # without a head all of it is inside
    names = {name for name, _ in model.base_model.named_children()}
    children = names - {"pooler"}

    def is_head(key: str) -> bool:
        return not key.startswith(inside) or "pooler" in key.split(".") or not (inside or key.split(".")[0] in names)

    def may_be_new(key: str) -> bool:
        return new_head and is_head(key)

    def may_be_left_over(key: str) -> bool:  # the head of another task; never a layer, which a headless file names bare
        return (new_head or drops) and is_head(key) and key.split(".")[0] not in children

    missing = sorted(key for key in info["missing_keys"] if not may_be_new(key))
    mismatched = sorted(key for key, *_ in info["mismatched_keys"] if not may_be_new(key))
    unexpected = sorted(key for key in info["unexpected_keys"] if not may_be_left_over(key))
    if masked := [key for key in unexpected if key.endswith(("_orig", "_mask"))]:
        raise MismatchError(
            f"{where}: it holds masks of torch.nn.utils.prune beside its weights, first {masked[0]}.\n"
            "Call torch.nn.utils.prune.remove(module, 'weight') for each such module where it was made, and save it again."
        )
    if missing or unexpected or mismatched:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(mismatched)} of another shape"
        raise MismatchError(
            f"{where}: its weights do not fit {type(model).__name__}: {counts}.\n"
            f"{few([*missing, *mismatched, *unexpected], 10)}\n"
            "Use a checkpoint of this architecture" + (", or ask for a new head." if not new_head else ".")
        )

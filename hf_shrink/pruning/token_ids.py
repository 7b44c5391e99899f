"""Token ids that configs hold: which there are, and what they are after the vocabulary has been cut."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.errors import MismatchError

_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_SEQUENCES = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


def vocabulary_size(model: PreTrainedModel) -> int:
    """``vocab_size`` of the config.

    Raises:
        MismatchError: there is none, because the model has no vocabulary or several.
    """
    size = getattr(model.config, "vocab_size", None)
    if type(size) is not int:
        raise MismatchError(
            f"{type(model.config).__name__} has no vocab_size of its own; structure: vocabulary cannot be used."
        )
    return size


def special_ids(model: PreTrainedModel) -> set[int]:
    """Every id inside the vocabulary that a config of ``model`` names, its generation config included.

    Defaults count too: a config of Llama says 1 and 2 for the start and the end of a text, whatever the tokenizer says.
    """
    size = vocabulary_size(model)
    found: set[int] = set()
    for holder in holders(model):
        for _, value in _named_ids(holder):
            found.update(token for token in (value if isinstance(value, list) else [value]) if 0 <= token < size)
    return found


def holders(model: PreTrainedModel) -> list[Any]:
    """The configs in ``model``, each object once; an encoder and a decoder may have copies of their own."""
    found: dict[int, Any] = {}
    for module in (model, *model.modules()):
        for name in ("config", "generation_config"):
            holder = vars(module).get(name)
            if holder is not None and not isinstance(holder, dict | nn.Module):
                found[id(holder)] = holder
    return list(found.values())


def renumber_config(holder: Any, new_ids: Mapping[int, int], size: int) -> None:
    """Give a config, in place, the ids and the size of the vocabulary that is left.

    Ids outside the old vocabulary name no token and stay as they are. What suppresses a token that has gone is dropped.

    Args:
        holder: a model's config or generation config.
        new_ids: old id -> new id of what is kept.
        size: of the old vocabulary.

    Raises:
        MismatchError: it names an id that is not kept, or is set in a way that cannot be renumbered.
    """
    where = type(holder).__name__

    def renewed(name: str, token: int) -> int:
        if token in new_ids:
            return new_ids[token]
        if 0 <= token < size:
            raise MismatchError(
                f"{where}.{name} is {token}, which is not kept. Keep it too: special_ids(model) lists these ids."
            )
        return token

    for name, value in list(_named_ids(holder)):
        ids = [renewed(name, token) for token in value] if isinstance(value, list) else renewed(name, value)
        setattr(holder, name, ids)
    for name in _SUPPRESSED:
        if tokens := getattr(holder, name, None):
            setattr(holder, name, [new_ids[token] for token in tokens if token in new_ids] or None)
    if words := getattr(holder, "bad_words_ids", None):
        kept = [[new_ids[token] for token in word] for word in words if set(word) <= new_ids.keys()]
        holder.bad_words_ids = kept or None
    for name in _SEQUENCES:
        if getattr(holder, name, None):
            raise MismatchError(f"{where}.{name} holds token ids that hf_shrink does not renumber; unset it first.")
    if isinstance(holder, PreTrainedConfig) and getattr(holder, "vocab_size", None) == size:
        holder.vocab_size = len(new_ids)


def _named_ids(holder: Any) -> Iterator[tuple[str, int | list[int]]]:
    for name, value in vars(holder).items():
        if name.endswith(("_token_id", "_token_ids")) and value is not None:
            yield name, list(value) if isinstance(value, list | tuple) else int(value)

"""What a masked language model says of the tokens that were hidden from it."""

from collections.abc import Sequence
from typing import Any

from hf_shrink.measurement.next_tokens import beside, padded
from hf_shrink.measurement.subjects import device_of
from hf_shrink.measurement.token_answers import TokenAnswers, Told, columns_of, told, told_of_rows


class MaskedTokens(TokenAnswers):
    """The tokens of a block that were hidden, told from all others at once.

    ``exp`` of their mean negative log-likelihood is a pseudo-perplexity: it depends on how many are hidden together, so only
    numbers from the same hidden tokens compare.
    """

    counted = "hidden tokens"


def judge_masked_tokens(
    model: Any, dataset: Any, tokenizer: Any = None, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> MaskedTokens:
    """The model's answers on blocks in which tokens were hidden already: ``labels`` hold those, -100 stands elsewhere.

    Args:
        tokenizer: not needed: padding is told by the attention mask.
        order: tokens are not classes: None.

    Other arguments and errors are those of ``judge_next_tokens``.
    """
    assert order is None, "tokens are known by their ids"
    ids, labels = columns_of(dataset)

    def run(rows: list[int]) -> list[Told]:
        logits = model(**padded([ids[i] for i in rows], device_of(model))).logits
        return [told(row[: len(own)], own) for row, own in beside(logits, [labels[i] for i in rows])]

    return MaskedTokens.joined(told_of_rows(model, run, batch_size=batch_size, lengths=list(map(len, ids))))

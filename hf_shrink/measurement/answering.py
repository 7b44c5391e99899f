"""The answers of all subjects of a measurement, asked for once whoever wants them."""

from typing import Any

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.judges import judge
from hf_shrink.measurement.subjects import Bench, Subject, explained


def answers_of(bench: Bench) -> list[Answers | None]:
    """What each subject says of the evaluation data; None of one that cannot be asked.

    Raises:
        MismatchError: data, tokenizer and model do not fit, or a folder lacks weights.
        NonFiniteError: a logit is NaN or infinite.
    """
    if not bench.answers:
        bench.answers.extend([_answers(subject, bench) for subject in bench.subjects])
    return bench.answers


def _answers(subject: Subject, bench: Bench) -> Answers | None:
    if subject.predictions is not None or subject.model is None or bench.dataset is None:
        return subject.predictions
    if subject.missing:
        names = ", ".join(subject.missing[:3])
        raise MismatchError(
            f"{subject.name}: {len(subject.missing)} weights are not in its folder ({names}), so transformers made them up.\n"
            "Its quality would mean nothing: give a fine-tuned model, or leave the evaluation data out."
        )
    tokenizer = tokenizer_of(subject, bench)
    return judge(subject.model, bench.dataset, tokenizer, batch_size=max(bench.config.batch_sizes))


def tokenizer_of(subject: Subject, bench: Bench) -> Any:
    """The one that pads the evaluation data; the subject's own where the bench has none.

    Raises:
        MismatchError: there is neither, or it cannot be loaded.
    """
    if bench.tokenizer is not None:
        return bench.tokenizer
    from transformers import AutoTokenizer

    if subject.folder is None:
        raise MismatchError(f"{subject.name}: evaluation data came without a tokenizer; give tokenizer=.")
    with explained(f"tokenizer of {subject.name}"):
        return AutoTokenizer.from_pretrained(str(subject.folder), local_files_only=True, trust_remote_code=False)

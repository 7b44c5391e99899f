"""What models are for: one entry a task. How its rows become tokens stands in ``data``, how its answers are judged in
``measurement``, under the same name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

ProblemType: TypeAlias = Literal["single_label_classification", "multi_label_classification", "regression"]

SENTENCES = "sentence-embedding"
"""The task whose models have no head: their answer is one vector a text."""


@dataclass(frozen=True)
class Task:
    """The facts that several rooms need.

    Attributes:
        auto_class: the class of transformers that loads such a model.
        classes: the table in transformers' ``modeling_auto`` with the names of all such classes.
        pipeline: what the Hub and ``transformers.pipeline`` call it.
        labelled: True where the head is made for the labels of the data, and its size follows from them.
        new_head: True where the head may start random; False where it belongs to the pretrained model and must be in the
            checkpoint.
        drops: True where pretrained checkpoints hold heads of other tasks beside this one's, which are left behind.
        outputs: how many outputs the head has, where they are neither labels nor words.
        problem_type: what a config calls it, where one class serves several tasks.
        data_keys: keys of the ``data`` section that not every task reads.
        floor: whether ``measurement.floor`` can be set against it.
    """

    auto_class: str
    classes: str
    pipeline: str
    labelled: bool = True
    new_head: bool = True
    drops: bool = False
    outputs: int | None = None
    problem_type: ProblemType | None = None
    data_keys: frozenset[str] = frozenset()
    floor: bool = False


TASKS: Mapping[str, Task] = {
    "text-classification": Task(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "text-classification",
        problem_type="single_label_classification",
        data_keys=frozenset({"text_column", "text_pair_column", "label_column"}),
        floor=True,
    ),
    "multi-label-classification": Task(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "text-classification",
        problem_type="multi_label_classification",
        data_keys=frozenset({"text_column", "text_pair_column", "label_column"}),
    ),
    "text-regression": Task(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "text-classification",
        problem_type="regression",
        data_keys=frozenset({"text_column", "text_pair_column", "label_column"}),
    ),
    "token-classification": Task(
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "token-classification",
        data_keys=frozenset({"tokens_column", "tags_column"}),
    ),
    "causal-lm": Task(
        "AutoModelForCausalLM",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "text-generation",
        labelled=False,
        new_head=False,
        data_keys=frozenset({"text_column", "messages_column", "loss_on", "packing"}),
    ),
    "masked-lm": Task(
        "AutoModelForMaskedLM",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "fill-mask",
        labelled=False,
        drops=True,
        data_keys=frozenset({"text_column", "packing", "mask_probability"}),
    ),
    "question-answering": Task(
        "AutoModelForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "question-answering",
        labelled=False,
        outputs=2,
        data_keys=frozenset({"question_column", "context_column", "answers_column", "doc_stride"}),
    ),
    SENTENCES: Task(
        "AutoModel",
        "MODEL_MAPPING_NAMES",
        "feature-extraction",
        labelled=False,
        new_head=False,
        drops=True,
        data_keys=frozenset({"text_column", "text_pair_column", "similarity_column"}),
    ),
    "seq2seq": Task(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "text2text-generation",
        labelled=False,
        new_head=False,
        data_keys=frozenset({"text_column", "target_column", "prefix", "max_target_length"}),
    ),
}

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


def problem_type_of(config: Any) -> str:
    """What a classifier's outputs are: what its config says, else as transformers takes them: one is a number."""
    told: str | None = getattr(config, "problem_type", None)
    return told or ("regression" if getattr(config, "num_labels", None) == 1 else "single_label_classification")


def task_of(class_name: str, problem_type: str | None = None) -> str | None:
    """The task that a model class is for, by its name; None where it is none of the table, as without a head.

    Args:
        class_name: such as ``GPT2LMHeadModel``: the type of a model, or what a config lists under ``architectures``.
        problem_type: of the config.
    """
    from transformers.models.auto import modeling_auto  # here, so that reading a recipe leaves transformers unimported

    fitting = [name for name, task in TASKS.items() if class_name in dict(getattr(modeling_auto, task.classes)).values()]
    typed = [name for name in fitting if TASKS[name].problem_type == problem_type]
    return next(iter([*typed, *fitting]), None)

"""Two functions of your own, what to prune by and what to distil by, against the built-in ones at the same number of steps.

The teacher is the one that bert_classification.py has trained; run that first.
"""

import argparse
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

import hf_shrink
from hf_shrink import DistillationConfig, LossTerm, PruningConfig, ShrinkTrainer
from hf_shrink.data.icd10 import icd10_chapters
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.subjects import Subject
from hf_shrink.pruning.criteria import Criterion

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--teacher", type=Path, default=Path("runs/bert/teacher"), help="folder of the fine-tuned model")
parser.add_argument("--rows", type=int, default=3200, help="texts to learn from; a quarter as many are for the numbers")
parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each student")
parser.add_argument("--out", type=Path, default=Path("runs/own"), help="folder of the models")
options = parser.parse_args()
if not options.teacher.is_dir():
    parser.error(f"no folder {options.teacher}: run examples/bert_classification.py first, or name another --teacher")


def energy(weight: Tensor, stats: dict[str, Tensor]) -> Tensor:
    """What each weight adds to the square of its output, were inputs independent; the lowest scores go.

    Args:
        weight: ``[out, in]``.
        stats: what was recorded while the model trained; here ``input_norm`` ``[in]``, as asked for below.
    """
    return (weight * stats["input_norm"]).square()


def centred_huber(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Huber distance of the logits less their mean, one number a position; padding and averaging are not its business."""
    student, teacher = (logits - logits.mean(dim=-1, keepdim=True) for logits in (student_logits, teacher_logits))
    return F.huber_loss(student, teacher, reduction="none").mean(dim=-1)


# A loss is passed as it is; so is a criterion that needs no statistics.
methods = {
    "built-in": ("magnitude", "forward_kl"),
    "own": (Criterion(energy, needs=("input_norm",)), centred_huber),
}

tokenizer = AutoTokenizer.from_pretrained(options.teacher)
data = icd10_chapters(seed=0, sizes={"train": options.rows, "test": options.rows // 4})
rows = {split: data[split].rename_column("label", "labels") for split in ("train", "test")}
tokens = {
    split: part.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text") for split, part in rows.items()
}
words = {"max_steps": options.steps, "learning_rate": 2e-4, "per_device_train_batch_size": 32, "save_strategy": "no"}
teacher = AutoModelForSequenceClassification.from_pretrained(options.teacher)
models = {"teacher": teacher}
for name, (criterion, loss) in methods.items():
    set_seed(0)
    trainer = ShrinkTrainer(
        AutoModelForSequenceClassification.from_pretrained(options.teacher),  # each student starts from the same weights
        TrainingArguments(options.out / "work", **words),
        train_dataset=tokens["train"],
        processing_class=tokenizer,
        teacher=teacher,
        distillation=DistillationConfig(alpha=0.7, losses=[LossTerm(loss=loss)]),
        pruning=PruningConfig(structure="ffn", criterion=criterion, sparsity=0.5, end_step=options.steps * 2 // 3),
    )
    trainer.train()
    models[name] = trainer.shrink()
    models[name].save_pretrained(options.out / name)
subjects = [Subject(name, model=model) for name, model in models.items()]
how = MeasurementConfig(batch_sizes=(1,), runs=10, memory=False)
print(hf_shrink.compare(measure_all(subjects, dataset=tokens["test"], tokenizer=tokenizer, config=how)).markdown())

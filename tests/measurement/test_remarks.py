"""Sentences come from numbers: each is here because a number says so, and goes away with it."""

from hf_shrink.measurement.remarks import remarks
from hf_shrink.measurement.values import Measurement, Report


def report(name: str, **values: float) -> Report:
    units = {"latency_p50": "ms", "bytes_on_disk": "bytes", "accuracy": "%", "accuracy_difference": "points"}
    settings = {"latency_p50": "cpu, 2 threads, batch 1"}
    return Report(
        name=name,
        measurements=tuple(
            Measurement(name=key, value=value, unit=units.get(key, "parameters"), setting=settings.get(key, ""))
            for key, value in values.items()
        ),
    )


def test_a_step_that_loses_what_an_earlier_one_won_is_named():
    """Faster than the teacher, slower than the float student: without this sentence nobody would keep the float one."""
    found = remarks(
        [report("teacher", latency_p50=14.0), report("shrunk", latency_p50=5.0), report("quantized", latency_p50=5.8)]
    )
    assert found == ["quantized: latency p50 at batch 1 is 1.16x that of shrunk (5.8 ms against 5 ms)."]


def test_noise_is_no_loss_but_bytes_are():
    """Latency varies by some percent from run to run; a file that grew has grown."""
    base = report("teacher", latency_p50=10.0, bytes_on_disk=1000)
    assert remarks([base, report("student", latency_p50=10.4, bytes_on_disk=1000)]) == []
    assert remarks([base, report("student", latency_p50=10.0, bytes_on_disk=1010)]) == [
        "student: weights on disk is 1.01x that of teacher (1.01 kB against 1 kB)."
    ]


def test_a_loss_of_accuracy_says_whether_it_may_be_chance():
    """On a small test set a point is often nothing."""
    base = report("teacher", accuracy=80.0)
    difference = Measurement(name="accuracy_difference", value=-1.0, unit="points", interval=(-2.5, 0.4))
    own = report("student", accuracy=79.0)
    own = own.model_copy(update={"measurements": (*own.measurements, difference)})
    assert remarks([base, own]) == [
        "student: accuracy is 1 points below that of teacher "
        "(95% interval of the difference -2.5 to +0.4, so it may be chance)."
    ]
    assert remarks([base, report("student", accuracy=79.0)]) == ["student: accuracy is 1 points below that of teacher."]
    assert remarks([base, report("student", accuracy=81.0)]) == []


def test_nothing_may_fall_below_the_floor_in_silence():
    """A model worse than counting words is the one thing a reader must be told."""
    floor, teacher = report("floor", accuracy=71.0), report("teacher", accuracy=80.0)
    found = remarks([floor, teacher, report("student", accuracy=70.0)], baseline=1)
    assert "student: accuracy is 1 points below that of floor." in found
    assert not any(line.startswith("floor") for line in found), "the floor is no result of the run"


def test_embeddings_and_zeros_are_told_where_they_matter():
    """Half of a small encoder is embeddings, and zeros save no byte."""
    dense = report("teacher", parameters=1000, parameters_non_embedding=900, parameters_non_zero=1000)
    sparse = report("student", parameters=1000, parameters_non_embedding=240, parameters_non_zero=600)
    assert remarks([dense]) == []
    assert remarks([dense, sparse]) == [
        "Embeddings are 76% of the parameters of student; shrinking its layers does not touch them.",
        "student: 40% of the parameters are zeros, which take as many bytes as other values.",
    ]


def test_what_was_not_measured_is_not_remarked():
    assert remarks([report("teacher"), report("student", latency_p50=9.0)]) == []


def test_embeddings_are_named_beside_a_graph_too():
    """A graph does not tell its parameters: with one beside the model, the largest part of it went unsaid."""
    float_model = report("quantized", parameters=100, parameters_non_embedding=25)
    graph = report("onnx", bytes_on_disk=10)
    assert remarks([report("teacher"), float_model, graph]) == [
        "Embeddings are 75% of the parameters of quantized; shrinking its layers does not touch them."
    ]


def test_a_loss_against_the_step_before_says_where_it_lies_within_the_interval():
    """One text of 1,600 read as if the step had made the model worse."""

    def scored(name: str, value: float) -> Report:
        accuracy = Measurement(name="accuracy", value=value, unit="%", interval=(value - 2, value + 2))
        return Report(name=name, measurements=(accuracy,))

    found = remarks([scored("teacher", 70.0), scored("shrunk", 75.0), scored("quantized", 74.9), scored("onnx", 71.0)])
    assert found == [
        "quantized: accuracy is 0.1 points below that of shrunk (inside its own 95% interval).",
        "onnx: accuracy is 3.9 points below that of quantized.",
    ]

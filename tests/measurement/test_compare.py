"""Tables: nothing invented, nothing compared that was measured differently, nothing that breaks the page."""

import io
import json

import pytest
from rich.console import Console

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.reports import NAME, read_report
from hf_shrink.measurement.values import Measurement, Report


def latency(value: float, *, batch: int = 1, threads: int = 2, precision: str = "float32") -> Measurement:
    setting = f"cpu, {threads} threads, batch {batch}, 64 tokens, {precision}"
    return Measurement(name="latency_p50", value=value, unit="ms", setting=setting)


def size(value: int) -> Measurement:
    return Measurement(name="bytes_on_disk", value=value, unit="bytes", setting="*.safetensors")


def accuracy(value: float, samples: str = "100 examples, labels aa") -> Measurement:
    return Measurement(name="accuracy", value=value, unit="%", setting=samples, interval=(value - 4, value + 4))


TEACHER = Report(name="teacher", measurements=(accuracy(80.0), size(90_900_000), latency(14.2), latency(400.0, batch=32)))
SMALL = Report(name="small", title="8 bits", measurements=(accuracy(78.0), size(48_000_000), latency(16.3, precision="8-bit")))


def test_cells_hold_values_intervals_and_ratios_to_the_baseline():
    """48.0 of 90.9 is 0.53, and 16.3 of 14.2 is 1.15: slower, and it says so."""
    lines = compare([TEACHER, SMALL]).markdown().splitlines()
    assert lines[0] == "|  | teacher (baseline) | 8 bits |"
    assert "| weights stored in | float32 | 8-bit |" in lines
    assert r"| accuracy | 80.0 % \[76.0, 84.0\] | 78.0 % \[74.0, 82.0\] |" in lines
    assert "| weights on disk | 90.9 MB | 48 MB (0.53x) |" in lines
    assert "| latency p50, batch 1 | 14.2 ms | 16.3 ms (1.15x) |" in lines
    assert "| latency p50, batch 32 | 400 ms |  |" in lines, "a missing measurement is an empty cell"


def test_differences_follow_from_two_scores_but_only_on_the_same_samples():
    """Reports of two test sets must not yield a gain."""
    found = {row.name: row for row in compare([TEACHER, SMALL]).rows}
    assert found["accuracy_difference"].cells[1].measurement.value == pytest.approx(-2.0)
    assert found["accuracy_difference"].cells[1].measurement.interval is None, "unpaired: no interval is made up"
    assert found["accuracy_recovery"].cells[1].measurement.value == pytest.approx(97.5)
    assert found["accuracy_difference"].cells[0] is None
    other = Report(name="other", measurements=(accuracy(99.0, "100 examples, labels bb"),))
    assert "accuracy_difference" not in {row.name for row in compare([TEACHER, other]).rows}


def test_what_was_measured_differently_gets_rows_of_its_own():
    """One thread against two is no slow-down."""
    table = compare([TEACHER, Report(name="b", measurements=(latency(30.0, threads=1),))])
    rows = [row for row in table.rows if row.kind == "latency p50" and "batch 1 " in row.label]
    assert len(rows) == 2 and len({row.label for row in table.rows}) == len(table.rows)
    assert all(cell is None or cell.ratio is None for row in rows for cell in row.cells)


def test_the_baseline_can_be_named_and_a_wrong_one_is_refused():
    table = compare([TEACHER, SMALL], baseline="small")
    assert table.baseline == 1
    assert {row.name: row for row in table.rows}["bytes_on_disk"].cells[0].ratio == pytest.approx(90.9 / 48.0)
    with pytest.raises(RecipeError, match="there are: teacher, small"):
        compare([TEACHER, SMALL], baseline="student")
    with pytest.raises(RecipeError, match="nothing given"):
        compare([])


def test_json_and_terminal_say_the_same_as_markdown():
    """Three renderings that disagree leave nobody knowing which is true."""
    table = compare([TEACHER, SMALL])
    data = json.loads(json.dumps(table.to_json()))
    assert data["baseline"] == "teacher" and [c["name"] for c in data["columns"]] == ["teacher", "small"]
    rows = {row["name"] + row["label"]: row["cells"] for row in data["rows"]}
    assert rows["bytes_on_diskweights on disk"][1]["ratio"] == pytest.approx(48 / 90.9)
    assert rows["latency_p50latency p50, batch 32"] == [{"value": 400.0, "unit": "ms"}, None]
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(table.rich())
    shown = out.getvalue()
    for line in table.grid():
        assert all(text in shown for text in line)


def test_titles_from_outside_break_neither_table_nor_terminal():
    """A bar in a title adds a column; an escape sequence rewrites the screen; markup hides text."""
    title = "a|b\n<script>alert(1)</script> [bold]x[/bold] \x1b[31mred https://evil.example `t`"
    table = compare([TEACHER, SMALL.model_copy(update={"title": title})])
    lines = table.markdown().splitlines()
    assert lines[0].replace("\\|", "").count("|") == lines[2].count("|") == 4
    assert "<script" not in lines[0].split("`")[0]
    out = io.StringIO()
    Console(file=out, width=300, color_system=None).print(table.rich())
    assert "[bold]x[/bold]" in out.getvalue() and "\x1b" not in out.getvalue()


def run_folder(path, stages, baseline):
    path.mkdir()
    data = {"schema_version": 1, "baseline": baseline, "stages": [stage.to_stage() for stage in stages]}
    (path / NAME).write_text(json.dumps(data))
    return path


def test_a_run_compares_its_stages_and_several_runs_their_last_ones(tmp_path):
    first = run_folder(tmp_path / "first", [SMALL, TEACHER], "teacher")
    second = run_folder(tmp_path / "second", [TEACHER, SMALL], "teacher")
    alone = compare([first])
    assert alone.names == ("small", "teacher") and alone.baseline == 1
    assert compare([first, str(second)]).names == ("first", "second")
    assert read_report(second) == ([TEACHER, SMALL], "teacher")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"stages": []}', '{"stages": [{"name": "x", "sparcity": 1}]}', '{"stages": 3}']
)
def test_a_file_that_is_no_report_is_named(tmp_path, text):
    """Read as an empty report it would give an empty, confident table."""
    (tmp_path / NAME).write_text(text)
    with pytest.raises(IntegrityError, match=f"{tmp_path.name}/{NAME}: not a report"):
        read_report(tmp_path)


def test_a_folder_without_a_report_says_so(tmp_path):
    with pytest.raises(RecipeError, match=NAME):
        compare([tmp_path])

"""What follows from two reports: differences and recoveries of scores."""

from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.values import Measurement, Report


def same(report: Report, wanted: Measurement) -> Measurement | None:
    """The measurement of ``report`` that may be compared with ``wanted``: same name, same conditions."""
    return next((m for m in report.measurements if (m.name, m.conditions) == (wanted.name, wanted.conditions)), None)


def scores(report: Report, base: Report) -> list[tuple[Measurement, Measurement]]:
    """Scores (what has a difference in the table) that both took on the same samples, ours first."""
    known = rows()
    pairs = [(own, same(base, own)) for own in report.measurements if f"{own.name}_difference" in known]
    return [(own, other) for own, other in pairs if other is not None]


def against(report: Report, base: Report) -> Report:
    """``report`` with the differences and recoveries that were not measured in pairs; these have no interval."""
    taken = {(m.name, m.conditions) for m in report.measurements}
    added = []
    for own, other in scores(report, base):
        changes = {"difference": (own.value - other.value, "points")}
        if other.value > 0:
            changes["recovery"] = (100 * own.value / other.value, "%")
        for kind, (value, unit) in changes.items():
            if (f"{own.name}_{kind}", own.conditions) not in taken:
                added.append(Measurement(name=f"{own.name}_{kind}", value=value, unit=unit, setting=own.setting))
    return report.model_copy(update={"measurements": (*report.measurements, *added)})

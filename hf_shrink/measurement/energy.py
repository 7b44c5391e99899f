"""What training takes from the socket: energy and CO2, by codecarbon; the one file that needs it."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.files import write_text
from hf_shrink.measurement.config import EnergyConfig
from hf_shrink.measurement.subjects import Bench
from hf_shrink.measurement.values import Measurement
from hf_shrink.quiet import say
from hf_shrink.tables import nearest

FILE = "energy.json"
ENERGY, CO2 = "training_energy", "training_co2"
_SECONDS = 15.0
"""Between two readings; each is written down, so that a kill loses no more than one."""
_GRID = "grid of "
_COUNTERS = frozenset({"intel_rapl", "intel_power_gadget", "windows_emi"})


def energy(bench: Bench) -> list[list[Measurement]]:
    """What was noted down while each subject was trained; nothing of what was not trained, or not watched."""
    return [list(subject.spent) for subject in bench.subjects]


def check_energy(config: EnergyConfig) -> None:
    """Refuse what could not be measured at the end of a run.

    Raises:
        ResourceError: codecarbon is not installed.
        RecipeError: it does not know the country.
    """
    try:
        from codecarbon.input import DataSource
    except ImportError:
        raise ResourceError("measurement.energy: needs codecarbon. Try: pip install 'hf-shrink[energy]'") from None
    source: Any = DataSource  # without types of its own
    known = source().get_global_energy_mix_data()
    if config.country not in known:
        raise RecipeError(
            f"measurement.energy.country: codecarbon has no electricity mix for {config.country!r}."
            f"{nearest(config.country, known)} Give the three letters of ISO 3166, such as DEU, FRA or USA."
        )


@contextmanager
def metered(config: EnergyConfig | None, folder: Path) -> Iterator[dict[str, Any]]:
    """Note down what the machine takes while the body runs; after it the dictionary holds ``energy``, where it is known.

    Readings are kept in ``folder`` as they come. A later call with the same folder goes on from them, so that a training that
    is killed and resumed has the energy of all its parts. What a killed part took after its last reading is lost.

    Args:
        config: the country; None measures nothing.
        folder: made where it is missing; the caller removes it when the training is done.
    """
    found: dict[str, Any] = {}
    if config is None:
        yield found
        return
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    notes = _Notes(path, earlier)
    with _silence():
        tracker = _tracker(config, notes)
        tracker.start()
        try:
            yield found
        finally:
            tracker.stop()
            notes.how = _how(tracker)
            notes.save()
    if notes.total is None:
        say("energy: codecarbon gave no number, so none is reported")
    else:
        found["energy"] = {**notes.total, "country": config.country}


def measurements(noted: dict[str, Any] | None) -> tuple[Measurement, ...]:
    """The two numbers of a trained stage, from what ``metered`` left."""
    if noted is None:
        return ()
    how = f"whole machine, {noted['how']}, codecarbon {noted['codecarbon']}"
    return (
        Measurement(name=ENERGY, value=noted["kwh"], unit="kWh", setting=how),
        Measurement(name=CO2, value=noted["co2_kg"], unit="kg", setting=f"{how}, {_GRID}{noted['country']}"),
    )


def footprint(measured: Iterable[Measurement]) -> tuple[float, str] | None:
    """Grams of CO2 in all, and the country; None where none was measured."""
    found = [m for m in measured if m.name == CO2]
    if not found:
        return None
    country = next((part.removeprefix(_GRID) for part in found[0].parts if part.startswith(_GRID)), "")
    return 1000 * sum(m.value for m in found), country


class _Notes:
    """Takes codecarbon's readings: the sum of earlier parts and this one, in a file that is whole at any time."""

    def __init__(self, path: Path, earlier: dict[str, Any]) -> None:
        self._path, self._earlier = path, earlier
        self.total: dict[str, Any] | None = dict(earlier) or None
        self.how = earlier.get("how", "")

    def out(self, total: Any, delta: Any) -> None:
        """Called at the end, with the sums since the start of this part."""
        here = {"kwh": total.energy_consumed, "co2_kg": total.emissions, "seconds": total.duration}
        if all(math.isfinite(value) and value >= 0 for value in here.values()):
            self.total = {name: self._earlier.get(name, 0.0) + float(value) for name, value in here.items()}
            self.save()

    def live_out(self, total: Any, delta: Any) -> None:
        """Called at each reading."""
        self.out(total, delta)

    def task_out(self, data: Any, experiment_name: str) -> None:
        """There are no tasks."""

    def exit(self) -> None:
        """There is nothing to close."""

    def save(self) -> None:
        """A disk that is full stops the training by itself, and with a better message."""
        if self.total is not None:
            self.total |= {"how": self.how, "codecarbon": version("codecarbon")}
            with suppress(OSError):
                write_text(self._path, json.dumps(self.total))


def _tracker(config: EnergyConfig, notes: _Notes) -> Any:
    """One that asks no network and leaves no file, whatever codecarbon's own settings on this machine say."""
    from codecarbon import OfflineEmissionsTracker

    return OfflineEmissionsTracker(
        country_iso_code=config.country,
        region=None,
        cloud_provider=None,
        country_2letter_iso_code=None,
        electricitymaps_api_token=None,
        emissions_endpoint=None,
        output_methods=[],
        output_handlers=[notes],
        measure_power_secs=_SECONDS,
        api_call_interval=1,
        tracking_mode="machine",
        log_level="critical",
        allow_multiple_runs=True,
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing of codecarbon's log, which it sets up when it is imported."""
    import codecarbon  # noqa: F401

    logger = logging.getLogger("codecarbon")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _how(tracker: Any) -> str:
    """Whether the processor's power was counted, or taken from its model and load."""
    modes = {getattr(part, "_mode", "") for part in getattr(tracker, "_hardware", ())}
    return "processor by its power counters" if modes & _COUNTERS else "no power counters: estimated from model and load"

"""Energy and CO2 of a training: added up over its parts, never doubled, and without network, files or noise."""

import logging
import socket
import sys
from types import SimpleNamespace

import pytest

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.measurement import energy as room
from hf_shrink.measurement.config import EnergyConfig
from hf_shrink.measurement.energy import CO2, ENERGY, FILE, check_energy, footprint, measurements, metered

GERMANY = EnergyConfig(country="DEU")


class Clockwork:
    """A tracker whose readings are what the test says: kWh, kg and seconds since its start."""

    def __init__(self, notes, mode="cpu_load"):
        self.notes, self.last = notes, (0.0, 0.0, 0.0)
        self._hardware = [SimpleNamespace(_mode=mode)]

    def start(self):
        """Nothing has been taken yet."""

    def read(self, *last):
        self.last = last
        self.notes.live_out(self.total, None)

    def stop(self):
        self.notes.out(self.total, None)

    @property
    def total(self):
        return SimpleNamespace(**dict(zip(("energy_consumed", "emissions", "duration"), self.last, strict=True)))


@pytest.fixture
def trackers(monkeypatch):
    made = []
    monkeypatch.setattr(room, "_tracker", lambda config, notes: made.append(Clockwork(notes)) or made[-1])
    monkeypatch.setattr(room, "_silence", lambda: pytest.MonkeyPatch.context())
    monkeypatch.setattr(room, "version", lambda package: "3.3.2")
    return made


def test_a_training_that_is_killed_twice_has_the_energy_of_all_its_parts(trackers, tmp_path):
    """By hand: 0.5 kWh until an error, 0.25 until a kill that stops nobody's tracker, 1 until the end."""
    with pytest.raises(KeyboardInterrupt), metered(GERMANY, tmp_path):
        trackers[-1].read(0.5, 0.2, 60.0)
        raise KeyboardInterrupt
    killed = metered(GERMANY, tmp_path)
    killed.__enter__()
    trackers[-1].read(0.125, 0.05, 15.0)
    trackers[-1].read(0.25, 0.1, 30.0)
    kept = (tmp_path / FILE).read_text()
    trackers[-1].last = (0.0, 0.0, 0.0)  # what the tracker would say if it were stopped has to be of no matter
    with metered(GERMANY, tmp_path) as found:
        trackers[-1].read(1.0, 0.4, 120.0)
    assert '"kwh": 0.75' in kept
    assert found["energy"]["kwh"] == pytest.approx(1.75) and found["energy"]["co2_kg"] == pytest.approx(0.7)
    assert found["energy"]["seconds"] == pytest.approx(210.0)


def test_the_numbers_say_whether_they_were_counted(trackers, tmp_path):
    """An estimate from a processor's data sheet would be taken for a measurement."""
    found = {}
    for mode in ("cpu_load", "intel_rapl"):
        with metered(GERMANY, tmp_path / mode) as noted:
            trackers[-1]._hardware[0]._mode = mode
            trackers[-1].read(0.002, 0.0008, 60.0)
        found[mode] = measurements(noted["energy"])
    energy, co2 = found["cpu_load"]
    assert (energy.name, energy.value, energy.unit) == (ENERGY, 0.002, "kWh") and (co2.name, co2.unit) == (CO2, "kg")
    assert "estimated" in energy.setting and "estimated" not in found["intel_rapl"][0].setting
    assert co2.setting.endswith("grid of DEU")
    assert footprint([energy, co2, co2]) == (pytest.approx(1.6), "DEU") and footprint([energy]) is None


def test_a_number_that_is_none_is_not_reported(trackers, tmp_path):
    with metered(GERMANY, tmp_path) as found:
        trackers[-1].read(float("nan"), 0.1, 60.0)
    assert found == {} and measurements(None) == ()


def test_without_being_asked_nothing_is_measured(tmp_path):
    with metered(None, tmp_path / "scratch") as found:
        pass
    assert found == {} and not (tmp_path / "scratch").exists()


def test_without_codecarbon_it_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon.input", None)
    with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[energy\]'"):
        check_energy(GERMANY)


def test_a_country_without_data_is_refused():
    """codecarbon takes the mean of the world, and says so only in its log."""
    pytest.importorskip("codecarbon", reason="the extra `energy` is not installed")
    with pytest.raises(RecipeError, match=r"energy\.country: .*no electricity mix for 'XXX'"):
        check_energy(EnergyConfig(country="XXX"))
    with pytest.raises(RecipeError, match="country"):
        EnergyConfig(country="Germany")


def test_codecarbon_itself_asks_no_network_writes_no_file_and_says_nothing(monkeypatch, tmp_path, capfd):
    """It writes emissions.csv where a run was started, unless told not to."""
    pytest.importorskip("codecarbon", reason="the extra `energy` is not installed")
    calls = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    monkeypatch.setenv("CODECARBON_SAVE_TO_API", "true")
    monkeypatch.chdir(tmp_path)
    before = logging.getLogger("codecarbon").level
    with metered(GERMANY, tmp_path / "scratch") as found:
        sum(range(3_000_000))
    assert found["energy"]["kwh"] > 0 and found["energy"]["co2_kg"] > 0
    assert calls == [] and [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [FILE]
    assert "codecarbon" not in "".join(capfd.readouterr()) and logging.getLogger("codecarbon").level == before

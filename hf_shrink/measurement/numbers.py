"""Numbers as people read them: three digits and a unit."""

_SCALED = {"parameters": "", "MACs": "", "bytes": "B"}
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float, unit: str) -> str:
    """``22.7 M`` parameters, ``90.9 MB``, ``8.42 ms``, ``78.3 %``, ``-0.8 points``; M is a million, never 2**20."""
    if unit == "points":
        return f"{value:+.1f} points"
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "x":
        return f"{value:.3f}x"
    if unit not in _SCALED:
        return f"{digits(value)} {unit}".strip()
    factor, prefix = next(((f, p) for f, p in _STEPS if abs(value) >= f), (1.0, ""))
    return f"{digits(value / factor)} {prefix}{_SCALED[unit]}".strip()


def digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers of more digits stay whole."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    shown = f"{value:.3g}"
    return shown if "e" not in shown else f"{value:.6f}"


def spread(interval: tuple[float, float], unit: str) -> str:
    """``[76.2, 80.3]``, signed for differences."""
    low, high = interval
    if unit == "points":
        return f"[{low:+.1f}, {high:+.1f}]"
    return f"[{low:.1f}, {high:.1f}]" if unit == "%" else f"[{_finely(low, unit)}, {_finely(high, unit)}]"


def _finely(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit == "x" else digits(value)

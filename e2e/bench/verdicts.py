"""Judges series of samples: is a figure bounded, is a rate steady? Pure; the endurance run and its tests use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB: Final = 2**20
GROWTH_MAX: Final = 0.10
"""How much higher the last quarter's maximum may be than the one of the quarter before it."""

RATE_SHARE_MIN: Final = 0.9
"""Least share of the target rate in every window."""


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of one node, sampled at even distances."""

    title: str
    samples: list[float] = field(default_factory=list)

    @property
    def last_half(self) -> list[float]:
        """What is judged: by then the figure must have stopped growing."""
        return self.samples[len(self.samples) // 2 :]

    def growth(self) -> float:
        """
        Share by which the maximum of the last quarter is above the maximum of the third quarter.

        Maxima, because logs and stores are saw teeth: they grow, are cut, and grow again.
        """
        half = self.last_half
        third, last = half[: len(half) // 2], half[len(half) // 2 :]
        return max(last) / max(third) - 1 if third and max(third) > 0 else 0.0

    def slope_per_sample(self) -> float:
        """Least squares over the last half."""
        half = self.last_half
        middle = (len(half) - 1) / 2
        mean = sum(half) / len(half)
        spread = sum((at - middle) ** 2 for at in range(len(half)))
        return sum((at - middle) * (value - mean) for at, value in enumerate(half)) / spread if spread else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One criterion, whether it holds, and why."""

    criterion: str
    ok: bool
    reason: str

    def line(self) -> str:
        """One line of the report."""
        return f"{'ok' if self.ok else 'NOT ok':>6}  {self.criterion}: {self.reason}"


def below(series: Series, limit_mib: float) -> Verdict:
    """The maximum of the whole run is at most a limit."""
    peak = max(series.samples) / MIB
    return Verdict(f"{series.title} at most {limit_mib:,.0f} MiB", peak <= limit_mib, f"the maximum is {peak:,.1f} MiB")


def bounded(series: Series, bound_mib: float) -> Verdict:
    """The figure stays below a bound, or has stopped growing in the last half."""
    growth, peak = series.growth(), max(series.samples) / MIB
    said = f"the last quarter's maximum is {100 * growth:+.1f} % of the third's; the highest is {peak:,.1f} MiB"
    criterion = f"{series.title} below {bound_mib:,.0f} MiB or grows less than {100 * GROWTH_MAX:.0f} %"
    return Verdict(criterion, growth < GROWTH_MAX or peak <= bound_mib, said)


def steady(rates: Sequence[float], target: float) -> Verdict:
    """Every window reaches its share of the target rate."""
    lowest = min(rates) / target
    return Verdict(
        f"rate in every window at least {RATE_SHARE_MIN} of {target:,.0f}/s",
        lowest >= RATE_SHARE_MIN,
        f"the lowest of {len(rates)} is {lowest:.3f} of it",
    )


def window_rates(requests: Sequence[float], sample_s: float, window_s: float) -> list[float]:
    """Rates of whole windows out of the requests counted per sample; a last part of a window is left out."""
    step = max(1, round(window_s / sample_s))
    starts = range(0, len(requests) - step + 1, step)
    rates = [sum(requests[start : start + step]) / (step * sample_s) for start in starts]
    return rates or [sum(requests) / (len(requests) * sample_s)]

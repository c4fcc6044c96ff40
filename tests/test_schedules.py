"""Schedules: every one, through every law, and a few values by hand."""

from __future__ import annotations

import math

import pytest

from prunus import schedules
from prunus.schedules import Schedule

ALL = [schedules.constant, schedules.cosine, schedules.cubic, schedules.linear, schedules.one_cycle]
GRID = [i / 1000 for i in range(1001)]

every = pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.__name__)


def test_the_table_holds_every_schedule() -> None:
    found = {f for f in vars(schedules).values() if getattr(f, "__module__", "") == schedules.__name__}
    assert found == set(ALL)


@every
def test_shares_are_between_none_and_all(schedule: Schedule) -> None:
    assert all(0 <= schedule(p) <= 1 for p in GRID)


@every
def test_they_never_fall(schedule: Schedule) -> None:
    shares = [schedule(p) for p in GRID]
    assert shares == sorted(shares)


@every
def test_they_end_at_all(schedule: Schedule) -> None:
    assert schedule(1.0) == 1.0
    assert schedule(1) == 1


@pytest.mark.parametrize("schedule", [s for s in ALL if s is not schedules.constant], ids=lambda s: s.__name__)
def test_they_start_at_nothing(schedule: Schedule) -> None:
    assert schedule(0.0) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    [
        (schedules.constant, 0.0, 1.0),
        (schedules.constant, 0.3, 1.0),
        (schedules.linear, 0.3, 0.3),
        (schedules.cubic, 0.1, 0.271),  # 1 - 0.729
        (schedules.cubic, 0.9, 0.999),
        (schedules.cosine, 1 / 3, 0.25),  # cos 60° = 1/2
        (schedules.cosine, 0.5, 0.5),
        (schedules.cosine, 0.25, (1 - math.sqrt(0.5)) / 2),
        (schedules.one_cycle, 0.0, 0.0066936769),  # (1 + e^-9) / (1 + e^5), this and the next two by bc -l
        (schedules.one_cycle, 5 / 14, 0.5000617049),  # (1 + e^-9) / 2
        (schedules.one_cycle, 0.5, 0.8809057770),  # (1 + e^-9) / (1 + e^-2)
    ],
)
def test_values_follow_the_formulas(schedule: Schedule, progress: float, share: float) -> None:
    assert schedule(progress) == pytest.approx(share, abs=1e-9)

"""Intervals and paired tests: published figures, scipy as a reference, laws, and coverage by exact enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from prunus.errors import MeasureError
from prunus.statistics import (
    accuracy_interval,
    compare_timings,
    mcnemar,
    mean_interval,
    median_quartiles,
    paired,
    wilson,
)

few = settings(max_examples=60, deadline=None)
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 400))  # b, c and those that agree
reals = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40)


def table(b: int, c: int, n: int) -> tuple[Tensor, Tensor]:
    """Scores of n samples of which b are right only before and c only after; the others agree, half of them right."""
    agreeing = [1] * ((n - b - c) // 2) + [0] * (n - b - c - (n - b - c) // 2)
    return torch.tensor([1] * b + [0] * c + agreeing), torch.tensor([0] * b + [1] * c + agreeing)


# Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@few
@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.01, 0.999))
def test_wilson_is_scipys(n: int, share: float, confidence: float) -> None:
    expected = stats.binomtest(round(share * n), n).proportion_ci(confidence, method="wilson")
    assert wilson(round(share * n), n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@few
@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_contains_the_share_and_mirrors_when_right_and_wrong_swap(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-14)


@few
@given(st.integers(1, 200), st.floats(0, 1), st.integers(2, 9))
def test_wilson_shrinks_with_n_and_grows_with_confidence(n: int, share: float, times: int) -> None:
    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    successes = round(share * n)
    assert width(wilson(successes * times, n * times)) < width(wilson(successes, n)) < width(wilson(successes, n, 0.99))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
def test_wilson_covers_the_true_share_about_95_times_in_100(share: float) -> None:
    n = 60
    covering = [k for k in range(n + 1) if wilson(k, n)[0] <= share <= wilson(k, n)[1]]
    coverage = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in covering)
    assert 0.93 < coverage < 0.975


# McNemar


def test_mcnemar_gives_the_exact_p_by_hand() -> None:
    assert mcnemar(*table(1, 7, 21)) == pytest.approx(2 * (1 + 8) / 2**8, rel=1e-12)  # C(8, 0) + C(8, 1)
    assert mcnemar(*table(0, 0, 5)) == 1
    assert mcnemar(*table(3, 3, 9)) == 1


@few
@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven(b: int, c: int) -> None:
    tosses = list(itertools.product((1, -1), repeat=b + c))
    uneven = sum(abs(sum(toss)) >= abs(b - c) for toss in tosses)
    assert mcnemar(*table(b, c, b + c + 1)) == pytest.approx(uneven / len(tosses), rel=1e-12)


@few
@given(counts)
def test_mcnemar_is_symmetric_a_probability_and_scipys(counts: tuple[int, int, int]) -> None:
    b, c, n = counts[0], counts[1], sum(counts)
    p = mcnemar(*table(b, c, n))
    assert 0 < p <= 1
    assert mcnemar(*table(c, b, n)) == p
    assert p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-10)


def test_mcnemar_holds_for_pooled_seeds_of_large_test_sets() -> None:
    # scipy 1.17.1: binomtest(20_000, 40_600).pvalue
    assert mcnemar(*table(20_000, 20_600, 500_000)) == pytest.approx(0.00295063108, rel=1e-8)


# The paired comparison of 0/1 scores


@pytest.mark.parametrize(
    ("b", "c", "n", "confidence", "low", "high", "tolerance"),
    [
        # Tango 1998, section 6.1, table V (soft contact lenses): the lower 90 % limit he prints
        (0, 1, 44, 0.90, -0.096, None, 5e-4),
        # R, PropCIs 0.3-0: scoreci.mp(20, 60, 1000, 0.95), scoreci.mp(25, 28, 618, 0.9), which take (c, b)
        (60, 20, 1000, 0.95, 0.0231, 0.0584, 5e-5),
        (28, 25, 618, 0.90, -0.0148, 0.0247, 5e-5),
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850 (airway hyper-responsiveness)
        (1, 7, 21, 0.95, -0.517, -0.026, 5e-4),
    ],
)
def test_paired_gives_the_published_intervals(
    b: int, c: int, n: int, confidence: float, low: float, high: float | None, tolerance: float
) -> None:
    change = paired(*table(b, c, n), confidence)
    assert change.low == pytest.approx(low, abs=tolerance)
    assert high is None or change.high == pytest.approx(high, abs=tolerance)


def test_paired_says_what_changed() -> None:
    change = paired(torch.tensor([1, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 0]))
    assert (change.n, change.before, change.after, change.b, change.c, change.binary) == (5, 0.6, 0.4, 2, 1, True)
    assert change.drop == pytest.approx(0.2)
    assert change.p == 1


@few
@given(counts, st.floats(0.5, 0.99))
def test_the_paired_interval_solves_tangos_equation(counts: tuple[int, int, int], confidence: float) -> None:
    b, c, n = counts[0], counts[1], sum(counts)
    change = paired(*table(b, c, n), confidence)
    z = stats.norm.ppf((1 + confidence) / 2)
    for bound, sign in ((change.low, 1), (change.high, -1)):
        # Tango 1998, eq. 24-26, with Delta = -drop; the numerator and z times the root, undivided
        delta = -bound
        linear, constant = -b - c - (2 * n - b + c) * delta, c * delta * (delta + 1)
        q = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        root = math.sqrt(max(0.0, n * (2 * q - delta * (delta + 1))))
        assert b - c + n * delta == pytest.approx(sign * z * root, abs=1e-5)


@few
@given(counts)
def test_the_paired_interval_contains_the_drop_and_mirrors(counts: tuple[int, int, int]) -> None:
    b, c, n = counts[0], counts[1], sum(counts)
    change, mirrored = paired(*table(b, c, n)), paired(*table(c, b, n))
    assert -1 <= change.low <= change.drop <= change.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-change.high, -change.low), abs=1e-9)
    assert mirrored.drop == -change.drop
    assert mirrored.p == change.p


@few
@given(counts)
def test_the_paired_interval_excludes_zero_when_mcnemars_chi_square_says_so(counts: tuple[int, int, int]) -> None:
    b, c, n = counts[0], counts[1], sum(counts)
    change = paired(*table(b, c, n))
    significant = abs(b - c) > stats.norm.ppf(0.975) * math.sqrt(b + c)
    assert (change.low > 0 or change.high < 0) == significant


@few
@given(counts, st.integers(2, 5))
def test_pooling_seeds_is_concatenation(counts: tuple[int, int, int], seeds: int) -> None:
    b, c, n = counts[0], counts[1], sum(counts)
    before, after = table(b, c, n)
    one, pooled = paired(before, after), paired(before.repeat(seeds), after.repeat(seeds))
    assert (pooled.n, pooled.b, pooled.c) == (n * seeds, b * seeds, c * seeds)
    assert pooled.drop == pytest.approx(one.drop)
    assert pooled.high - pooled.low < one.high - one.low


def test_without_a_discordant_sample_the_width_is_z2_over_n_plus_z2() -> None:
    change = paired(*table(0, 0, 50))
    z2 = stats.norm.ppf(0.975) ** 2
    assert (change.low, change.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))


def test_when_every_sample_is_lost_the_interval_ends_at_one() -> None:
    change = paired(*table(8, 0, 8))
    assert (change.drop, change.high) == (1.0, 1.0)
    assert 0 < change.low < 1


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.2), (0.15, 0.05)])
def test_the_paired_interval_covers_the_true_drop_about_95_times_in_100(lost: float, gained: float) -> None:
    n = 40
    coverage = 0.0
    for b in range(n + 1):
        for c in range(min(n - b, 25) + 1):  # more gains than 25 of 40 hardly occur at these shares
            weight = math.comb(n, b) * math.comb(n - b, c) * lost**b * gained**c * (1 - lost - gained) ** (n - b - c)
            if weight > 1e-9:
                change = paired(*table(b, c, n))
                coverage += weight * (change.low <= lost - gained <= change.high)
    assert 0.93 < coverage < 0.99


# Scores that are not 0 or 1


# Student 1908, section 9: extra hours of sleep of ten patients under two drugs.
SLEEP = (
    torch.tensor([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], dtype=torch.float64),
    torch.tensor([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4], dtype=torch.float64),
)


def test_paired_gives_students_own_example() -> None:
    change = paired(*SLEEP)
    # R 4: with(sleep, t.test(extra[group == 1], extra[group == 2], paired = TRUE))
    assert (change.low, change.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert change.p == pytest.approx(0.002833, abs=5e-7)
    assert (change.drop, change.b, change.c, change.binary) == (pytest.approx(-1.58), 0, 9, False)


@few
@given(reals, st.floats(0.05, 0.999))
def test_the_mean_interval_is_scipys(scores: list[float], confidence: float) -> None:
    error = stats.sem(scores)
    expected = stats.t.interval(confidence, len(scores) - 1, np.mean(scores), error) if error else (scores[0],) * 2
    scale = max(map(abs, scores)) + 1
    assert mean_interval(torch.tensor(scores), confidence) == pytest.approx(expected, rel=1e-8, abs=1e-8 * scale)


@pytest.mark.parametrize("n", [2, 3, 4, 11, 101, 1001])
@pytest.mark.parametrize("shift", [1e-6, 0.01, 0.1, 0.3])
def test_the_paired_t_test_is_scipys(n: int, shift: float) -> None:
    before = torch.linspace(-1, 1, n, dtype=torch.float64) + shift
    expected = stats.ttest_rel(before.numpy(), np.zeros(n)).pvalue
    assert paired(before, torch.zeros(n, dtype=torch.float64)).p == pytest.approx(expected, rel=1e-7, abs=1e-300)


@few
@given(reals, st.floats(0.1, 10), st.floats(-10, 10))
def test_the_mean_interval_contains_the_mean_and_moves_with_it(scores: list[float], by: float, shift: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    low, high = mean_interval(values)
    assert low <= float(values.mean()) <= high
    assert mean_interval(values * by + shift) == pytest.approx((low * by + shift, high * by + shift), abs=1e-6)


@few
@given(reals, st.integers(2, 5))
def test_the_mean_interval_shrinks_with_n(scores: list[float], times: int) -> None:
    low, high = mean_interval(torch.tensor(scores))
    lower, higher = mean_interval(torch.tensor(scores).repeat(times))
    assert higher - lower < high - low or len(set(scores)) == 1


def test_equal_scores_give_a_certain_answer() -> None:
    same = torch.tensor([0.25, 0.5, 0.75])
    unchanged, moved = paired(same, same), paired(same, same - 0.125)
    assert (unchanged.low, unchanged.high, unchanged.p) == (0.0, 0.0, 1.0)
    assert (moved.low, moved.high, moved.p) == (0.125, 0.125, 0.0)


def test_the_accuracy_interval_follows_the_scores() -> None:
    right, graded = torch.tensor([True, True, False]), torch.tensor([0.2, 1.0, 0.0])
    assert accuracy_interval(right) == wilson(2, 3)
    assert accuracy_interval(right.float(), 0.8) == wilson(2, 3, 0.8)
    assert accuracy_interval(graded) == mean_interval(graded)


@few
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=50))
def test_median_and_quartiles_are_numpys(times: list[float]) -> None:
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    assert median_quartiles(times) == pytest.approx((middle, low, high))
    assert median_quartiles(torch.tensor(times, dtype=torch.float64)) == median_quartiles(times)


# Errors


ones = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: wilson(0, 0), r"n=0.*expected n >= 1", id="wilson-of-nothing"),
        pytest.param(lambda: wilson(4, 3), r"successes=4, n=3", id="more-successes-than-n"),
        pytest.param(lambda: wilson(1, 3, 95), r"confidence=95 is outside \(0, 1\)", id="confidence-in-percent"),
        pytest.param(lambda: mean_interval(ones / 2, 1.0), r"confidence=1.0 is outside", id="certainty"),
        pytest.param(lambda: mcnemar(ones[:0], ones[:0]), r"before have shape \(0,\)", id="empty"),
        pytest.param(lambda: mcnemar(ones, ones[:2]), r"3 scores before and 2 after", id="mismatched"),
        pytest.param(lambda: mcnemar(ones, ones / 2), r"0 or 1; use prunus.statistics.paired", id="not-binary"),
        pytest.param(lambda: paired(ones, ones * math.nan), r"3 of 3 scores after are not finite", id="nan"),
        pytest.param(lambda: paired(ones[None], ones[None]), r"shape \(1, 3\); expected \(n,\)", id="two-dimensional"),
        pytest.param(lambda: mean_interval(ones[:1] / 2), r"expected n >= 2.*bare float", id="one-graded-score"),
        pytest.param(lambda: accuracy_interval(torch.tensor(0.5)), r"shape \(\)", id="scalar"),
        pytest.param(lambda: median_quartiles([]), r"times have shape \(0,\)", id="no-times"),
        pytest.param(lambda: median_quartiles([1.0, math.inf]), r"1 of 2 times are not finite", id="endless-time"),
    ],
)
def test_what_cannot_be_judged_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        call()


# Two lists of timings


def walsh(differences: list[float]) -> list[float]:
    pairs = itertools.combinations_with_replacement(differences, 2)
    return sorted((a + b) / 2 for a, b in pairs)


def test_the_change_of_timings_by_hand() -> None:
    ratios = [0.5, 0.52, 0.48, 0.51, 0.49, 0.6, 0.5]  # n = 7: 14 - 1.96 sqrt(35) = 2.4, so the second mean of 28
    before = [1.0, 2.0, 1.0, 4.0, 1.0, 1.0, 8.0]
    change = compare_timings(before, [b * r for b, r in zip(before, ratios, strict=True)])
    means = walsh([math.log(r) for r in ratios])
    assert [change.low, change.high] == pytest.approx([math.exp(means[1]), math.exp(means[-2])])
    assert change.ratio == pytest.approx(math.exp((means[13] + means[14]) / 2))
    assert change.of_medians == pytest.approx(0.6)  # sorted, the fourth of each: 1.0 and 0.6
    assert (change.n, change.differs) == (7, True)


@given(st.integers(6, 40), st.integers(0, 10**6), st.floats(0.5, 2))
def test_the_interval_is_the_test_of_wilcoxon_inverted(n: int, seed: int, shift: float) -> None:
    draw = np.random.default_rng(seed)
    before, after = draw.lognormal(0, 0.1, n), shift * draw.lognormal(0, 0.1, n)
    change = compare_timings(before.tolist(), after.tolist())
    p = stats.wilcoxon(np.log(after / before), method="exact").pvalue  # scipy 1.16
    assert change.low <= change.ratio <= change.high
    assert (not change.differs) if p > 0.07 else change.differs or p > 0.03


@given(st.integers(6, 30), st.integers(0, 10**6))
def test_the_two_lists_change_places(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.lognormal(0, 1, n).tolist(), draw.lognormal(0, 1, n).tolist()
    there, back = compare_timings(a, b), compare_timings(b, a)
    assert (1 / back.ratio, 1 / back.high, 1 / back.low) == pytest.approx((there.ratio, there.low, there.high))


def test_drift_and_an_interruption_change_nothing() -> None:
    noise = np.random.default_rng(0).normal(1, 0.01, (2, 60))
    drift = np.linspace(1, 3, 60)
    quiet = compare_timings(noise[0], 0.9 * noise[1])
    assert compare_timings(drift * noise[0], 0.9 * drift * noise[1]).low == pytest.approx(quiet.low)
    noise[1, 5] = 100
    assert compare_timings(noise[0], 0.9 * noise[1]).ratio == pytest.approx(quiet.ratio, rel=0.01)


@pytest.mark.parametrize("kind", ["lognormal", "two-speeds", "drift"])
def test_dense_against_dense_raises_one_alarm_in_twenty(kind: str) -> None:
    draw = np.random.default_rng(1)
    changes = []
    for _ in range(200):
        pair = draw.lognormal(0, 0.05, (2, 100))
        pair *= draw.choice([1, 1.3], (2, 100)) if kind == "two-speeds" else 1
        pair *= np.linspace(1, 2, 100) if kind == "drift" else 1
        changes.append(compare_timings(pair[0], pair[1]))
    assert 0.01 <= np.mean([c.differs for c in changes]) <= 0.09
    assert abs(np.median([c.ratio for c in changes]) - 1) < 0.03


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        pytest.param([1.0] * 5, [1.0] * 5, "5 rounds are too few for an interval", id="few"),
        pytest.param([1.0] * 7, [1.0] * 8, "7 times before and 8 after", id="lengths"),
        pytest.param([1.0] * 6, [1.0] * 5 + [0.0], "A time is zero or negative", id="zero"),
        pytest.param([1.0] * 6, [1.0] * 5 + [math.nan], "1 of 6 times are not finite", id="nan"),
    ],
)
def test_timings_that_cannot_be_compared(before: list[float], after: list[float], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        compare_timings(before, after)

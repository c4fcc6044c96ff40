"""How sure is a figure: intervals for one model, paired tests for two.

Scores are one number a sample, shape (n,): 0 or 1 (wrong or right), or any finite real, larger is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.distributions import bisect, normal_quantile, student_p, student_quantile
from prunus.errors import MeasureError


@dataclass(frozen=True)
class TimingChange:
    """How the timings of `n` rounds changed from one model to another: `ratio` = after / before, a share above 0.

    (`low`, `high`) is its interval and holds it; `differs` says that 1 is outside, that is, that the change is more
    than noise. `of_medians` is the plain ratio of the two medians.
    """

    n: int
    ratio: float
    low: float
    high: float
    of_medians: float

    @property
    def differs(self) -> bool:
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class PairedChange:
    """What happened to the scores of the same `n` samples between two models.

    `drop` = before - after, a share in [-1, 1] for 0/1 scores; (`low`, `high`) is its interval, `p` the two-sided
    p-value of "no change". `b` samples scored lower after (for 0/1 scores: lost), `c` higher (gained). `binary` says
    which method was used, see `paired`.
    """

    n: int
    before: float
    after: float
    drop: float
    low: float
    high: float
    p: float
    b: int
    c: int
    binary: bool


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of a share from `successes` out of `n`, both within [0, 1].

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with p = successes/n, z the normal quantile. Unlike
    p -+ z sqrt(p (1 - p)/n) it has a width at p = 0 and p = 1, where good models live.

    Raises MeasureError if n < 1, successes are outside [0, n] or confidence is outside (0, 1).

    >>> [round(bound, 4) for bound in wilson(90, 100)]
    [0.8256, 0.9448]

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise MeasureError(f"wilson(successes={successes}, n={n}): expected n >= 1 and 0 <= successes <= n.")
    z = normal_quantile(confidence)
    share, shrink = successes / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # The bounds are exactly 0 and 1 at the ends; rounding must not say otherwise.
    low = 0.0 if successes == 0 else min(center - half, share)
    high = 1.0 if successes == n else max(center + half, share)
    return low, high


def mean_interval(scores: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean of any real scores (n,): mean -+ t(n - 1) s / sqrt(n).

    Exact for normal scores, and close for others once n is some dozens. In the unit of the scores, not clipped.

    Raises MeasureError for fewer than two scores, another shape, non-finite values or a confidence outside (0, 1).

    >>> [round(bound, 3) for bound in mean_interval(torch.tensor([0.2, 0.4, 0.6, 0.8]))]
    [0.089, 0.911]

    Source: Student 1908, "The probable error of a mean", Biometrika 6:1-25, section 3.
    """
    values = _scores(scores, "scores")
    mean, error = _mean_error(values)
    half = student_quantile(confidence, len(values) - 1) * error
    return mean - half, mean + half


def accuracy_interval(scores: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean score (n,): `wilson` if every score is 0 or 1, else `mean_interval`.

    Raises MeasureError as these two do.

    >>> accuracy_interval(torch.tensor([1, 1, 0, 1])) == wilson(3, 4)
    True
    """
    values = _scores(scores, "scores")
    if _is_binary(values):
        return wilson(int(values.sum()), len(values), confidence)
    return mean_interval(values, confidence)


def mcnemar(before: Tensor, after: Tensor) -> float:
    """Exact two-sided p-value, in [0, 1], of "both models are right equally often", from 0/1 scores (n,) each.

    Only discordant samples speak: of b lost and c gained, min(b, c) is binomial(b + c, 1/2) if nothing changed;
    p = min(1, 2 P(X <= min(b, c))). No discordant sample gives 1.

    Raises MeasureError for empty, mismatched, non-finite or non-binary scores.

    >>> before, after = torch.tensor([1, 1, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 0, 0, 0, 0])
    >>> round(mcnemar(before, after), 6)  # 2 / 2**6
    0.03125

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12:153-157; the exact binomial form instead of his chi-square.
    """
    first, second = _pair(before, after)
    if not (_is_binary(first) and _is_binary(second)):
        raise MeasureError("mcnemar needs scores that are 0 or 1; use prunus.statistics.paired for other scores.")
    return _mcnemar_p(*_discordant(first, second))


def paired(before: Tensor, after: Tensor, confidence: float = 0.95) -> PairedChange:
    """Compare two models on the same samples, in the same order: scores (n,) each.

    Scores of 0 and 1: interval of drop = (b - c)/n by Tango's score method, p by `mcnemar`. Tango inverts McNemar's
    own (asymptotic) test, so it depends, like the test, on b, c and n alone; it holds its coverage at small n and at
    b = c = 0, where it is -+ z^2/(n + z^2). Newcombe's method 10 (1998) has no iteration, but takes its width from the
    two shares, which says little when pruned and dense model agree on nearly every sample. As the p is exact and
    thereby cautious, a borderline interval may exclude 0 while p is just above 1 - confidence.

    Other scores: Student's paired t interval and test of before - after; needs n >= 2.

    Seeds are pooled by concatenation. Runs on the same samples are then taken as independent: the answer is about
    these networks on such samples, and optimistic where the seeds agree with each other.

    Raises MeasureError for empty, mismatched or non-finite scores or a confidence outside (0, 1).

    >>> change = paired(torch.tensor([1.0] * 90 + [0.0] * 10), torch.tensor([1.0] * 80 + [0.0] * 19 + [1.0]))
    >>> change.b, change.c, change.drop, round(change.low, 4), round(change.high, 4), round(change.p, 4)
    (10, 1, 0.09, 0.031, 0.1662, 0.0117)

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17:891-908, eq. 24-26; Student 1908, section 3.
    """
    first, second = _pair(before, after)
    b, c = _discordant(first, second)
    binary = _is_binary(first) and _is_binary(second)
    if binary:
        drop, (low, high), p = (b - c) / len(first), _tango(b, c, len(first), confidence), _mcnemar_p(b, c)
    else:
        drop, error = _mean_error(first - second)
        (low, high), p = mean_interval(first - second, confidence), student_p(drop, error, len(first) - 1)
    return PairedChange(
        len(first), float(first.mean()), float(second.mean()), drop, low, high, p, b=b, c=c, binary=binary
    )


def median_quartiles(times: Sequence[float] | Tensor) -> tuple[float, float, float]:
    """Median, lower and upper quartile of some times, linear between neighbours, in the unit of the times.

    Timings have a hard floor and a long tail, so their mean and deviation follow the interruptions, not the model.

    Raises MeasureError for no times or a non-finite one.

    >>> median_quartiles([1.0, 2.0, 3.0, 4.0, 100.0])
    (3.0, 2.0, 4.0)

    Source: Hyndman and Fan 1996, "Sample quantiles in statistical packages", American Statistician 50:361-365, def. 7.
    """
    given = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    values = _scores(given, "times")
    low, middle, high = torch.quantile(values, values.new_tensor([0.25, 0.5, 0.75])).tolist()
    return middle, low, high


def compare_timings(
    before: Sequence[float] | Tensor, after: Sequence[float] | Tensor, confidence: float = 0.95
) -> TimingChange:
    """Compare two models by their timings in the same rounds: times (n,) each, all above 0.

    d_i = log(after_i / before_i) of round i; ratio = exp(median of (d_i + d_j)/2 over i <= j), and its interval are the
    k-th of these n (n + 1)/2 means from either end, k from the normal approximation of the signed-rank statistic.

    Drift hits both timings of a round and leaves d alone; outliers move ranks by one. If nothing changed, either order
    of a round's two timings is as likely, so that false alarms are 1 - confidence whatever the timings' distribution.
    That takes rounds as independent: a machine that is slow for many rounds on end may alarm more often.

    Raises MeasureError for too few rounds (95 % takes at least 6), lists of two lengths, times that are not finite or
    not above 0, and a confidence outside (0, 1).

    >>> change = compare_timings([4.0, 4.1, 8.0, 4.0, 4.2, 4.1, 4.0, 90.0], [2.0, 2.1, 4.1, 2.0, 2.1, 2.0, 2.0, 2.1])
    >>> round(change.ratio, 2), change.of_medians, change.differs
    (0.5, 0.5, True)

    Source: Hodges and Lehmann 1963, "Estimates of location based on rank tests", Ann. Math. Statist. 34:598-611;
    interval and k as in Hollander and Wolfe 1999, "Nonparametric Statistical Methods", section 3.3.
    """
    first, second = _times(before, after)
    n = len(first)
    ratios = (second / first).log()
    i, j = torch.triu_indices(n, n)
    means = ((ratios[i] + ratios[j]) / 2).sort().values
    k = _rank(n, confidence)
    low, high = float(means[k - 1].exp()), float(means[-k].exp())
    medians = float(second.quantile(0.5) / first.quantile(0.5))
    return TimingChange(n, float(means.quantile(0.5).exp()), low, high, medians)


def _rank(n: int, confidence: float) -> int:
    """Which of the sorted means, from either end, bounds the interval; counted from 1."""
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    k = math.floor(n * (n + 1) / 4 - normal_quantile(confidence) * deviation)
    if k < 1:
        raise MeasureError(f"{n} rounds are too few for an interval at confidence={confidence}; 95 % takes at least 6.")
    return k


def _times(before: Sequence[float] | Tensor, after: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    first, second = (_scores(torch.as_tensor(t, dtype=torch.float64), "times") for t in (before, after))
    if len(first) != len(second):
        raise MeasureError(f"{len(first)} times before and {len(second)} after; expected those of the same rounds.")
    if float(torch.cat([first, second]).min()) <= 0:
        raise MeasureError("A time is zero or negative; expected times above 0.")
    return first, second


def _scores(scores: Tensor, name: str) -> Tensor:
    if scores.ndim != 1 or not len(scores):
        raise MeasureError(f"{name} have shape {tuple(scores.shape)}; expected (n,), one value a sample, n >= 1.")
    values = scores.detach().to("cpu", torch.float64)
    bad = int((~values.isfinite()).sum())
    if bad:
        raise MeasureError(f"{bad} of {len(values)} {name} are not finite (NaN or infinite); every sample needs one.")
    return values


def _pair(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    first, second = _scores(before, "scores before"), _scores(after, "scores after")
    if len(first) != len(second):
        raise MeasureError(
            f"{len(first)} scores before and {len(second)} after; a paired comparison needs the same samples in the "
            "same order. Did the evaluation drop or shuffle some?"
        )
    return first, second


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _discordant(before: Tensor, after: Tensor) -> tuple[int, int]:
    return int((before > after).sum()), int((before < after).sum())


def _mcnemar_p(b: int, c: int) -> float:
    n = b + c
    k = torch.arange(min(b, c) + 1, dtype=torch.float64)
    log_choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    tail = math.exp(float(torch.logsumexp(log_choose, 0)) - n * math.log(2))
    return min(1.0, 2 * tail)


def _tango(b: int, c: int, n: int, confidence: float) -> tuple[float, float]:
    z, drop = normal_quantile(confidence), (b - c) / n

    def error(delta: float) -> float:  # of b - c - n delta under "the true drop is delta", at the likeliest q
        linear = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta)))
        q = (root - linear) / (4 * n)
        return math.sqrt(max(0.0, n * (2 * q + delta * (1 - delta))))

    low = bisect(lambda delta: b - c - n * delta - z * error(delta), -1.0, drop)
    high = bisect(lambda delta: b - c - n * delta + z * error(delta), drop, 1.0)
    return low, high


def _mean_error(values: Tensor) -> tuple[float, float]:
    if len(values) < 2:
        raise MeasureError(
            "One score that is not 0 or 1 has no interval; expected n >= 2. If the evaluation yields a single figure, "
            "return it as a bare float."
        )
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))

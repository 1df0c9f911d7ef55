"""Intervals for what is reported: every mean comes with how far it may be off."""

from __future__ import annotations

import numpy as np


def mean_interval(x: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Student-t interval of the mean of independent samples: seeds of a method, or episodes of a policy.

    One method for 3 seeds and for 1000 episodes: it is exact at any N for normal samples, and tends to the normal
    interval, which the central limit theorem gives any samples, as N grows. A bootstrap resamples 3 seeds from
    themselves and comes out far too narrow.

    Args:
        x: ``[N]``.
        confidence: how often the interval covers the true mean, in (0, 1).

    Returns:
        mean, low, high, in the unit of x. One sample says nothing of its spread: low and high are nan.

    Raises:
        ValueError: no samples.
    """
    if len(x) == 0:
        raise ValueError("there is no mean of zero samples: evaluate at least one episode")
    mean = float(np.mean(x))
    if len(x) == 1:
        return mean, float("nan"), float("nan")
    half = _t_quantile(len(x) - 1, confidence) * float(np.std(x, ddof=1)) / float(np.sqrt(len(x)))
    return mean, mean - half, mean + half


def _t_quantile(dof: int, confidence: float) -> float:
    """t with ``P(|T| < t) = confidence`` for Student's T.

    With ``T = sqrt(dof) tan(angle)`` the density of the angle is proportional to ``cos(angle) ** (dof - 1)``, which is
    summed up and inverted here on a grid: right to 6 digits up to 1000 degrees of freedom, and to 3 up to 10^6.
    """
    angle = np.linspace(0.0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (dof - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(dof) * np.tan(np.interp(confidence, cumulative / cumulative[-1], angle)))


def interquartile_mean(
    scores: np.ndarray, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean of the middle half of all runs' scores, with its stratified percentile bootstrap (Agarwal et al. 2021).

    It is less moved by a single failed run than the mean, and by the others more than the median. As in their library
    rliable a quarter of the R M scores, rounded down, is left out on either side, and the bootstrap draws the runs of
    each task by themselves. It has its own random numbers: the same scores always give the same interval.

    Args:
        scores: ``[R, M]``, R runs (seeds) of each of M tasks.
        confidence: in (0, 1).
        resamples: bootstrap draws.

    Returns:
        the mean, low, high. One run says nothing of its spread: low and high are nan.
    """
    runs, tasks = scores.shape
    mean = float(_middle_half(scores.reshape(1, -1))[0])
    if runs == 1:
        return mean, float("nan"), float("nan")
    picks = np.random.default_rng(0).integers(runs, size=(resamples, runs, tasks))
    draws = _middle_half(np.take_along_axis(scores[None], picks, axis=1).reshape(resamples, -1))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return mean, float(low), float(high)


def _middle_half(scores: np.ndarray) -> np.ndarray:
    """``[N, K]``, the mean of each row without the quarter of it that is lowest and highest ``[N]``."""
    left_out = scores.shape[1] // 4
    kept: np.ndarray = np.sort(scores, axis=1)[:, left_out : scores.shape[1] - left_out].mean(1)
    return kept


def normalized_score(
    policy: np.ndarray, expert: np.ndarray, random: np.ndarray, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """``(mean policy - mean random) / (mean expert - mean random)``: 0 acts like chance, 1 like the expert.

    Episode i of all three began from the same reset seed, so a layout that is hard for one is hard for all. The
    percentile bootstrap draws episodes, the same ones for all three, and what they share cancels. It has its own
    random numbers: the same returns always give the same interval.

    Args:
        policy, expert, random: returns ``[N]``, episode i from the same reset seed.
        confidence: in (0, 1).
        resamples: bootstrap draws.

    Returns:
        score, low, high. All nan where the mean of the expert is no better than that of random: then there is no
        scale to measure on. Only low and high are nan where that is so in some resample: the episodes are too few to
        tell the expert from random.

    Raises:
        ValueError: the three differ in length, or are empty.
    """
    if not len(policy) == len(expert) == len(random) > 0:
        raise ValueError(
            f"the score compares the same episodes, but there are {len(policy)} of the policy, {len(expert)} of the "
            f"expert and {len(random)} of random: evaluate all of them on the same reset seeds"
        )
    returns = np.stack([policy, expert, random], axis=1).astype(np.float64)  # [N, 3]
    rng = np.random.default_rng(0)
    draws = np.stack([returns[rng.integers(len(returns), size=len(returns))].mean(0) for _ in range(resamples)])
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(_score(draws), [tail, 1.0 - tail])  # nan if any is
    score = float(_score(returns.mean(0)))
    return (score, float(low), float(high)) if np.isfinite(score) else (score, score, score)


def _score(means: np.ndarray) -> np.ndarray:
    """Score ``[...]`` of the means ``[..., 3]`` of policy, expert and random; nan where the expert is no better."""
    policy, expert, random = np.moveaxis(means, -1, 0)
    scale = np.where(expert > random, expert - random, np.nan)
    return (policy - random) / scale

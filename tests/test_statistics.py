"""Intervals: known quantiles, and the coverage that they promise."""

import numpy as np
import pytest

from magail.statistics import _t_quantile, interquartile_mean, mean_interval, normalized_score


@pytest.mark.parametrize(
    ("dof", "confidence", "table"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.30265), (4, 0.99, 4.60409), (9, 0.95, 2.26216), (999, 0.95, 1.96234)],
)
def test_t_quantiles_are_those_of_the_tables(dof: int, confidence: float, table: float) -> None:
    assert _t_quantile(dof, confidence) == pytest.approx(table, rel=1e-5)


def test_t_quantile_tends_to_the_normal_one() -> None:
    assert _t_quantile(1_000_000, 0.95) == pytest.approx(1.95996, rel=2e-3)


def test_mean_interval_in_closed_form() -> None:
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert high - mean == pytest.approx(4.30265 / np.sqrt(3))
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize("n", [3, 10, 200])
def test_mean_interval_covers_the_mean_as_often_as_promised(n: int) -> None:
    rng = np.random.default_rng(n)
    intervals = [mean_interval(rng.normal(5.0, 2.0, n)) for _ in range(2000)]
    coverage = np.mean([low < 5.0 < high for _, low, high in intervals])
    assert coverage == pytest.approx(0.95, abs=0.02)  # 4 standard errors


def test_one_sample_has_a_mean_but_no_interval() -> None:
    mean, low, high = mean_interval(np.array([4.0]))
    assert mean == 4.0
    assert np.isnan([low, high]).all()


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="zero samples"):
        mean_interval(np.array([]))


def episodes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns of a policy with the true score 0.8, an expert and random, on layouts that are as hard for all."""
    layout = rng.normal(0.0, 5.0, n)
    policy, expert, random = (mean + layout + rng.normal(0.0, 1.0, n) for mean in (-12.0, -10.0, -20.0))
    return policy, expert, random


def test_expert_scores_one_and_random_zero_without_doubt() -> None:
    _, expert, random = episodes(np.random.default_rng(0), 100)
    assert normalized_score(expert, expert, random) == (1.0, 1.0, 1.0)
    assert normalized_score(random, expert, random) == (0.0, 0.0, 0.0)


def test_score_does_not_depend_on_scale_and_origin() -> None:
    returns = episodes(np.random.default_rng(0), 50)
    assert normalized_score(*returns) == pytest.approx(normalized_score(*(3.0 * x + 7.0 for x in returns)))


def test_score_interval_covers_the_score_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    intervals = [normalized_score(*episodes(rng, 100), resamples=300) for _ in range(400)]
    coverage = np.mean([low < 0.8 < high for _, low, high in intervals])
    assert coverage == pytest.approx(0.95, abs=0.04)


def test_same_episodes_give_a_narrower_interval_than_different_ones() -> None:
    policy, expert, random = episodes(np.random.default_rng(2), 200)
    _, low, high = normalized_score(policy, expert, random)
    mixed = np.random.default_rng(3)
    _, unpaired_low, unpaired_high = normalized_score(policy, mixed.permutation(expert), mixed.permutation(random))
    assert high - low < 0.5 * (unpaired_high - unpaired_low)


def test_same_returns_give_the_same_interval() -> None:
    returns = episodes(np.random.default_rng(4), 50)
    assert normalized_score(*returns) == normalized_score(*returns)


def test_no_score_where_the_expert_is_no_better_than_random() -> None:
    policy, expert, random = episodes(np.random.default_rng(5), 50)
    assert np.isnan(normalized_score(policy, random, expert)).all()
    assert np.isnan(normalized_score(policy, expert, expert)).all()


def test_no_interval_where_episodes_cannot_tell_expert_from_random() -> None:
    score, low, high = normalized_score(np.array([1.0, 2.0]), np.array([1.0, 5.0]), np.array([2.0, 1.0]))
    assert score == pytest.approx(0.0)
    assert np.isnan([low, high]).all()


def test_different_numbers_of_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="same reset seeds"):
        normalized_score(np.zeros(3), np.zeros(4), np.zeros(3))


SCORES = np.array(  # 5 runs of 3 tasks
    [[0.9, 0.56, 0.173], [0.855, 0.409, 0.101], [0.903, 0.768, 0.151], [0.869, 0.598, 0.236], [0.905, 0.314, 0.197]]
)


@pytest.mark.parametrize(
    ("tasks", "of_rliable"),  # rliable 1.2.0 with arch 5.5.0, 50,000 resamples
    [(3, (0.534, 0.45711, 0.61044)), (1, (0.89067, 0.85967, 0.90433))],
)
def test_interquartile_mean_and_interval_are_those_of_rliable(tasks: int, of_rliable: tuple[float, ...]) -> None:
    assert interquartile_mean(SCORES[:, :tasks]) == pytest.approx(of_rliable, abs=2e-3)


def test_interquartile_mean_leaves_a_quarter_out_on_either_side() -> None:
    scores = np.array([[-100.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 1000.0]])
    mean, low, high = interquartile_mean(scores)
    assert mean == 3.5  # of 2, 3, 4 and 5
    assert low < mean < high


def test_one_run_has_an_interquartile_mean_but_no_interval() -> None:
    mean, low, high = interquartile_mean(np.array([[0.2, 0.4]]))
    assert mean == pytest.approx(0.3)
    assert np.isnan([low, high]).all()

"""The imitation benchmark takes up where it was stopped: what a run came to is kept beside the page."""

import csv

import pytest

from benchmarks import imitation
from benchmarks.store import Store


@pytest.fixture
def trainings(monkeypatch):
    """Which runs are trained, where training is only pretended; that of seed 1 fails."""
    runs = []

    def run(task, method, count, seed, folder):
        runs.append((task, method, count, seed))
        return None if seed == 1 else folder

    monkeypatch.setattr(imitation, "run", run)
    scores = {"imitator": 0.9, "clone": 0.5, "seconds": 60.0, "seconds to 95 %": 40.0, "steps to 95 %": 0}
    monkeypatch.setattr(imitation, "measures", lambda task, folder: dict(scores))
    return runs


def new_store(path):
    return Store(path, imitation.KEYS, imitation.FIELDS)


def test_what_is_done_is_not_repeated(trainings, tmp_path):
    path = tmp_path / "page.csv"
    for _ in range(2):  # the second one reads what the first one wrote
        store = new_store(path)
        rows = [imitation.made(store, "simple_spread", "MAGAIL", 5, seed, tmp_path) for seed in (0, 1, 2)]
    assert trainings == [("simple_spread", "MAGAIL", 5, seed) for seed in (0, 1, 2, 1)]  # what failed is tried again
    assert [row and row["imitator"] for row in rows] == ["0.9", None, "0.9"]
    with path.open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "2"]


def test_differences_are_of_the_same_seeds():
    def rows(scores):
        return [{"seed": seed, "imitator": score, "clone": score} for seed, score in scores.items()]

    results = {("MAGAIL", 5): rows({"0": "0.9", "1": "0.8"}), ("BC", 5): rows({"1": "0.5", "2": "0.1"})}
    assert "| MAGAIL - BC | 0.3000 |" in imitation.difference_table(results, ["BC", "MAGAIL"], [5])


def test_tables_hold_what_there_is(trainings, tmp_path):
    store = new_store(tmp_path / "page.csv")
    results = {("MAGAIL", 5): [imitation.made(store, "simple_spread", "MAGAIL", 5, seed, tmp_path) for seed in (0, 2)]}
    table = imitation.score_table(results, ["MAGAIL", "BC, same views", "PS-GAIL"], [5, 10])
    assert "| MAGAIL | 0.900 (0.900 to 0.900) | - |" in table
    assert "| BC, same views | 0.500 (0.500 to 0.500) | - |" in table
    assert "PS-GAIL" not in table
    differences = imitation.difference_table(results, ["BC", "MAGAIL"], [5, 10])
    assert "| MAGAIL - its clone | 0.4000 (0.4000 to 0.4000) | - |" in differences
    assert "- BC" not in differences  # of which there is no run
    assert "| MAGAIL | 60 (40, 0) | - |" in imitation.cost_table(results, ["BC", "MAGAIL"], [5, 10])
    assert imitation.selection_table(results, ["MAGAIL"], [5, 10]) == ""

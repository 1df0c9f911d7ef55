"""The competition benchmark: who is trained for a mean return, what is kept of it, and what the tables make of it."""

import numpy as np
import pytest

from benchmarks import competition
from benchmarks.competition import EXPERT, KEYS, NEWCOMER, RANDOM, RESPONSE, Arena
from benchmarks.store import Store

SIDE = ("eve",)
GOOD = {None: -10.0, "the expert": 10.0}  # what policies get against anybody; others as below


@pytest.fixture
def trainings(monkeypatch):
    """What is trained, where that is only pretended."""
    made = []

    def run(task, method, count, seed, runs):
        made.append((method, seed))
        return runs / method / str(seed)

    def trained(words, folder, brief):
        made.append({word for word in words if not word.startswith("env=")})
        return folder

    def seat_returns(env, side, player, opponent, seeds):
        assert opponent is not None
        response = 11.0 if opponent == "the expert" else 12.0
        mean = GOOD.get(player, response if RESPONSE.replace(" ", "_") in str(player) else 9.0)
        return np.full(len(seeds), mean)

    monkeypatch.setattr(competition, "run", run)
    monkeypatch.setattr(competition, "trained", trained)
    monkeypatch.setattr(competition, "seat_returns", seat_returns)
    return made


def arena_in(folder):
    return Arena("simple_crypto", None, "the expert", 5, folder, Store(folder / "page.csv", KEYS, ("return",)))


def test_rows_that_are_there_train_nobody(trainings, tmp_path):
    for _ in range(2):  # the second one reads what the first one wrote
        arena = arena_in(tmp_path)
        assert arena.mean_return(SIDE, "MAGAIL", EXPERT, 1) == 9.0
        assert arena.mean_return(SIDE, RANDOM, EXPERT, 1) == -10.0
    assert trainings == [("MAGAIL", 1)]


@pytest.mark.parametrize("newcomer_gets", [11.0, 8.0])
def test_a_best_response_goes_on_from_the_stronger_of_newcomer_and_expert(
    newcomer_gets, trainings, tmp_path, monkeypatch
):
    arena = arena_in(tmp_path)
    newcomer = str(tmp_path / "simple_crypto" / "newcomer" / "eve" / "expert" / "2")
    clone = tmp_path / "MAGAIL" / "2" / "bc.safetensors"
    monkeypatch.setitem(GOOD, newcomer, newcomer_gets)
    assert arena.mean_return(SIDE, RESPONSE, "BC, same views", 2) == 12.0
    stronger = newcomer if newcomer_gets > GOOD["the expert"] else "the expert"
    alike = {"experiment=expert_particle", "seed=9"}
    taught = [words for words in trainings if isinstance(words, set)]
    assert taught[0] == alike | {'opponents={alice: "the expert", bob: "the expert"}', "iterations=2000"}
    assert taught[-1] == alike | {
        f'opponents={{alice: "{clone}", bob: "{clone}"}}',
        f'initial_policy={{eve: "{stronger}"}}',
        "iterations=400",
    }


def test_a_population_is_an_opponent_too(trainings, tmp_path):
    arena = Arena("simple_tag", None, ("a", "b"), 5, tmp_path, Store(tmp_path / "page.csv", KEYS, ("return",)))
    arena.mean_return(("agent",), NEWCOMER, EXPERT, 0)
    assert trainings == [
        {"experiment=expert_simple_tag", 'opponents={adversary: ["a", "b"]}', "iterations=2000", "seed=7"}
    ]


def test_failed_trainings_end_it(trainings, tmp_path, monkeypatch):
    monkeypatch.setattr(competition, "run", lambda *_: None)
    with pytest.raises(SystemExit, match="mend what failed"):
        arena_in(tmp_path).mean_return(SIDE, "MAGAIL", EXPERT, 1)


def test_tables_hold_returns_and_scores(trainings, tmp_path):
    arena = arena_in(tmp_path)
    table = competition.cross_play(arena, SIDE, [EXPERT, "MAGAIL"], [0, 1])
    assert "| expert | 10.00 | 10.00 (10.00 to 10.00) | 1 |" in table
    assert "| MAGAIL | 9.00 (9.00 to 9.00) | 9.00 (9.00 to 9.00) | 0.950 (0.950 to 0.950) |" in table
    assert "| random | -10.00 | - | 0 |" in table
    table = competition.exploitation(arena, SIDE, [EXPERT, "MAGAIL"], [0])
    assert "| expert | 10.00 | 9.00 | 11.00 | 1.050 | 0 |" in table
    assert "| MAGAIL | 10.00 | 9.00 | 12.00 | 1.100 | 0.050 |" in table
    assert len(table.splitlines()) == 4


def test_a_response_worse_than_what_it_went_on_from_is_no_measure(trainings, tmp_path, monkeypatch):
    monkeypatch.setitem(GOOD, str(tmp_path / "simple_crypto" / "newcomer" / "eve" / "expert" / "0"), 11.5)
    table = competition.exploitation(arena_in(tmp_path), SIDE, [EXPERT, "MAGAIL"], [0])
    assert "| expert | 10.00 | 11.50 | 11.00 | 1.075 | 0 |" in table
    assert "| MAGAIL | 10.00 | 11.50 | 12.00 | 1.100 | 0.025 |" in table

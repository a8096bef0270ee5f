"""The figures of the tracking's benchmark, on answers that are known."""

import json

import numpy as np
import pytest

from benchmarks.tracking import FILMS, RATE, Film, film_table, match, measure, score, speed_table, summary, write_docs
from scripts.tracking_cases import TEMPLATE

POINTS = np.array(TEMPLATE) * 200 + 240  # of a right hand
LAYER = (np.zeros((480, 480, 4), np.float32), POINTS)


def film(kind: str) -> Film:
    return Film(kind, [LAYER] * len(FILMS[kind]), np.zeros((480, 640, 3), np.float32), seed=0)


def true_answers(made: Film, name=lambda hand, t: hand) -> list:
    hands = range(len(made.layers))
    return [[(name(hand, t), made.truth(hand, t)) for hand in hands if made.is_inside(hand, t)] for t in made.times]


@pytest.mark.parametrize("kind", FILMS)
def test_the_truth_is_found_whole_and_without_error(kind):
    made = film(kind)
    figures = summary([score(made, true_answers(made))], len(made.times))
    assert figures["found"] == figures["same_id"] == 1
    assert figures["false_per_100_frames"] == 0 and figures["error_over_box"] == pytest.approx(0, abs=1e-9)
    assert figures["jitter_over_box"] in (None, pytest.approx(0, abs=1e-9))


def test_hands_that_change_ids_are_counted():
    made = film("crossing")
    swapped = true_answers(made, lambda hand, t: hand if t < 2 else 1 - hand)
    assert summary([score(made, swapped)], 90)["same_id"] == pytest.approx(2 / 3, abs=0.01)
    twice = [answer + [("third", answer[0][1])] for answer in true_answers(made)]
    assert summary([score(made, twice)], 90)["false_per_100_frames"] == 100


def test_jitter_and_lag_are_those_of_the_answers():
    still, moving, rng = film("still"), film("moving"), np.random.default_rng(0)
    shaken = [[(name, points + rng.normal(0, 1.4, (21, 2))) for name, points in answer] for answer in true_answers(still)]
    assert score(still, shaken)["jitter"] == pytest.approx(1.4 * np.sqrt(2) / 140, rel=0.1)
    late = [[(0, moving.truth(0, t - 0.04))] for t in moving.times]
    assert score(moving, late)["lag"] == pytest.approx(0.04)


def test_an_answer_belongs_to_one_hand():
    found = match([POINTS, POINTS + 30], [("a", POINTS + 20), ("b", POINTS + 500)])
    assert list(found) == [1] and found[1][0] == "a"


def test_the_tables_come_into_the_document(tmp_path):
    figures = summary([score(film("still"), true_answers(film("still")))], 90)
    sequence = {"found": 5, "of": 7, "ids": 1, "error_over_box": 0.05}
    speed = {"seconds": [0.02, 0.04], "processor": [0.03, 0.05], "first": [1.0, 2.0], "hands": [2.0, 2.0]}
    peer = {name: [2 * value for value in values] for name, values in speed.items()}
    result = {
        "films": {"ours": {"still": figures}},
        "sequence": {"ours": sequence},
        "speed": {"ours": speed, "MediaPipe": peer},
    }
    result = json.loads(json.dumps(result))
    assert "| ours | still | 1.000 | 1.000 | 0.0 | 0.000 | 0.0000 |  |" in film_table(result)
    assert "| ours | real sequence | 5 of 7 | 1 ids |" in film_table(result)
    assert "| ours | 2.0 | 33.3 | 2.00 x | 40.0 ms | 1.50 s |" in speed_table(result)
    path = tmp_path / "tracking.md"
    path.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    write_docs(path, result)
    text = path.read_text()
    assert (
        text.startswith("before\n<!-- figures -->\n|") and text.endswith("|\n<!-- /figures -->\nafter\n") and "old" not in text
    )


def test_points_are_scored_with_and_without_the_filter(monkeypatch, tmp_path):
    """Of answers that are the truth, and before the filter off by a pixel."""
    from benchmarks import tracking

    made = film("two")
    monkeypatch.setattr(tracking, "films", lambda data, count: iter([made]))
    sequence = (np.zeros((1, 9, 9, 3), np.uint8), [0.0], [POINTS])
    monkeypatch.setattr(tracking, "read_sequence", lambda data: sequence)
    monkeypatch.setattr(Film, "frames", lambda self: iter(np.zeros((round(3 * RATE), 4, 4, 3), np.uint8)))
    answers = [[(name, points, points + 1) for name, points in answer] for answer in true_answers(made)]
    of_films = [tracking.Answers(answers, 0.1, 0.1, 1.0), tracking.Answers([[]], 0.1, 0.1, 1.0)]
    monkeypatch.setattr(tracking, "ask", lambda command, films: of_films)
    result = measure({"ours": ["python"]}, tmp_path, 1)
    assert result["films"]["ours"]["two"]["error_over_box"] == pytest.approx(0, abs=1e-9)
    assert result["films"]["ours, no filter"]["all"]["error_over_box"] > 0.005
    assert result["sequence"]["ours"]["found"] == 0

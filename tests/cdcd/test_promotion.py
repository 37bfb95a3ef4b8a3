"""The rule of promotion, what it writes down, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcd import tracking
from cdcd.cli import main
from cdcd.config import Promotion
from cdcd.promotion import PromotionError, Score, Verdict, judge, read_scores, record, rollback

RULE = Promotion(above_control="shuffled", within_interval=True)
STRICT = Promotion(above_control="shuffled", within_interval=False)
FREE = Promotion(above_control=None, within_interval=True)
CONTROL = Score(0.3, 0.25, 0.35)


def _champion(mean: float, dataset: str = "aist") -> tracking.ModelVersion:
    tags = {"dataset": dataset, **Score(mean, mean - 0.02, mean + 0.02).tags("onset_f1")}
    return tracking.ModelVersion("m", "7", tags)


def _judge(rule: Promotion, candidate: Score, champion: tracking.ModelVersion | None) -> Verdict:
    return judge(rule, "onset_f1", candidate, CONTROL, champion, "aist")


@pytest.mark.parametrize(
    ("rule", "candidate", "champion", "is_promoted", "words"),
    [
        (RULE, Score(0.9, 0.8, 1.0), None, True, "the first champion"),
        (RULE, Score(0.32, 0.29, 0.36), None, False, "is not above shuffled, 0.300"),
        (RULE, Score(0.32, 0.30, 0.36), None, False, "is not above shuffled"),
        (FREE, Score(0.2, 0.1, 0.3), None, True, "the first champion"),
        (RULE, Score(0.88, 0.85, 0.91), _champion(0.9), True, "not worse than 0.900 of champion 7"),
        (STRICT, Score(0.88, 0.85, 0.91), _champion(0.9), False, "is worse than 0.900"),
        (STRICT, Score(0.9, 0.85, 0.91), _champion(0.9), True, "not worse"),
        (RULE, Score(0.8, 0.75, 0.85), _champion(0.9), False, "is worse than 0.900 of champion 7"),
        (RULE, Score(0.9, 0.8, 1.0), _champion(0.1, "tiktok"), False, "no onset_f1 on aist"),
    ],
)
def test_the_rule(
    rule: Promotion,
    candidate: Score,
    champion: tracking.ModelVersion | None,
    is_promoted: bool,
    words: str,
) -> None:
    verdict = _judge(rule, candidate, champion)
    assert verdict.is_promoted is is_promoted
    assert words in verdict.reason
    assert "\n" not in verdict.reason


def test_without_the_control_nothing_is_promoted() -> None:
    verdict = judge(RULE, "onset_f1", Score(0.9, 0.8, 1.0), None, None, "aist")
    assert not verdict.is_promoted
    assert "no onset_f1 of shuffled" in verdict.reason


_NUMBERS = st.floats(0, 1)


@given(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)
def test_a_better_candidate_is_never_refused_where_a_worse_is_not(
    a: float, b: float, width: float, champion: float
) -> None:
    low, high = sorted((a, b))
    judged = [
        _judge(RULE, Score(mean, mean - width, mean + width), _champion(champion)).is_promoted
        for mean in (low, high)
    ]
    assert judged != [True, False]


@given(_NUMBERS, _NUMBERS, _NUMBERS)
def test_tags_keep_a_score_exactly(mean: float, low: float, high: float) -> None:
    score = Score(mean, low, high)
    assert Score.of_tags("x", score.tags("x")) == score
    assert Score.of_tags("y", score.tags("x")) is None


def test_scores_are_read_with_their_intervals(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    row = {
        "onset_f1": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6},
        "fid": {"mean": 3.0},
        "bad": {"mean": float("nan")},
        "n": 3,
    }
    path.write_text(json.dumps({"systems": {"model": row}}))
    assert read_scores(path, "model") == {
        "onset_f1": Score(0.5, 0.4, 0.6),
        "fid": Score(3.0, 3.0, 3.0),
    }
    assert read_scores(path, "shuffled") == {}


# The registry


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def versions(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Three bare versions of a model of this test's own; returns its name and their numbers."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    tracking.ensure_store()
    client = mlflow.MlflowClient(store)
    name = tmp_path.name
    client.create_registered_model(name)
    made = [client.create_model_version(name, f"file://{tmp_path}").version for _ in range(3)]
    return [name, *map(str, made)]


def _version(name: str, number: str) -> tracking.ModelVersion:
    found = tracking.version_by_number(name, number)
    assert found is not None
    return found


def _champion_of(name: str) -> str | None:
    found = tracking.version_by_alias(name, "champion")
    return None if found is None else found.version


def test_decisions_are_written_down_and_taken_back(
    versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, first, second, third = versions
    record(_version(name, first), Verdict(True, "first"), None)
    record(_version(name, second), Verdict(True, "better"), _version(name, first))
    record(_version(name, third), Verdict(False, "worse"), _version(name, second))
    assert _champion_of(name) == second
    refused = _version(name, third).tags
    assert (refused["promotion.promoted"], refused["promotion.reason"]) == ("false", "worse")
    assert _version(name, second).tags["promotion.replaced"] == first

    assert main(["rollback", name]) == 0
    assert f"champion is version {first}, before: {second}" in capsys.readouterr().out
    assert _champion_of(name) == first
    assert "promotion.rolled_back" in _version(name, second).tags
    assert _version(name, first).tags["promotion.reason"] == f"rolled back from version {second}"

    assert main(["rollback", name, "--to", third]) == 0
    assert _champion_of(name) == third


def test_a_rollback_that_cannot_be_is_one_line(versions: list[str]) -> None:
    name, first, *_ = versions
    with pytest.raises(PromotionError, match=r"needs a champion or --to"):
        rollback(name)
    with pytest.raises(PromotionError, match=r"needs a champion or --to: nobody has none"):
        rollback("nobody")
    record(_version(name, first), Verdict(True, "first"), None)
    with pytest.raises(PromotionError, match="replaced none; name a version with --to"):
        rollback(name)
    for wrong in ("99", "last", first):
        with pytest.raises(PromotionError, match=r"must be a version of|is champion already"):
            rollback(name, wrong)
    assert _champion_of(name) == first

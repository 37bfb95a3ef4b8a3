import pytest

from cdcd.evaluation import tables
from cdcd.evaluation.result import mean_metric
from cdcd.evaluation.systems import reading_order

OPTIONS = {"num_resamples": 200, "seed": 0, "clusters": {"a": "s", "b": "s", "c": "t"}}


def metric(**scores):
    return mean_metric(scores, {})


def test_bits_are_those_of_the_asked_keys_and_lost_ones_are_told(monkeypatch):
    asked = []

    def bits(model_dir, tokens_dir, features_dir, split, condition, num_draws, keys):
        asked.append((split, condition, num_draws, keys))
        known = [key for key in "abc" if keys is None or key in keys]
        return {"mean": 5.0, "keys": known, "per_sample": [5.0] * len(known)}

    monkeypatch.setattr("cdcd.tasks.bits_per_token", bits)
    systems = ["model", "shuffled", "unconditioned"]
    folders = ("m", "t", "f", "test")
    found, warnings = tables.bits_per_token(systems, *folders)
    assert found == {name: dict.fromkeys("abc", 5.0) for name in ("model", "unconditioned")}
    assert warnings == []
    found, warnings = tables.bits_per_token(["model"], *folders, ["a", "x"])
    assert found == {"model": {"a": 5.0}}
    assert warnings == ["bits per token of model: 1 conditions are not in f"]
    assert asked[-1] == ("test", "model", tables.NUM_DRAWS, ["a", "x"])
    rows = {"model": {}}
    tables.add_bits(rows, found | {"model": {}}, OPTIONS)
    assert rows == {"model": {"bits_per_token": None}}
    tables.add_bits(rows, found, OPTIONS, "cluster")
    assert rows["model"]["bits_per_token"]["ci_cluster_low"] == 5.0


def test_summaries_count_what_was_skipped_in_every_seed():
    runs = {
        0: {"x": metric(a=1.0, b="lost", c=0.0), "y": metric(a="lost")},
        1: {"x": metric(a=1.0, b=1.0, c="lost"), "y": metric(a="lost")},
    }
    found = tables.summarise({"model": runs, "shuffled": {0: runs[1]}}, OPTIONS)
    assert found["model"]["y"] is found["shuffled"]["y"] is None
    assert found["model"]["x"]["mean"] == pytest.approx(0.75)
    assert (found["model"]["x"]["n"], found["model"]["x"]["n_skipped"]) == (3, 2)
    assert found["model"]["x"]["num_seeds"] == 2
    assert (found["shuffled"]["x"]["n"], found["shuffled"]["x"]["n_skipped"]) == (2, 1)
    assert found["shuffled"]["x"]["std_seeds"] is None


def test_comparisons_are_paired_and_need_a_common_key():
    scores = {
        "model": {0: {"x": metric(a=1.0, b=3.0), "y": metric(a=1.0)}},
        "shuffled": {0: {"x": metric(a=0.0, b=2.0, c=9.0), "y": metric(b=1.0)}},
    }
    systems = tables.summarise(scores, OPTIONS)
    pairs = [("model", "shuffled"), ("model", "missing")]
    found = tables.compare(scores, systems, pairs, ("x", "y", "z"), OPTIONS)
    assert set(found) == {"model_vs_shuffled"}
    assert set(found["model_vs_shuffled"]) == {"x"}  # y has no common key, z was not scored
    versus = found["model_vs_shuffled"]["x"]
    assert versus["difference"] == versus["ci_low"] == versus["ci_song_high"] == 1.0
    assert versus["intervals_overlap"] is True


def test_rows_are_in_reading_order():
    systems = ["shuffled", "zebra", "model", "real", "ground_truth"]
    assert reading_order(systems) == ["ground_truth", "model", "shuffled", "real", "zebra"]
    assert reading_order(systems, ("real", "model"))[:3] == ["real", "model", "ground_truth"]

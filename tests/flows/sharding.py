"""The shard stage, however its parts are mapped, beside plain sharding."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdcd.data import sharding
from cdcd.data.ingest import ingest
from flows import stage
from flows.shard import shard
from tests.cdcd.data import tiny_aist


def assert_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, server: str, **settings: object
) -> None:
    """Run the stage in a folder with a Prefect server, and compare with what one process writes."""
    raw, expected = folder / "data" / "raw" / "aist", folder / "expected"
    ingest(tiny_aist.params(tiny_aist.shared()), "aist", raw)
    sharding.shard(tiny_aist.params(None), raw, expected)
    params = tiny_aist.params(None, shard__num_workers=2, **settings)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CDCD_TRACKING", "off")
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setattr(stage, "load_params", lambda: params)
    stage.run_stage("shard", shard, "aist")
    made = folder / "data" / "shards" / "aist"
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    for name in names:
        assert (made / name).read_bytes() == (expected / name).read_bytes(), name

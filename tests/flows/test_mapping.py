"""One mapping for processes, tasks and a Dask cluster: the same results, retries for I/O only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdcd.data.parallel import ProcessMapper
from flows import mapping
from tests.flows.sharding import assert_the_same_bytes


def double(item: int) -> int:
    return 2 * item


def fail(job: tuple[str, int]) -> int:
    """Note an attempt in a file; succeed at the third one, unless the error is not of that kind."""
    path, number = job
    with Path(path).open("a") as file:
        file.write("x")
    if Path(path).stat().st_size < 3:
        raise OSError(number, os.strerror(number))
    return number


def test_outside_a_flow_it_is_a_pool_of_processes() -> None:
    mapper = mapping.make_mapper(2)
    assert mapper == ProcessMapper(2)
    assert sorted(mapper(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_the_file_system_interrupts_is_tried_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr("cdcd.data.parallel.RETRY_SECONDS", 0.01)
    mapper = ProcessMapper(num_workers)
    assert list(mapper(fail, [(str(tmp_path / "io"), errno.EIO)])) == [errno.EIO]
    for number in (errno.ENOSPC, errno.EACCES, errno.ENOENT):
        path = tmp_path / str(number)
        with pytest.raises(OSError, match=os.strerror(number)):
            list(mapper(fail, [(str(path), number)]))
        assert path.read_text() == "x"


def test_a_cluster_needs_dask_and_a_server_that_its_workers_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mapping.check_cluster(None)
    mapping.check_cluster("local")
    with pytest.raises(ValueError, match="PREFECT_API_URL is not set; start one") as info:
        mapping.check_cluster("tcp://scheduler:8786")
    assert "\n" not in str(info.value)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for address in ("tcp://127.0.0.1:9", "tcp://127.0.0.1:port", "tls://[::1"):
        with pytest.raises(ValueError, match=r"does not answer .*; start `dask scheduler`") as info:
            mapping.check_cluster(address)
        assert address in str(info.value)
        assert "\n" not in str(info.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"prefect-dask is not installed; run pip install"):
        mapping.check_cluster("local")


def test_the_machine_decides_where_parts_run_before_the_parameters_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(mapping.CLUSTER, raising=False)
    assert mapping.cluster_of(None) is None
    assert mapping.cluster_of("local") == "local"
    monkeypatch.setenv(mapping.CLUSTER, "tcp://127.0.0.1:8786")
    assert mapping.cluster_of(None) == "tcp://127.0.0.1:8786"
    for wrong in ("127.0.0.1:8786", "tcp://a b", "dask"):
        monkeypatch.setenv(mapping.CLUSTER, wrong)
        with pytest.raises(ValueError, match="CDCD_CLUSTER must be local or the address") as info:
            mapping.cluster_of("local")
        assert repr(wrong) in str(info.value)


def test_a_part_runs_in_the_projects_folder_wherever_its_worker_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, project = tmp_path / "elsewhere", tmp_path / "project"
    for folder in (elsewhere, project):
        folder.mkdir()
    (project / "job").touch()
    monkeypatch.chdir(elsewhere)
    assert mapping._call(os.path.exists, "job", str(project)) is True
    with pytest.raises(ValueError, match="must see the project's folder at the same path") as info:
        mapping._call(os.path.exists, "job", str(tmp_path / "missing"))
    assert "share the file system" in str(info.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for all tests below."""
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())
    if before is None:
        del os.environ["PREFECT_HOME"]
    else:
        os.environ["PREFECT_HOME"] = before


def test_inside_a_flow_every_item_is_a_task_with_the_same_retries(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "RETRY_SECONDS", 0.01)
    from prefect import flow
    from prefect.client.orchestration import get_client

    found: dict[str, Any] = {}

    @flow
    def mapped() -> None:
        mapper = mapping.make_mapper(2)
        assert isinstance(mapper, mapping.PrefectMapper)
        found["doubled"] = list(mapper(double, range(5)))
        alone = mapping.make_mapper(1)  # a process that starts takes seconds
        found["io"] = list(alone(fail, [(str(tmp_path / "io"), errno.EIO)]))
        with pytest.raises(OSError, match="No space"):
            list(alone(fail, [(str(tmp_path / "full"), errno.ENOSPC)]))

    mapped()
    assert found == {"doubled": [0, 2, 4, 6, 8], "io": [errno.EIO]}
    assert (tmp_path / "full").read_text() == "x"
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs()
    assert sum(run.name == "double" for run in runs) == 5


@pytest.mark.parametrize("cluster", [None, "local"])
def test_the_shard_stage_gives_the_same_bytes_as_tasks_and_on_a_dask_cluster(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str | None
) -> None:
    assert_the_same_bytes(tmp_path, monkeypatch, server, shard__cluster=cluster)

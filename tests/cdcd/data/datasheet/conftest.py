import pytest

from cdcd.data.datasheet import write_datasheet
from cdcd.data.ingest import ingest
from cdcd.data.sharding import shard
from tests.cdcd.data import tiny_aist


@pytest.fixture(scope="session")
def dance(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dance")
    ingest(tiny_aist.params(tiny_aist.shared()), "aist", folder / "raw")
    shard(tiny_aist.params(None), folder / "raw", folder / "shards")
    write_datasheet(folder / "raw", folder / "shards", folder / "sheet")
    return folder

import filelock
import pytest

from cdcd import compiled


def test_only_one_process_compiles_at_a_time():
    """Two that fill numba's cache at once crash: the second waits for the first's lock."""
    with (
        filelock.FileLock(compiled._lock_path()),
        pytest.raises(filelock.Timeout),
    ):
        compiled.load_librosa.__wrapped__(timeout_seconds=0.0)
    compiled.load_librosa.__wrapped__()

import os
import pickle
import random

import numpy as np
import pytest

from cdcd.data import pickles


class Call:
    """Pickles as the call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


TREE = {
    "poses": np.linspace(-1, 1, 12, dtype="f4").reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i2"),
    "empty": np.zeros((0, 3)),
    "zero_dimensional": np.array(3.5),
    "scalar": np.float64(2.5),
    "loss": 1.5,
    "nested": [(1, "a", None, True), {"b": b"bytes", "empty": b""}],
    "set": {1, 2},
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_and_containers_come_back(protocol, module):
    data = pickle.dumps(TREE, protocol=protocol)
    if protocol < 4:  # protocol 4 states the length of names, see the next test
        data = data.replace(b"numpy._core.multiarray", module)
    result = pickles.loads(data)
    assert set(result) == set(TREE)
    for key, value in TREE.items():
        if isinstance(value, np.ndarray | np.generic):
            assert result[key].dtype == value.dtype
            np.testing.assert_array_equal(result[key], value)
        else:
            assert result[key] == value


def test_the_module_name_of_numpy_1_in_protocol_4():
    data = pickle.dumps(np.arange(4, dtype="f4"), protocol=4)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert bytes([len(new)]) + new in data
    data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
    frame = int.from_bytes(data[3:11], "little") - 1
    data = data[:3] + frame.to_bytes(8, "little") + data[11:]
    np.testing.assert_array_equal(pickles.loads(data), np.arange(4, dtype="f4"))


def test_shared_parts_stay_shared_and_arrays_can_be_written():
    array = np.zeros(3)
    result = pickles.loads(pickle.dumps([array, array]))
    assert result[0] is result[1]
    result[0][0] = 1.0


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_forbidden_global_is_named_and_not_called(protocol, capfd):
    data = pickle.dumps({"a": Call(os.system, "echo ran")}, protocol=protocol)
    with pytest.raises(pickles.UnsafePickleError, match=r"posix\.system"):
        pickles.loads(data)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "item",
    [
        Call(eval, "1"),
        Call(getattr, "a", "upper"),
        Call(np.load, "x"),
        Call(np.ndarray, (2,), np.dtype("O"), b"A" * 16),  # would make pointers out of bytes
        np.array([1, "a"], dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
    ],
)
def test_nothing_beyond_arrays_of_numbers(item):
    with pytest.raises(pickles.UnsafePickleError):
        pickles.loads(pickle.dumps(item))


def test_the_array_class_cannot_be_called():
    with pytest.raises(ValueError, match="well formed"):
        pickles.loads(pickle.dumps(Call(np.ndarray, (2,))))


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps(np.zeros(100))[:200]])
def test_damaged_bytes_are_told_apart_from_unsafe_ones(data):
    with pytest.raises(pickles.CorruptPickleError, match="complete and well formed"):
        pickles.loads(data)


def test_random_damage_raises_nothing_else():
    data = pickle.dumps(TREE, protocol=2)
    rng = random.Random(0)
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            pickles.loads(bytes(broken))
        except (pickles.UnsafePickleError, pickles.CorruptPickleError) as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_the_message_begins_with_the_path(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, "x")))
    with pytest.raises(ValueError, match=r"bad\.pkl: .*posix\.system.*download it again"):
        pickles.load(path)

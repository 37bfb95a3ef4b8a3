import os
import pickle
import random
import time
from contextlib import contextmanager

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


NAMES = ["002.Laysan_Albatross/Laysan_Albatross_0002_1027", "003.X/y"]
# As Python 2 wrote them: byte strings in protocol 0, and NumPy's integers.
NAMES_OF_PYTHON_2 = (
    b"(lp0\nS'002.Laysan_Albatross/Laysan_Albatross_0002_1027'\np1\naS'003.X/y'\np2\na."
)
NUMBERS_OF_PYTHON_2 = (
    b"(lp0\ncnumpy.core.multiarray\nscalar\np1\n(cnumpy\ndtype\np2\n(S'i8'\np3\nI0\nI1\ntp4\n"
    b"Rp5\n(I3\nS'<'\np6\nNNNI-1\nI-1\nI0\ntp7\nbS'\\x02\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\n"
    b"p8\ntp9\nRp10\naI3\na."
)


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (NAMES_OF_PYTHON_2, NAMES),
        (pickle.dumps(NAMES, protocol=0), NAMES),  # text, whose lines keep the carriage return
        (NUMBERS_OF_PYTHON_2, [2, 3]),
        (pickle.dumps({"a": np.arange(3.0)}, protocol=0), None),
    ],
)
def test_protocol_0_with_converted_line_ends(data, expected, convert):
    if convert:
        data = data.replace(b"\n", b"\r\n")
    result = pickles.loads(data)
    if expected is None:
        np.testing.assert_array_equal(result["a"], np.arange(3.0))
    else:
        assert result == expected


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_line_ends_in_binary_pickles_stay(protocol):
    assert pickles.loads(pickle.dumps("a\r\nb\r", protocol=protocol)) == "a\r\nb\r"


def test_an_unsafe_pickle_stays_unsafe_with_converted_line_ends(capfd):
    data = pickle.dumps(Call(os.system, "echo ran"), protocol=0).replace(b"\n", b"\r\n")
    with pytest.raises(pickles.UnsafePickleError, match=r"'posix\.system'"):
        pickles.loads(data)
    assert capfd.readouterr().out == ""


def test_damage_with_converted_line_ends_is_told():
    with pytest.raises(pickles.CorruptPickleError, match="well formed"):
        pickles.loads(NAMES_OF_PYTHON_2.replace(b"\n", b"\r\n")[:-9])


@pytest.mark.parametrize("code", [b"(S'echo ran'\nios\nsystem\n.", b"(cos\nsystem\nS'a'\no."])
def test_older_ways_to_call_a_name_are_refused(code, capfd):
    with pytest.raises(pickles.UnsafePickleError, match=r"'os\.system'"):
        pickles.loads(code)
    assert capfd.readouterr().out == ""


@contextmanager
def quickly():
    start = time.process_time()
    yield
    assert time.process_time() - start < 3  # unguarded: minutes, or for ever


def test_a_file_has_a_largest_size(tmp_path):
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps(b"0" * 100))
    assert pickles.load(path) == b"0" * 100
    with pytest.raises(pickles.CorruptPickleError, match=r"large\.pkl: .* at most 64 bytes"):
        pickles.load(path, max_bytes=64)
    with pytest.raises(pickles.CorruptPickleError, match="at most 64 bytes"):
        pickles.loads(path.read_bytes(), max_bytes=64)
    assert pickles.MAX_BYTES == 256 << 20


@pytest.mark.parametrize("name", [b"list", b"tuple", b"set", b"frozenset", b"dict"])
@pytest.mark.parametrize("way", ["reduce", "instance"])
def test_copying_a_container_again_and_again_is_stopped(name, way):
    items = b"(" + b"".join(b"I%d\n" % i for i in range(20_000))
    if name == b"dict":
        items = b"(" + b"".join(b"I%d\nN" % i for i in range(20_000)) + b"dp0\n0"
    else:
        items += b"lp0\n0"
    copy = b"c__builtin__\n%s\n(g0\ntR" % name
    if way == "instance":
        copy = b"(g0\ni__builtin__\n%s\n" % name
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="300000 instructions"):
        pickles.loads(b"(" + items + copy * 20_000 + b"l.")


def test_copying_a_text_again_and_again_is_stopped():
    text = b"V" + b"a" * 100_000 + b"\np0\n0"
    copy = b"c_codecs\nencode\n(g0\nVlatin1\ntR"
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="at most 4 times"):
        pickles.loads(b"(" + text + copy * 10_000 + b"l.")


def test_copying_an_array_again_and_again_is_stopped():
    data = pickle.dumps(np.zeros(100_000), protocol=2)
    assert data.endswith(b"b.")  # the state is on the stack's top, the array below it
    build = data[:-2] + b"r\xff\0\0\0b" + b"j\xff\0\0\0b" * 10_000 + b"."
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="at most 4 times"):
        pickles.loads(build)


def test_instructions_are_counted():
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="300000 instructions"):
        pickles.loads(b"(" + b"]" * 300_001 + b"l.")


@pytest.mark.parametrize(
    "data",
    [
        b"]" * 50_000 + b"a" * 49_999 + b".",
        b")" + b"\x85" * 50_000 + b".",
        b"]q\0h\0a.",  # a list that holds itself
    ],
)
def test_deep_nesting_is_refused(data):
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="at most 100 deep"):
        pickles.loads(data)


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 200_000,  # hashing it would overflow the C stack
        b")" + b"2\x86" * 200,  # hashing it would take for ever
        b"\x8b\x10\0\0\0" + b"\1" * 16,
    ],
)
@pytest.mark.parametrize("way", [b"}%sNs.", b"}(%sNu.", b"(%sNd.", b"\x8f(%s\x90.", b"(%s\x91."])
def test_keys_are_plain(key, way):
    with quickly(), pytest.raises(pickles.CorruptPickleError, match="keys must be text"):
        pickles.loads(way % key)


def test_keys_of_several_kinds_are_fine():
    tree = {("a", 1): 1, 2: 2, None: 3, b"x": {1.5, (1, 2)}, True: frozenset({"y"})}
    for protocol in range(5):
        assert pickles.loads(pickle.dumps(tree, protocol=protocol)) == tree


def test_a_stated_length_reserves_no_memory():
    with pytest.raises(pickles.UnsafePickleError, match="instruction"):
        pickles.loads(b"\x80\x05\x96" + (1 << 42).to_bytes(8, "little") + b".")


def test_an_array_has_a_plain_shape():
    tree = pickle.dumps(np.zeros(2), protocol=2)
    assert tree.count(b"K\x02\x85") == 1
    for shape in (b"(" + b"K\x01" * 100 + b"t", b"J\xff\xff\xff\xff\x85"):
        with pytest.raises(pickles.CorruptPickleError, match="shape"):
            pickles.loads(tree.replace(b"K\x02\x85", shape))


def test_a_long_forbidden_name_is_shortened():
    with pytest.raises(pickles.UnsafePickleError) as caught:
        pickles.loads(b"cos\n" + b"a" * 100_000 + b"\n.")
    assert len(str(caught.value)) < 300

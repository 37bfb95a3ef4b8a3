import pytest
import torch
from safetensors.torch import save_file

from cdcd.codecs.openai import WeightsError
from cdcd.codecs.weights import compare_shapes, read_file, read_state


def test_a_state_dict_is_read_bare_or_out_of_a_checkpoint(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state, "epoch": 2}, tmp_path / "whole.ckpt")
    save_file(state, tmp_path / "safe.safetensors")
    for name in ("bare.pt", "whole.ckpt", "safe.safetensors"):
        found = read_state(tmp_path / name, "codec.image.weights")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.zeros(1)}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"^codec\.x must hold names and tensors: .*; give"):
        read_state(tmp_path / "other.pt", "codec.x")


def test_folders_and_missing_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(WeightsError, match=r"^codec\.x must name a file: got .*; give"):
            read_file(path, "codec.x")


def test_differences_are_named_three_at_a_time():
    given = {name: torch.zeros(1) for name in "abcdx"}
    expected = dict.fromkeys("xyz", (1,)) | {"a": (2,)}
    assert compare_shapes(given, expected) == (
        "2 missing (y, z); 3 unknown (b, c, d); 1 of another shape (a is [1], not [2])"
    )
    assert compare_shapes(given, {}) == "5 unknown (a, b, c, …)"
    assert compare_shapes({"a": torch.zeros(2)}, {"a": (2,)}) == ""

import pytest
import torch

from cdcd.evaluation.networks.inception import (
    NUM_CLASSES,
    SIZE,
    WIDTH,
    Inception,
    load_inception,
    resize_tensorflow,
)
from cdcd.evaluation.networks.weights import WeightsError, read_state_dict


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval()


def test_keys_and_parameters_are_those_of_the_public_file():
    with torch.device("meta"):
        network = Inception()
    names = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    assert len(names) == 94 * 5 + 2
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} <= set(names)
    # torchvision's 27,161,264 without the auxiliary head's 3,326,696, and 1008 classes, not 1000.
    expected = 27_161_264 - 3_326_696 + (NUM_CLASSES - 1000) * (WIDTH + 1)
    assert sum(p.numel() for p in network.parameters()) == expected == 23_850_960


def test_forward_gives_pool3_of_pictures_of_any_size(network):
    pictures = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with torch.inference_mode():
        found = network(pictures)
        assert found.shape == (2, WIDTH)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(network(pictures.float()), found)
        torch.testing.assert_close(network(pictures[1:]), found[1:], atol=1e-5, rtol=1e-4)


def test_the_last_block_pools_by_maximum_and_the_others_by_mean_without_padding(network):
    assert (network.Mixed_7b.pool, network.Mixed_7c.pool) == ("mean", "max")
    from cdcd.evaluation.networks.inception import _mean_pool

    torch.testing.assert_close(_mean_pool(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_resize_takes_pixels_at_i_h_over_size_without_half_a_pixel():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    found = resize_tensorflow(x, 8)[0, 0, 0]
    assert found.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert resize_tensorflow(x, 2)[0, 0, 0].tolist() == [0.0, 2.0]  # no anti-aliasing
    same = torch.rand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(resize_tensorflow(same, SIZE), same)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_loaded_with_or_without_counters(network, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    loaded = load_inception(path)
    pictures = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pictures), network(pictures))
    assert not any(p.requires_grad for p in loaded.parameters())


def _refused(state, path, match):
    torch.save(state, path)
    with pytest.raises(WeightsError, match=match) as error:
        load_inception(path)
    assert "\n" not in str(error.value)


def test_another_network_is_refused_in_one_line(network, tmp_path):
    path = tmp_path / "weights.pth"
    state = network.state_dict()
    with pytest.raises(WeightsError, match="no such file; check the path"):
        load_inception(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="download the file again"):
        load_inception(path)
    _refused([1, 2], path, "save the network's state_dict")
    _refused(state | {"AuxLogits.fc.weight": torch.zeros(1)}, path, "1 unknown, e.g. AuxLogits")
    _refused({k: v for k, v in state.items() if "7c" not in k}, path, "missing, e.g. Mixed_7c")
    _refused(
        state | {"fc.bias": torch.zeros(1000)}, path, r"fc.bias must be \[1008\]: got \[1000\]"
    )
    nan = torch.full_like(state["fc.bias"], torch.nan)
    _refused(state | {"fc.bias": nan}, path, "fc.bias must be finite")


def test_code_in_a_weight_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        read_state_dict(tmp_path / "evil.pth", "weights")
    assert not (tmp_path / "owned").exists()

import numpy as np
import pytest
import torch
from PIL import Image

from cdcd.evaluation.networks.resnet import ResNet, load_resnet101, preprocess
from cdcd.evaluation.networks.weights import WeightsError


def test_keys_and_parameters_are_those_of_torchvision():
    with torch.device("meta"):
        network = ResNet()
    assert sum(p.numel() for p in network.parameters()) == 44_549_160
    names = set(network.state_dict())
    assert len(names) == 626
    assert {"conv1.weight", "layer1.0.downsample.1.running_mean", "layer3.22.bn3.bias"} <= names
    assert {"layer1.0.conv1.weight", "layer4.2.conv3.weight", "fc.bias"} <= names
    # The 3 x 3 convolution carries the stride.
    assert network.layer2[0].conv2.stride == (2, 2)
    assert network.layer2[0].conv1.stride == (1, 1)


def test_forward_of_a_small_one():
    network = ResNet((1, 1, 1, 1), num_classes=7).eval()
    with torch.inference_mode():
        logits = network(preprocess(np.zeros((2, 64, 80, 3), np.uint8)))
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits[0], logits[1])


def test_preprocessing_of_256_pixels_only_cuts():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    x = preprocess(picture[None])
    assert x.shape == (1, 3, 224, 224)
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    pixels = (x[0].permute(1, 2, 0) * std + mean) * 255
    np.testing.assert_allclose(pixels.numpy(), picture[16:240, 16:240], atol=1e-3)


def test_preprocessing_scales_the_shorter_side_to_256():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (100, 151, 3), dtype=np.uint8)
    scaled = Image.fromarray(picture).resize((386, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled)[16:240, 81:305]
    torch.testing.assert_close(
        preprocess(picture[None]),
        preprocess(np.pad(expected, ((16, 16), (16, 16), (0, 0)))[None]),
    )


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(ResNet((1, 1, 1, 1)).state_dict(), path)
    with pytest.raises(WeightsError, match=r"ResNet-101.*missing, e.g. layer1.1.bn1") as error:
        load_resnet101(path)
    assert "\n" not in str(error.value)

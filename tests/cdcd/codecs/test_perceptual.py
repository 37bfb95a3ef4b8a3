"""LPIPS is rebuilt here from a Sequential VGG16, independently of the loader."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cdcd.codecs.openai import WeightsError
from cdcd.codecs.perceptual import (
    LPIPS,
    StructuralLoss,
    gradient_loss,
    load_lpips,
    make_perceptual,
    ssim,
)

WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def make_pair(seed=0, size=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 2, 3, size, size, generator=generator, dtype=dtype) * 2 - 1
    return x, y


def naive_ssim(x, y):
    """Of one channel each, `[h, w]`, a window at a time."""
    places = torch.arange(-3, 4, dtype=x.dtype)
    bell = torch.exp(-places.square() / 4.5)
    window = bell[:, None] * bell / bell.sum() ** 2
    found = torch.empty(x.shape[0] - 6, x.shape[1] - 6, dtype=x.dtype)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            a, b = x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            found[i, j] = ((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)) / (
                (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
            )
    return found


def test_ssim_is_the_formula_at_every_window():
    x, y = torch.rand(2, 1, 2, 9, 11, dtype=torch.float64)
    expected = torch.stack([naive_ssim(a, b) for a, b in zip(x[0], y[0], strict=True)])
    torch.testing.assert_close(ssim(x, y)[0], expected)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    torch.testing.assert_close(ssim(x, x), torch.ones(1, 2, 3, 5, dtype=torch.float64))


def test_gradient_loss_sees_edges_and_not_brightness():
    x, y = make_pair()
    assert float(gradient_loss(x, x + 0.3)) == pytest.approx(0, abs=1e-6)
    expected = (x - y).diff(dim=2).abs().mean() + (x - y).diff(dim=3).abs().mean()
    torch.testing.assert_close(gradient_loss(x, y), expected)


@pytest.mark.parametrize("size", [7, 8, 32, 50])
def test_the_substitute_is_zero_for_equal_pictures_alone(size):
    loss = StructuralLoss()
    x, y = make_pair(size=size)
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-5)
    assert float(loss(x, y)) > 0.1
    close = 0.9 * x + 0.1 * y
    assert float(loss(x, close)) < float(loss(x, y))


def test_the_substitute_sees_colour_and_has_a_gradient_everywhere():
    x, _ = make_pair()
    grey = x.mean(dim=1, keepdim=True).expand_as(x)
    assert float(StructuralLoss()(grey, x)) > 0.05
    made = torch.zeros_like(x, requires_grad=True)
    StructuralLoss()(made, x).backward()
    assert torch.isfinite(made.grad).all()
    assert (made.grad.abs().sum(dim=1) > 0).all()


def make_vgg():
    layers, inputs = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    vgg = make_vgg()
    state = {f"features.{name}": value.half() for name, value in vgg.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, folder / "vgg16.pth")
    lines = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(lines, folder / "vgg.pth")
    vgg.load_state_dict({name.removeprefix("features."): v.float() for name, v in state.items()})
    return folder, vgg, lines


@torch.no_grad()
def independent_lpips(vgg, lines, x, y):
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    x, y, total = (x - shift) / scale, (y - shift) / scale, 0.0
    stops = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    for index, layer in enumerate(vgg):
        x, y = layer(x), layer(y)
        if index in stops:
            apart = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            total += F.conv2d(apart, lines[f"lin{stops[index]}.model.1.weight"]).mean()
    return total


def test_lpips_is_the_weighted_distance_of_the_features(files):
    folder, vgg, lines = files
    loss = make_perceptual(folder / "vgg16.pth", folder / "vgg.pth")
    assert isinstance(loss, LPIPS)
    assert loss.title == "lpips"
    x, y = make_pair()
    torch.testing.assert_close(loss(x, y), independent_lpips(vgg, lines, x, y), rtol=1e-4, atol=0)
    assert float(loss(x, x)) == 0
    made = x.clone().requires_grad_()
    loss(made, y).backward()
    assert torch.isfinite(made.grad).all()
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_the_title_says_when_weights_are_missing():
    loss = make_perceptual(None, None)
    assert loss.title == "ssim+gradient, no LPIPS weights given"


def test_other_files_are_refused_in_one_line(files, tmp_path):
    folder, _, lines = files
    with pytest.raises(WeightsError, match=r"lpips_vgg must be torchvision's VGG16: .*26 missing"):
        load_lpips(folder / "vgg.pth", folder / "vgg.pth")
    torch.save({**lines, "lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"layers for VGG: .*1 of another shape") as caught:
        load_lpips(folder / "vgg16.pth", tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"codec\.image\.lpips_vgg must name a file"):
        load_lpips(tmp_path / "missing.pth", folder / "vgg.pth")

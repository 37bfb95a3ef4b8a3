import pytest
import torch

from cdcd.codecs.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss


@pytest.mark.parametrize("size", [8, 16, 32, 64, 70])
def test_the_discriminator_reads_pictures_of_any_size(size):
    net = PatchDiscriminator(4, size)
    logits = net(torch.rand(2, 3, size, size))
    assert logits.shape[:2] == (2, 1)
    alone = net(torch.zeros(1, 3, size, size))
    both = net(torch.stack([torch.zeros(3, size, size), torch.ones(3, size, size)]))
    torch.testing.assert_close(both[:1], alone)


def test_hinge_loss_is_zero_beyond_the_margins():
    assert float(hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0]))) == 0
    assert float(hinge_loss(torch.tensor([0.0]), torch.tensor([0.5]))) == pytest.approx(1.25)


def test_the_adaptive_weight_is_the_ratio_of_the_gradients():
    ours, theirs = torch.full((4,), 3.0), torch.full((4,), 1.5)
    assert float(adaptive_weight(ours, theirs)) == pytest.approx(2, abs=1e-3)
    assert float(adaptive_weight(ours, theirs * 0)) == 1e4

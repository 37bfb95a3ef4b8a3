import math

import pytest
import torch

from cdcd.diffusion.contrast import Contrast, contrast_terms
from cdcd.diffusion.losses import adaptive_weights, combine, row_weights
from kernels.posterior_loss import PosteriorTerms


def terms(b=3, n=4, l=5, gap=0.0):
    g = torch.Generator().manual_seed(0)
    kl, aux = torch.rand(b, l, generator=g), torch.rand(b, l, generator=g)
    neg = torch.rand(b, n, l, generator=g) + gap
    return PosteriorTerms(kl, aux, neg, neg + 0.5)


def test_adaptive_weights():
    t = torch.tensor([1, 41, 80])
    rising, falling = torch.tensor([1, 1.5, 1.9875]), torch.tensor([2, 1.5, 1.0125])
    expected = {
        "increasing": (rising, rising),
        "decreasing": (falling, falling),
        "opposed": (falling, rising),
        "none": (torch.ones(3), torch.ones(3)),
    }
    for direction, pair in expected.items():
        torch.testing.assert_close(tuple(adaptive_weights(t, 80, direction)), pair)


def test_weight_zero_and_no_contrast_are_the_vanilla_loss():
    x, t, p = terms(), torch.tensor([1, 2, 3]), torch.full((3,), 0.25)
    vanilla = combine(x, t, p, 4, 0.0, "none", None)
    zero = combine(x, t, p, 4, 0.0, "none", Contrast("step", "linear", 0.0))
    torch.testing.assert_close(vanilla.total, zero.total)
    torch.testing.assert_close(vanilla.total, (x.kl.sum(1) / 0.25 / 5).mean())


@pytest.mark.parametrize("mode", ["step", "sample"])
def test_linear_is_minus_the_mean_over_negatives(mode):
    x, t, p = terms(), torch.tensor([1, 2, 3]), torch.full((3,), 0.25)
    loss = combine(x, t, p, 4, 0.0, "none", Contrast(mode, "linear", 0.1))
    rows = x.neg_step if mode == "step" else x.neg_sample
    expected = -(0.1 * rows.sum(2).mean(1) / 0.25 / 5).mean()
    torch.testing.assert_close(loss.contrast, expected)
    torch.testing.assert_close(loss.total, loss.bound + loss.auxiliary + loss.contrast)


@pytest.mark.parametrize("mode", ["step", "sample"])
@pytest.mark.parametrize("gap", [-100.0, 0.0, 1e6])
def test_infonce_is_never_negative_and_equals_equation_2(mode, gap):
    x = terms(gap=gap)
    got = contrast_terms(Contrast(mode, "infonce", 1.0), x, 5, 1, None) / 5
    assert float(got.min()) >= 0
    if gap == 0.0:
        positive = (x.kl if mode == "step" else x.aux).sum(1) / 5
        negative = (x.neg_step if mode == "step" else x.neg_sample).sum(2) / 5
        f, f_j = (-positive).exp(), (-negative).exp().sum(1)
        torch.testing.assert_close(got, -(f / (f + f_j)).log())


def test_infonce_of_equal_negatives_is_log_n_plus_one():
    kl = torch.rand(2, 5)
    x = PosteriorTerms(kl, kl, kl[:, None].expand(2, 7, 5), kl[:, None].expand(2, 7, 5))
    got = contrast_terms(Contrast("step", "infonce", 1.0), x, 5, 1, None) / 5
    torch.testing.assert_close(got, torch.full((2,), math.log(8)))


def test_parallel_chains_replace_shared_negatives():
    x = terms()
    own = torch.rand(3, 4)
    got = contrast_terms(Contrast("step", "linear", 2.0), x, 5, 1, own)
    torch.testing.assert_close(got, -2 * own.mean(1))


def test_importance_weights_are_unbiased():
    x = terms()
    losses = []
    for t, p in ((1, 0.2), (2, 0.8)):
        at = torch.full((3,), t)
        losses.append(p * combine(x, at, torch.full((3,), p), 2, 0.0, "none", None).total)
    torch.testing.assert_close(sum(losses), 2 * x.kl.mean())


@pytest.mark.parametrize("direction", ["increasing", "decreasing", "opposed", "none"])
@pytest.mark.parametrize("contrast", [None, Contrast("step", "linear", 0.1),
                                      Contrast("sample", "linear", 0.2)])  # fmt: skip
def test_row_weights_add_up_to_the_total(direction, contrast):
    x, t, p = terms(), torch.tensor([1, 2, 4]), torch.tensor([0.1, 0.2, 0.7])
    choices = (4, 0.3, direction, contrast)
    weights = row_weights(t, p, 5, *choices, 4)
    total = sum((weights[name] * getattr(x, name)).sum() for name in weights)
    torch.testing.assert_close(total, combine(x, t, p, *choices).total)

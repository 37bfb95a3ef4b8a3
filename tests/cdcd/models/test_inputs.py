"""Conditions of a batch: dropping, repeating and leaving out."""

import pytest
import torch

from cdcd.models.inputs import ConditionInputs, DropRates, PictureInputs


def pictures(b=3):
    yes = torch.ones(b, dtype=torch.bool)
    text = torch.arange(b * 8.0).view(b, 4, 2)
    return PictureInputs(text, torch.arange(1, b + 1).clamp_max(4), torch.arange(b), yes)


def dances(b=3):
    yes = torch.ones(b, dtype=torch.bool)
    return ConditionInputs(torch.rand(b, 6, 2), torch.rand(b, 3, 2), torch.arange(b), yes, yes)


@pytest.mark.parametrize("make", [pictures, dances])
def test_length_device_and_whether_anything_is_given(make):
    x = make()
    assert len(x) == 3
    assert x.device == torch.device("cpu")
    assert x.is_given
    assert not x.without().is_given
    assert x.is_given  # the first one is as it was


@pytest.mark.parametrize("make", [pictures, dances])
def test_repeating_keeps_a_sample_together(make):
    x = make()
    twice = x.repeat(2)
    assert len(twice) == 6
    for name, value in vars(x).items():
        other = getattr(twice, name)
        assert torch.equal(other[0::2], value), name
        assert torch.equal(other[1::2], value), name


@pytest.mark.parametrize("make", [pictures, dances])
def test_everything_is_dropped_as_often_as_asked(make):
    x, generator = make(4000), torch.Generator().manual_seed(0)
    assert not x.dropped(DropRates(0, 0, 1.0), generator).is_given
    kept = x.dropped(DropRates(0, 0, 0.25), generator)
    flags = [value for name, value in vars(kept).items() if name.startswith("has_")]
    assert all(abs(float(flag.float().mean()) - 0.75) < 0.03 for flag in flags)
    assert all(torch.equal(flag, flags[0]) for flag in flags)  # together, or not at all


def test_what_was_not_given_stays_away():
    x = pictures().without().dropped(DropRates(0, 0, 0.0), torch.Generator())
    assert not x.is_given

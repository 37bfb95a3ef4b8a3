import pytest

from cdcd.features import make_video_feature
from cdcd.features.base import FeatureError, check_identity
from cdcd.features.video import MotionEnergy


def test_equal_identities_pass() -> None:
    check_identity(MotionEnergy(8).identity(), MotionEnergy(8).identity(), "here")


def test_two_extractors_are_never_mixed() -> None:
    mine = MotionEnergy(8).identity()
    message = r"data/x: all features .* one extractor: got dim \d+ instead of \d+, grid 4 instead"
    with pytest.raises(FeatureError, match=message):
        check_identity(mine, MotionEnergy(4).identity(), "data/x")
    with pytest.raises(FeatureError, match=r"weights_sha256 'b' instead of None"):
        check_identity(mine, {**mine, "weights_sha256": "b"}, "data/x")


def test_an_extractor_comes_back_from_its_identity() -> None:
    identity = MotionEnergy(5, 25, 80).identity()
    assert make_video_feature(identity).identity() == identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "optical"}, "motion_energy, cells or i3d: got 'optical'"),
        ({"version": "0"}, "version '0' instead of '1'"),
    ],
)
def test_unknown_identities_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        make_video_feature({**MotionEnergy(5).identity(), **change})

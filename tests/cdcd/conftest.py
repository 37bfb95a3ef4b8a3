"""Golden numbers that more than one module answers to."""

from __future__ import annotations

from typing import NamedTuple

import pytest

_GOLDEN = {
    "gBR_sBM_cAll_d06_mBR2_ch06": (
        576,
        [-0.283553, 1.847883, -0.272165, 0.624226, 0.256745, -0.737851],
        [-0.428420, 1.940246, -0.263133, 0.995879, 0.085354, 0.030646],
    ),
    "gJS_sBM_cAll_d03_mJS2_ch07": (
        576,
        [0.001532, 1.902040, -0.108044, 0.997668, 0.068224, -0.001767],
        [0.124015, 1.950030, -0.194399, 0.975836, 0.202479, -0.082136],
    ),
    "gJS_sFM_cAll_d02_mJS4_ch09": (
        1919,
        [0.018591, 1.898473, -0.099776, 0.996630, 0.045440, 0.068296],
        [0.011400, 1.914803, -0.354854, 0.925411, 0.067421, -0.372920],
    ),
}


class GoldenMotion(NamedTuple):
    """A real sequence: its frames, and the first six of 219 numbers of frames 0 and 119."""

    name: str
    num_frames: int
    first: list[float]
    later: list[float]


@pytest.fixture(params=_GOLDEN)
def golden_motion(request: pytest.FixtureRequest) -> GoldenMotion:
    return GoldenMotion(request.param, *_GOLDEN[request.param])

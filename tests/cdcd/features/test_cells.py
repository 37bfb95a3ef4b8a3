import numpy as np
import pytest

from cdcd.features import make_video_feature
from cdcd.features.cells import Cells, spread


def frames(count, height=96, width=170, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_a_segment_gives_one_vector_of_the_published_size():
    feature = Cells(30, 60, 96)
    rows = feature(iter(frames(60)))
    assert rows.shape == (1, 2048)
    assert rows.dtype == np.float32
    assert feature.num_steps(60) == 1
    assert feature.num_steps(61) == 2
    assert feature.rate_hz == 0.5
    assert make_video_feature(feature.identity()).identity() == feature.identity()


def test_sixty_four_frames_are_spread_evenly_over_the_segment():
    assert spread(list(range(64))) == list(range(64))
    assert spread(list(range(128))) == list(range(1, 128, 2))
    few = spread(list(range(60)))
    assert len(few) == 64
    assert few == sorted(few)
    assert set(few) == set(range(60))
    assert spread([7]) == [7] * 64


def test_brightness_and_change_are_told_apart_and_placed():
    still = [np.full((224, 224, 3), 51, np.uint8)] * 8
    (row,) = Cells(30, 8, 224)(iter(still))
    np.testing.assert_allclose(row[:1024], 0.2, atol=1e-6)
    np.testing.assert_allclose(row[1024:], 0)
    blinking = [picture.copy() for picture in still]
    for picture in blinking[::2]:
        picture[:112, :112] = 255
    (row,) = Cells(30, 8, 224)(iter(blinking))
    change = row[1024:].reshape(32, 32)
    assert change[:15, :15].min() > 0.05
    assert change[17:].max() == change[:, 17:].max() == 0


def test_long_videos_are_windows_of_a_segment_and_streams_are_the_whole():
    feature = Cells(10, 20, 48)
    clip = frames(50, 48, 64)
    rows = feature(iter(clip))
    assert len(rows) == feature.num_steps(50) == 3
    np.testing.assert_array_equal(rows, list(feature.stream(iter(clip))))
    np.testing.assert_array_equal(rows[1:2], feature(iter(clip[20:40])))


def test_windows_need_frames():
    with pytest.raises(ValueError, match="window_frames must be at least 1: got 0"):
        Cells(30, 0, 96)

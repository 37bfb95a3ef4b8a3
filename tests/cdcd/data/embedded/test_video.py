from fractions import Fraction

import av
import numpy as np
import pytest

from cdcd.data.embedded import dance, music, skeleton, video

HEIGHT = 48
NUM_FRAMES = 123


@pytest.fixture(scope="module")
def body():
    score = music.compose("KR", 1, seed=0)
    style = dance.make_style(np.random.default_rng(0))
    rng = np.random.default_rng(0)
    poses, trans = dance.choreograph(score, style, num_frames=NUM_FRAMES, rng=rng)
    return skeleton.forward_kinematics(poses, trans, style.scaling)


@pytest.fixture(scope="module")
def sound():
    tone = 12000 * np.sin(2 * np.pi * 440 * np.arange(3 * 48000) / 48000)
    return np.stack([tone, 0.5 * tone], axis=1).astype(np.int16)


@pytest.fixture(scope="module")
def path(body, sound, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = video.draw_frames(body, skeleton.make_cameras()[0], HEIGHT)
    video.write_video(path, frames, sound, HEIGHT)
    return path


def test_pictures_are_h264_at_60000_1001(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == Fraction(60000, 1001)
        assert (stream.width, stream.height) == video.frame_size(HEIGHT)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [Fraction(1001 * i, 60000) for i in range(len(times))]
    assert len(times) == video.num_video_frames(NUM_FRAMES) == 123


def test_sound_is_stereo_aac_as_long_as_the_pictures(path):
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert (stream.rate, stream.channels) == (48000, 2)
        blocks = [frame.to_ndarray() for frame in container.decode(stream)]
    decoded = np.concatenate(blocks, axis=1)
    # AAC works in blocks of 1024.
    assert abs(decoded.shape[1] / 48000 - NUM_FRAMES * 1001 / 60000) < 2048 / 48000
    assert np.abs(decoded[0]).max() > 1.5 * np.abs(decoded[1]).max() > 0


def test_equal_input_gives_equal_bytes(path, body, sound, tmp_path):
    frames = video.draw_frames(body, skeleton.make_cameras()[0], HEIGHT)
    video.write_video(tmp_path / "again.mp4", frames, sound, HEIGHT)
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()


def test_length_follows_the_motion():
    assert video.num_video_frames(720) == 719
    assert video.num_video_frames(719) == 718
    assert video.frame_size(120) == (214, 120)
    assert video.frame_size(48)[0] % 2 == 0


def test_pictures_change_where_the_dancer_moves(body):
    camera = skeleton.make_cameras()[0]
    frames = np.stack(list(video.draw_frames(body, camera, HEIGHT))).astype(np.int16)
    changed = np.abs(np.diff(frames, axis=0)).max(axis=(0, 3)) > 20
    width = frames.shape[2]
    assert changed.any()
    assert not changed[:, : width // 6].any()
    assert not changed[:, -width // 6 :].any()
    energy = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    speed = np.linalg.norm(np.diff(body.joints[..., :2], axis=0), axis=2).mean(axis=1)
    assert np.corrcoef(energy, speed[: len(energy)])[0, 1] > 0.8


def test_sides_have_their_own_colours(body):
    frame = next(video.draw_frames(body, skeleton.make_cameras()[0], 120)).astype(int)
    orange = (frame[..., 0] > 180) & (frame[..., 2] < 110)
    blue = (frame[..., 2] > 180) & (frame[..., 0] < 130)
    assert orange.sum() > 30
    assert blue.sum() > 30
    # The dancer faces the camera, so the left side is on the right of the picture.
    assert np.argwhere(orange)[:, 1].mean() > np.argwhere(blue)[:, 1].mean()

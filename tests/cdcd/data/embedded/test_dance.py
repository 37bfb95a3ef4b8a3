import numpy as np
import pytest

from cdcd.data.embedded import dance, music, skeleton
from cdcd.data.samples import GENRES

NUM_FRAMES = 480


def _dance(genre, *, digit=2, seed=0, style=None):
    score = music.compose(genre, digit, seed=0)
    style = style or dance.make_style(music.generator(seed, genre, "style"))
    rng = music.generator(seed, genre, "moves")
    poses, trans = dance.choreograph(score, style, num_frames=NUM_FRAMES, rng=rng)
    body = skeleton.forward_kinematics(poses, trans, style.scaling)
    return score, style, poses, trans, body


@pytest.fixture(scope="module")
def dances():
    return {genre: _dance(genre) for genre in GENRES}


def _speed(body):
    """Mean speed of the joints in cm/s; entry i lies between frames i and i + 1."""
    return np.linalg.norm(np.diff(body.joints, axis=0), axis=2).mean(axis=1) * 60


@pytest.mark.parametrize("genre", GENRES)
def test_arrays_are_those_of_the_real_files(dances, genre):
    _, style, poses, trans, _ = dances[genre]
    assert poses.shape == (NUM_FRAMES, 72)
    assert trans.shape == (NUM_FRAMES, 3)
    assert poses.dtype == trans.dtype == np.float32
    assert np.isfinite(poses).all()
    assert 89 < style.scaling < 100
    assert np.linalg.norm(poses.reshape(-1, 24, 3), axis=2).max() < np.pi + 1e-5


@pytest.mark.parametrize("genre", GENRES)
def test_speed_peaks_at_the_hits_and_nowhere_else(dances, genre):
    from scipy.signal import find_peaks

    score, _, _, _, body = dances[genre]
    speed = _speed(body)
    hits = np.unique([e.time for e in score.events if 0.1 < e.time < NUM_FRAMES / 60 - 0.1])
    found, _ = find_peaks(speed, height=10, prominence=6)
    peaks = (found + 0.5) / 60
    peaks = peaks[(peaks > 0.06) & (peaks < NUM_FRAMES / 60 - 0.06)]
    distance = np.abs(peaks[:, None] - hits)
    assert (distance.min(axis=0) < 0.03).mean() > 0.9
    assert (distance.min(axis=1) < 0.03).mean() > 0.95
    assert abs(np.mean((peaks[:, None] - hits)[distance < 0.03])) < 0.004


@pytest.mark.parametrize("genre", GENRES)
def test_every_hit_shows_from_the_front(dances, genre):
    score, _, _, _, body = dances[genre]
    seen = np.linalg.norm(np.diff(body.joints[..., :2], axis=0), axis=2).mean(axis=1) * 60
    for event in score.events:
        frame = round(event.time * 60)
        if 2 <= frame < NUM_FRAMES - 2:
            assert seen[frame - 2 : frame + 2].max() > 10, event


@pytest.mark.parametrize("genre", GENRES)
def test_bodies_stay_on_the_floor_and_move_like_bodies(dances, genre):
    _, style, _, _, body = dances[genre]
    ankles = body.joints[:, [7, 8], 1] - skeleton.FLOOR_CM
    flat = skeleton.ANKLE_HEIGHT * style.scaling
    assert ankles.min() > flat - 0.5
    assert (ankles.min(axis=1) < flat + 9).all()
    assert body.joints[..., 1].min() > skeleton.FLOOR_CM
    assert np.abs(body.joints[:, 0, [0, 2]]).max() < 60
    speed = np.linalg.norm(np.diff(body.joints, axis=0), axis=2) * 60
    assert speed.max() < 2000
    knee = skeleton.JOINTS.index("lknee")
    assert (dances[genre][2].reshape(-1, 24, 3)[:, knee, 0] >= -1e-6).all()


def _manner(poses):
    """How a body is held on average and which joints move, `[48, 3]`."""
    joints = poses.reshape(-1, 24, 3)
    return np.concatenate([joints.mean(axis=0), joints.std(axis=0)])


def test_genres_are_told_apart_by_how_they_are_held_and_moved(dances):
    known = {genre: _manner(poses) for genre, (_, _, poses, _, _) in dances.items()}
    for genre in GENRES:
        # Another dancer to another song of the genre is nearer than any other genre.
        _, _, poses, _, _ = _dance(genre, digit=4, seed=3)
        seen = [_manner(poses), _manner(_mirrored(poses))]
        nearest = min(known, key=lambda g: min(np.linalg.norm(known[g] - s) for s in seen))
        assert nearest == genre


def _mirrored(poses):
    swap = [
        skeleton.JOINTS.index({"l": "r", "r": "l"}[name[0]] + name[1:])
        if name[0] in "lr" and name != "root"
        else i
        for i, name in enumerate(skeleton.JOINTS)
    ]
    return (poses.reshape(-1, 24, 3)[:, swap] * (1, -1, -1)).reshape(-1, 72)


def test_choreographies_and_dancers_differ():
    first, other_moves = _dance("LO", seed=0), _dance("LO", seed=0, digit=2)
    np.testing.assert_array_equal(first[2], other_moves[2])
    rng = np.random.default_rng(7)
    again, _ = dance.choreograph(first[0], first[1], num_frames=NUM_FRAMES, rng=rng)
    assert np.abs(again - first[2]).max() > 0.3
    style = dance.make_style(np.random.default_rng(5))
    assert style != first[1]
    assert np.abs(_dance("LO", style=style)[2] - first[2]).max() > 0.1


def test_motion_is_a_function_of_time_not_of_length():
    score, style, poses, _, _ = _dance("WA")
    rng = music.generator(0, "WA", "moves")
    short, _ = dance.choreograph(score, style, num_frames=NUM_FRAMES - 1, rng=rng)
    np.testing.assert_array_equal(short, poses[:-1])

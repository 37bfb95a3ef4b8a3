import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cdcd.data.embedded import skeleton
from cdcd.data.embedded.skeleton import JOINTS, OFFSETS, PARENTS

SCALING = 93.0


@pytest.fixture
def moved():
    rng = np.random.default_rng(0)
    poses = rng.normal(0, 1, (20, 72))
    trans = rng.normal(0, 100, (20, 3))
    return poses, trans, skeleton.forward_kinematics(poses, trans, SCALING)


def test_rotation_matrices_agree_with_scipy():
    vectors = np.random.default_rng(0).normal(0, 2, (50, 3))
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(skeleton.rotation_matrices(vectors), expected, atol=1e-12)


def test_no_rotation_is_exactly_the_identity():
    np.testing.assert_array_equal(skeleton.rotation_matrices(np.zeros((2, 3)))[1], np.eye(3))


def test_zero_pose_is_the_rest_pose():
    body = skeleton.forward_kinematics(np.zeros((1, 72)), np.zeros((1, 3)), SCALING)
    rest = np.zeros((24, 3))
    for joint, parent in enumerate(PARENTS):
        rest[joint] = OFFSETS[joint] + (rest[parent] if parent >= 0 else 0)
    np.testing.assert_allclose(body.joints[0], SCALING * rest, atol=1e-9)


def test_bones_keep_their_length_under_any_rotation(moved):
    _, _, body = moved
    for joint, parent in enumerate(PARENTS[1:], start=1):
        length = np.linalg.norm(body.joints[:, joint] - body.joints[:, parent], axis=1)
        np.testing.assert_allclose(length, SCALING * np.linalg.norm(OFFSETS[joint]))


def test_turning_the_root_turns_the_whole_body(moved):
    poses, trans, body = moved
    turn = Rotation.from_rotvec([0.3, -1.0, 0.5])
    turned_poses = poses.copy()
    turned_poses[:, :3] = (turn * Rotation.from_rotvec(poses[:, :3])).as_rotvec()
    turned = skeleton.forward_kinematics(turned_poses, trans, SCALING)
    root = body.joints[:, :1]
    expected = turn.apply((body.joints - root).reshape(-1, 3)).reshape(20, 24, 3) + root
    np.testing.assert_allclose(turned.joints, expected, atol=1e-8)


def test_a_joint_moves_only_its_descendants(moved):
    poses, trans, body = moved
    bent = poses.copy()
    elbow = JOINTS.index("lelbow")
    bent[:, 3 * elbow : 3 * elbow + 3] += 0.7
    joints = skeleton.forward_kinematics(bent, trans, SCALING).joints
    moves = np.abs(joints - body.joints).max(axis=(0, 2)) > 1e-6
    assert {JOINTS[j] for j in np.flatnonzero(moves)} == {"lwrist", "lhand"}


def test_rest_pose_is_symmetric():
    body = skeleton.forward_kinematics(np.zeros((1, 72)), np.zeros((1, 3)), SCALING)
    points = dict(zip(skeleton.KEYPOINTS, skeleton.coco_keypoints(body)[0], strict=True))
    for name, (x, y, z) in points.items():
        if name.startswith("left"):
            np.testing.assert_allclose(points[name.replace("left", "right")], (-x, y, z))
            assert x > 0
    assert points["nose"][1] > points["left_shoulder"][1] > points["left_hip"][1]


def test_face_keypoints_follow_the_head(moved):
    _, _, body = moved
    points = skeleton.coco_keypoints(body)
    head = body.joints[:, JOINTS.index("head"), None]
    distances = np.linalg.norm(points[:, :5] - head, axis=2)
    np.testing.assert_allclose(distances, np.broadcast_to(distances[0], distances.shape))


@pytest.mark.parametrize("camera", skeleton.make_cameras(), ids=lambda camera: camera.name)
def test_cameras_see_the_dancer_upright_in_the_middle(camera):
    feet = np.array([0.0, skeleton.FLOOR_CM, 0.0])
    head = feet + np.array([0.0, 165.0, 0.0])
    low, high = camera.project(feet), camera.project(head)
    assert low[0] == pytest.approx(960, abs=1e-6)
    assert high[0] == pytest.approx(960, abs=1e-6)
    assert 0 < high[1] < low[1] < 1080
    assert np.linalg.det(skeleton.rotation_matrices(camera.rotation)) == pytest.approx(1)


def test_the_front_camera_sees_the_left_side_on_the_right():
    camera = skeleton.make_cameras()[0]
    left = camera.project(np.array([50.0, 150.0, 0.0]))
    assert left[0] > 960

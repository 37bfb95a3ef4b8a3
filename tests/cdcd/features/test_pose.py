import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcd.features.pose import motion_219, rotation_matrices


@pytest.mark.skipif("CDCD_REAL_DATA" not in os.environ, reason="CDCD_REAL_DATA is not set")
def test_real_sequences_give_the_golden_vectors(golden_motion: Any) -> None:
    from cdcd.data import pickles

    folder = Path(os.environ["CDCD_REAL_DATA"]) / "aist_real/annotations/motions"
    data = pickles.load(folder / f"{golden_motion.name}.pkl")
    vector = motion_219(data["smpl_poses"], data["smpl_trans"], data["smpl_scaling"])
    assert vector.shape == (golden_motion.num_frames, 219)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector[0, :6], golden_motion.first, atol=1e-5)
    np.testing.assert_allclose(vector[119, :6], golden_motion.later, atol=1e-5)


def test_zero_pose_is_the_identity_of_every_joint() -> None:
    vector = motion_219(np.zeros((2, 72)), np.full((2, 3), 90.0), np.array([45.0]))
    np.testing.assert_array_equal(vector[:, :3], 2.0)
    np.testing.assert_array_equal(
        vector[:, 3:].reshape(-1, 9), np.eye(3).ravel()[None].repeat(48, 0)
    )


def test_rotations_are_proper_and_keep_their_axis() -> None:
    generator = np.random.default_rng(0)
    # Angles beyond pi and next to zero, where naive formulas break.
    vectors = generator.normal(size=(500, 3)) * np.geomspace(1e-9, 6, 500)[:, None]
    matrices = rotation_matrices(vectors)
    np.testing.assert_allclose(
        matrices @ np.swapaxes(matrices, -1, -2), np.eye(3)[None].repeat(500, 0), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-12)
    np.testing.assert_allclose((matrices @ vectors[..., None])[..., 0], vectors, atol=1e-12)
    angle = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(
        np.trace(matrices, axis1=1, axis2=2), 1 + 2 * np.cos(angle), atol=1e-12
    )


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    matrix = rotation_matrices(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(matrix @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], atol=1e-12)


def test_both_pose_layouts_agree_and_arguments_stay() -> None:
    generator = np.random.default_rng(1)
    poses = generator.normal(size=(5, 24, 3)).astype(np.float32)
    trans = generator.normal(size=(5, 3)).astype(np.float32)
    kept = poses.copy(), trans.copy()
    flat = motion_219(poses.reshape(5, 72), trans, 90.0)
    np.testing.assert_array_equal(flat, motion_219(poses, trans, np.array([90.0])))
    np.testing.assert_array_equal(poses, kept[0])
    np.testing.assert_array_equal(trans, kept[1])


@pytest.mark.parametrize(
    ("poses", "trans", "scaling", "message"),
    [
        ((4, 71), (4, 3), 1.0, r"smpl_poses must be .*got \[4, 71\]"),
        ((4, 72), (3, 3), 1.0, r"smpl_trans must be .*4 frames.*got \[3, 3\]"),
        ((4, 72), (4, 3), 0.0, r"smpl_scaling must be one positive number: got \[0.0\]"),
        ((4, 72), (4, 3), np.nan, r"smpl_scaling"),
    ],
)
def test_wrong_shapes_are_named(
    poses: tuple[int, ...], trans: tuple[int, ...], scaling: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        motion_219(np.zeros(poses), np.zeros(trans), scaling)

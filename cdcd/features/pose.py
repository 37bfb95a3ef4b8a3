"""SMPL poses to the 219 numbers per frame of AIST++: position and 24 joint rotations."""

from __future__ import annotations

import numpy as np

NUM_JOINTS = 24
DIM = 3 + 9 * NUM_JOINTS
RATE_HZ = 60.0  # of AIST++ annotations


def rotation_matrices(axis_angle: np.ndarray) -> np.ndarray:
    """Rotations of `|v|` radians about `v`, by Rodrigues' formula.

    Args:
        axis_angle: `[..., 3]` in radians.

    Returns:
        float64 `[..., 3, 3]`; the identity where v is zero.
    """
    vectors = np.asarray(axis_angle, dtype=np.float64)
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    cross = np.zeros((*vectors.shape[:-1], 3, 3))
    x, y, z = np.moveaxis(vectors, -1, 0)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross[..., 1, 0], cross[..., 2, 0], cross[..., 2, 1] = z, -y, x
    # sin(a)/a and (1 - cos(a))/a^2, both smooth at a = 0.
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def motion_219(poses: np.ndarray, trans: np.ndarray, scaling: np.ndarray | float) -> np.ndarray:
    """Position in units of the body's scale, then the 24 joint rotations, row by row.

    Args:
        poses: `smpl_poses`, axis-angle in radians, `[n, 72]` or `[n, 24, 3]`.
        trans: `smpl_trans`, `[n, 3]` in centimetres.
        scaling: `smpl_scaling`, one positive number; `trans` is divided by it once.

    Returns:
        float32 `[n, 219]`: `trans / scaling` and 24 row-major 3 x 3 matrices. The arguments are
        not changed.

    Raises:
        ValueError: the shapes disagree, or the scaling is not one positive number.
    """
    poses, trans = np.asarray(poses), np.asarray(trans)
    scale = np.asarray(scaling, dtype=np.float64)
    if poses.ndim not in (2, 3) or poses.shape[1:] not in ((3 * NUM_JOINTS,), (NUM_JOINTS, 3)):
        raise ValueError(
            f"smpl_poses must be [n, 72] or [n, 24, 3]: got {list(poses.shape)}; "
            "use the files of motions/ of AIST++"
        )
    if trans.shape != (len(poses), 3):
        raise ValueError(
            f"smpl_trans must be [n, 3] for the {len(poses)} frames of smpl_poses: got "
            f"{list(trans.shape)}; use both from one file"
        )
    if scale.size != 1 or not float(scale.ravel()[0]) > 0:
        raise ValueError(
            f"smpl_scaling must be one positive number: got {scale.ravel().tolist()}; "
            "use the value of the motion's own file"
        )
    position = trans.astype(np.float64) / scale.ravel()[0]
    rotations = rotation_matrices(poses.reshape(-1, NUM_JOINTS, 3))
    vector = np.concatenate([position, rotations.reshape(len(poses), -1)], axis=1)
    return vector.astype(np.float32)

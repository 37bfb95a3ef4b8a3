"""The 24 joints of a stand-in dancer: rest pose, forward kinematics, key points and cameras.

The joint tree and order are SMPL's, the proportions are our own: the body model itself is licensed
and is not needed, because every consumer reads joint rotations and the root's position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JOINTS = (
    "root", "lhip", "rhip", "belly", "lknee", "rknee", "spine", "lankle", "rankle", "chest",
    "ltoes", "rtoes", "neck", "linshoulder", "rinshoulder", "head", "lshoulder", "rshoulder",
    "lelbow", "relbow", "lwrist", "rwrist", "lhand", "rhand",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

THIGH, SHIN = 0.39, 0.41
ANKLE_HEIGHT = 0.075
"""Height of an ankle over the floor, in body units, while the foot stands flat."""

FLOOR_CM = 62.0
"""World height of the floor: the origin of the real captures also lies below it."""


def _rest_offsets() -> Array:
    left = {
        "root": (0.0, -0.22, 0.02),
        "lhip": (0.065, -0.085, 0.0),
        "belly": (0.0, 0.11, -0.01),
        "lknee": (0.0, -THIGH, 0.0),
        "spine": (0.0, 0.14, 0.0),
        "lankle": (0.0, -SHIN, 0.0),
        "chest": (0.0, 0.055, 0.0),
        "ltoes": (0.0, -0.055, 0.13),
        "neck": (0.0, 0.21, -0.02),
        "linshoulder": (0.08, 0.115, -0.02),
        "head": (0.0, 0.09, 0.04),
        "lshoulder": (0.105, 0.03, 0.0),
        "lelbow": (0.26, 0.0, 0.0),
        "lwrist": (0.25, 0.0, 0.0),
        "lhand": (0.085, 0.0, 0.0),
    }
    right = {f"r{name[1:]}": (-x, y, z) for name, (x, y, z) in left.items() if name[0] == "l"}
    offsets = left | right
    return np.array([offsets[name] for name in JOINTS])


OFFSETS: Array = _rest_offsets()
"""float64 `[24, 3]`: each joint from its parent in the T-pose, y up, facing +z, left is +x.

Body units: one unit is `smpl_scaling` centimetres. The root's row is its place relative to
`smpl_trans`, as in SMPL, whose model origin lies above the pelvis.
"""

KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
_FACE: Array = np.array(
    [
        (0.0, 0.03, 0.11),
        (0.03, 0.065, 0.09),
        (-0.03, 0.065, 0.09),
        (0.07, 0.05, 0.01),
        (-0.07, 0.05, 0.01),
    ]
)
_BODY = [JOINTS.index(name) for name in (
    "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist", "lhip", "rhip",
    "lknee", "rknee", "lankle", "rankle",
)]  # fmt: skip
_HEAD = JOINTS.index("head")


def rotation_matrices(axis_angle: Array) -> Array:
    """Turn axis-angle vectors `[..., 3]` (radians) into rotation matrices `[..., 3, 3]`."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(np.asarray(axis_angle, dtype=np.float64), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = cross.reshape(*x.shape, 3, 3)
    # sinc keeps both factors finite at the zero rotation.
    sine = np.sinc(angle / np.pi)
    cosine = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + sine * cross + cosine * (cross @ cross)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Joints of a clip in the world.

    Attributes:
        joints: float64 `[n, 24, 3]`, centimetres.
        rotations: float64 `[n, 24, 3, 3]`, each joint's orientation in the world.
        scaling: centimetres per body unit.
    """

    joints: Array
    rotations: Array
    scaling: float


def forward_kinematics(poses: Array, trans: Array, scaling: float) -> Skeleton:
    """Place the joints of every frame.

    Args:
        poses: `[n, 72]` axis-angle joint rotations in radians, SMPL order.
        trans: `[n, 3]` position of the model's origin in centimetres.
        scaling: centimetres per body unit.
    """
    local = rotation_matrices(np.asarray(poses, dtype=np.float64).reshape(-1, 24, 3))
    n = len(local)
    joints = np.empty((n, 24, 3))
    rotations = np.empty((n, 24, 3, 3))
    joints[:, 0] = np.asarray(trans, dtype=np.float64) + scaling * OFFSETS[0]
    rotations[:, 0] = local[:, 0]
    for joint in range(1, 24):
        parent = PARENTS[joint]
        rotations[:, joint] = rotations[:, parent] @ local[:, joint]
        joints[:, joint] = joints[:, parent] + scaling * rotations[:, parent] @ OFFSETS[joint]
    return Skeleton(joints, rotations, scaling)


def coco_keypoints(skeleton: Skeleton) -> Array:
    """Return the 17 COCO key points `[n, 17, 3]` in centimetres."""
    face = np.einsum("nij,kj->nki", skeleton.rotations[:, _HEAD], _FACE) * skeleton.scaling
    return np.concatenate(
        [skeleton.joints[:, _HEAD, None] + face, skeleton.joints[:, _BODY]], axis=1
    )


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera in the convention of the AIST++ camera files (OpenCV, centimetres)."""

    name: str
    size: tuple[int, int]
    matrix: Array  # 3 3
    rotation: Array  # 3, axis-angle, world to camera
    translation: Array  # 3

    def project(self, points: Array) -> Array:
        """Project world points `[..., 3]` to pixels `[..., 2]` of a picture of `size`."""
        inside = points @ rotation_matrices(self.rotation).T + self.translation
        pixels = inside @ self.matrix.T
        return np.asarray(pixels[..., :2] / pixels[..., 2:])

    def as_setting(self) -> dict[str, Any]:
        """Return the entry of a `setting*.json` file."""
        return {
            "name": self.name,
            "size": list(self.size),
            "matrix": self.matrix.tolist(),
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
            "distortions": [0.0] * 5,
        }


def _look_at(name: str, azimuth: float, height_cm: float, distance_cm: float) -> Camera:
    from scipy.spatial.transform import Rotation

    target = np.array([0.0, FLOOR_CM + 96.0, 0.0])
    place = np.array(
        [distance_cm * np.sin(azimuth), FLOOR_CM + height_cm, distance_cm * np.cos(azimuth)]
    )
    ahead = (target - place) / np.linalg.norm(target - place)
    right = np.cross(ahead, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    matrix = np.stack([right, np.cross(ahead, right), ahead])
    return Camera(
        name=name,
        size=(1920, 1080),
        matrix=np.array([[2150.0, 0.0, 960.0], [0.0, 2150.0, 540.0], [0.0, 0.0, 1.0]]),
        rotation=Rotation.from_matrix(matrix).as_rotvec(),
        translation=-matrix @ place,
    )


def make_cameras() -> tuple[Camera, ...]:
    """Return nine cameras: c01 in front, c02 to c08 around the dancer, c09 in front from above."""
    ring = [_look_at(f"c{i + 1:02d}", i * np.pi / 4, 130.0, 470.0) for i in range(8)]
    return (*ring, _look_at("c09", 0.0, 330.0, 450.0))

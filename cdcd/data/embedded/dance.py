"""Dances of the stand-in data: a song's score turned into SMPL poses.

Every drum hit moves some limbs from one held pose to the next, with the greatest speed at the very
moment of the hit: kicks drop and lift the pelvis and step, snares swing the arms, hats flick a
forearm and nod the head. The genre gives posture and vocabulary, the dancer a style, the
choreography the order of moves. Everything is a smooth function of continuous time that is sampled
at 60 Hz last, because hits do not fall on frame borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded.music import BEATS_PER_BAR, Event, Score
from cdcd.data.embedded.skeleton import ANKLE_HEIGHT, FLOOR_CM, OFFSETS, SHIN, THIGH

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
Arm = tuple[Vector, Vector]

MOTION_RATE_HZ = 60
_STANDING = THIGH + SHIN + ANKLE_HEIGHT + 0.085
"""Height of the pelvis over the floor with straight legs, in body units."""


@dataclass(frozen=True)
class Vocabulary:
    """How a genre stands and moves; lengths in body units, angles in degrees.

    An arm is two directions, upper arm and forearm, in the frame of the chest with x pointing
    outwards on either side.

    Attributes:
        height: pelvis height as a share of the standing one.
        stance: distance of each foot from the middle.
        lean: forward lean of the trunk.
        moves: arm poses that snares alternate through, grouped into moves of two poses.
        rest: pose of the arm that does not lead.
        arms: whether a snare moves both arms alike, one after the other, or in opposition.
        flick: what hats do to the forearm: the direction that it flicks towards.
        drop: how far a kick lowers or lifts the pelvis.
        step: how far a kick sets a foot.
        lift: how high that foot is raised.
        sway: how far a kick shifts the pelvis sideways.
        pop: spine pitch that a kick adds or takes back.
        twist: spine yaw towards the side of a snare.
        nod: head pitch of a hat.
        seconds: how long one movement takes.
    """

    height: float
    stance: float
    lean: float
    moves: tuple[tuple[Arm, Arm], ...]
    rest: Arm
    arms: Literal["both", "alternate", "opposed"]
    flick: Vector
    drop: float
    step: float
    lift: float
    sway: float
    pop: float
    twist: float
    nod: float
    seconds: float


_DOWN: Arm = ((0.3, -1.0, 0.0), (0.2, -0.9, 0.4))

VOCABULARIES: dict[str, Vocabulary] = {
    # Low and wide, hands near the floor, busy legs.
    "BR": Vocabulary(
        height=0.66, stance=0.3, lean=38, arms="opposed",
        moves=(
            (((0.5, -0.8, 0.5), (0.1, -1.0, 0.3)), ((0.9, -0.1, 0.1), (1.0, 0.2, 0.2))),
            (((0.3, -0.6, 0.9), (-0.4, -0.8, 0.6)), ((0.8, -0.6, -0.1), (0.9, -0.2, -0.1))),
        ),
        rest=((0.4, -0.8, 0.5), (0.0, -1.0, 0.3)), flick=(0.9, 0.3, 0.3),
        drop=0.13, step=0.24, lift=0.14, sway=0.1, pop=6, twist=18, nod=14, seconds=0.16,
    ),
    # Upright, right angles, small base.
    "PO": Vocabulary(
        height=0.95, stance=0.13, lean=0, arms="both",
        moves=(
            (((1.0, 0.0, 0.1), (0.1, 1.0, 0.1)), ((1.0, 0.0, 0.1), (0.1, -1.0, 0.1))),
            (((1.0, 0.0, 0.1), (0.1, 1.0, 0.1)), ((0.4, -0.2, 1.0), (-0.8, 0.1, 0.6))),
        ),
        rest=((1.0, 0.0, 0.1), (0.1, 0.0, 1.0)), flick=(1.0, 0.1, 0.3),
        drop=0.06, step=0.05, lift=0.03, sway=0.06, pop=12, twist=6, nod=16, seconds=0.12,
    ),
    # Pointing one arm high to the side, the other fist at the hip, knees bent.
    "LO": Vocabulary(
        height=0.86, stance=0.2, lean=8, arms="alternate",
        moves=(
            (((0.8, 0.7, 0.2), (0.8, 0.8, 0.2)), ((0.8, -0.5, 0.2), (-0.6, 0.1, 0.8))),
            (((1.0, 0.1, 0.2), (1.0, 0.2, 0.1)), ((0.5, -0.6, 0.4), (-0.4, 0.9, 0.5))),
        ),
        rest=((0.7, -0.7, -0.1), (-0.7, -0.5, 0.5)), flick=(0.8, 0.5, 0.5),
        drop=0.1, step=0.12, lift=0.1, sway=0.09, pop=6, twist=16, nod=10, seconds=0.13,
    ),
    # Bouncing deep, arms low and swinging forwards and back, leaning back.
    "MH": Vocabulary(
        height=0.84, stance=0.2, lean=-8, arms="opposed",
        moves=(
            (((0.2, -0.7, 0.9), (0.0, -0.1, 1.0)), ((0.4, -0.8, -0.7), (0.3, -0.9, -0.2))),
            (((0.3, -0.5, 0.9), (-0.5, 0.1, 0.9)), ((0.7, -0.8, -0.3), (0.5, -0.8, 0.2))),
        ),
        rest=_DOWN, flick=(0.5, 0.9, 0.4),
        drop=0.16, step=0.06, lift=0.02, sway=0.12, pop=10, twist=10, nod=20, seconds=0.17,
    ),
    # Arms crossing before the chest, trunk leaning from side to side.
    "LH": Vocabulary(
        height=0.9, stance=0.24, lean=6, arms="both",
        moves=(
            (((0.5, -0.1, 0.9), (-0.9, 0.2, 0.4)), ((0.9, -0.1, 0.4), (0.8, 0.2, 0.6))),
            (((0.3, 0.3, 0.9), (-0.7, 0.5, 0.5)), ((0.6, -0.6, 0.5), (0.2, -0.4, 0.9))),
        ),
        rest=((0.6, -0.4, 0.7), (-0.6, 0.3, 0.7)), flick=(0.5, 0.9, 0.3),
        drop=0.09, step=0.03, lift=0.01, sway=0.2, pop=4, twist=24, nod=12, seconds=0.15,
    ),
    # Fast feet, arms loose and low.
    "HO": Vocabulary(
        height=0.93, stance=0.12, lean=4, arms="alternate",
        moves=(
            (((0.4, -0.9, 0.2), (0.3, -0.2, 0.9)), ((0.5, -0.9, -0.1), (0.4, -0.9, 0.2))),
            (((0.6, -0.8, 0.2), (0.9, -0.4, 0.3)), ((0.3, -0.9, 0.2), (0.1, -0.9, 0.4))),
        ),
        rest=((0.4, -0.9, 0.0), (0.3, -0.9, 0.3)), flick=(1.0, 0.2, 0.3),
        drop=0.07, step=0.26, lift=0.2, sway=0.07, pop=9, twist=8, nod=12, seconds=0.12,
    ),
    # Arms over and behind the head, wheeling; narrow and proud.
    "WA": Vocabulary(
        height=0.97, stance=0.09, lean=-4, arms="alternate",
        moves=(
            (((0.7, 0.8, -0.1), (-0.7, 0.6, -0.3)), ((0.9, 0.4, 0.2), (1.0, -0.1, 0.3))),
            (((0.5, 1.0, 0.0), (0.4, 1.0, 0.1)), ((0.9, 0.5, 0.0), (-0.4, -0.6, 0.6))),
        ),
        rest=((0.9, 0.5, -0.1), (-0.4, 0.9, -0.1)), flick=(1.0, 0.2, 0.4),
        drop=0.04, step=0.05, lift=0.02, sway=0.08, pop=3, twist=8, nod=12, seconds=0.15,
    ),
    # Stomps with high knees, arms thrown down from above, chest pops.
    "KR": Vocabulary(
        height=0.79, stance=0.27, lean=20, arms="both",
        moves=(
            (((0.8, 0.7, 0.3), (0.1, 0.9, 0.4)), ((0.6, -0.6, 0.6), (0.3, -0.9, 0.5))),
            (((0.9, 0.4, -0.3), (0.4, 0.9, 0.3)), ((0.5, -0.3, 0.9), (0.0, -0.5, 0.9))),
        ),
        rest=((0.8, -0.1, 0.3), (0.3, 0.2, 1.0)), flick=(0.9, 0.2, 0.2),
        drop=0.13, step=0.1, lift=0.32, sway=0.08, pop=20, twist=6, nod=18, seconds=0.13,
    ),
    # One arm up, one out; hips from side to side.
    "JS": Vocabulary(
        height=0.92, stance=0.17, lean=2, arms="opposed",
        moves=(
            (((0.4, 1.0, 0.1), (0.1, 1.0, 0.2)), ((1.0, -0.1, 0.1), (1.0, -0.2, 0.3))),
            (((0.6, 0.3, 0.7), (-0.6, 0.7, 0.2)), ((0.8, -0.6, 0.0), (0.9, -0.3, 0.1))),
        ),
        rest=((0.8, -0.5, 0.1), (-0.5, -0.4, 0.6)), flick=(0.8, 0.6, 0.2),
        drop=0.07, step=0.14, lift=0.06, sway=0.2, pop=4, twist=20, nod=8, seconds=0.16,
    ),
    # Long lines: second position and fifth, legs extended to the side.
    "JB": Vocabulary(
        height=0.99, stance=0.1, lean=-2, arms="both",
        moves=(
            (((1.0, 0.1, 0.2), (1.0, 0.0, 0.3)), ((0.4, 1.0, 0.1), (-0.1, 1.0, 0.2))),
            (((0.3, -0.4, 0.9), (-0.4, -0.1, 0.9)), ((0.9, 0.5, 0.1), (1.0, 0.5, 0.1))),
        ),
        rest=((0.9, 0.0, 0.3), (0.9, -0.1, 0.5)), flick=(0.2, 0.9, 0.3),
        drop=0.05, step=0.34, lift=0.16, sway=0.05, pop=3, twist=10, nod=10, seconds=0.19,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How one dancer differs from the others of a genre.

    Attributes:
        amplitude: factor on the size of movements.
        is_mirrored: whether the dancer leads with the other side.
        height: added to the pelvis height, as a share.
        lean: added to the lean, degrees.
        quickness: factor on the length of a movement.
        sway_beats: period of the slow sway in beats.
        scaling: `smpl_scaling`, centimetres per body unit.
    """

    amplitude: float
    is_mirrored: bool
    height: float
    lean: float
    quickness: float
    sway_beats: float
    scaling: float


def make_style(rng: np.random.Generator) -> Style:
    """Draw a dancer."""
    return Style(
        amplitude=rng.uniform(0.9, 1.15),
        is_mirrored=bool(rng.random() < 0.5),
        height=rng.uniform(-0.03, 0.01),
        lean=rng.uniform(-4, 4),
        quickness=rng.uniform(0.92, 1.08),
        sway_beats=float(rng.choice([2, 4, 8])),
        scaling=rng.uniform(90.0, 99.0),
    )


# Channels: everything that moves, as one vector. Sides are mirrored, x points outwards.
_PELVIS, _TURN, _SPINE, _HEAD = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)
_ARM = (slice(12, 18), slice(18, 24))
_HAND = (24, 25)
_FOOT = (slice(26, 29), slice(29, 32))
_NUM_CHANNELS = 32

_LEAST_CHANGE = 1.0
"""Distance between two arm poses below which a snare would hardly show."""


def _across(direction: Array) -> Array:
    """Return the unit vector at right angles to a limb that points most to the front."""
    front = np.array([0.25, 0.3, 1.0])
    front = front - np.sum(front * direction, axis=-1, keepdims=True) * direction
    return _normalised(front)


def _detour(start: Array, end: Array) -> Array:
    """Return what to add midway so that a limb swings past the front and not through the joint."""
    middle = 0.5 * (start + end)
    missing = 0.9 - float(np.linalg.norm(middle))
    return _across(_normalised(end - start)) * missing if missing > 0.2 else np.zeros(3)


class _Track:
    """Channels over time: a start plus smooth steps, each fastest in the middle of its time."""

    def __init__(self, start: Array) -> None:
        self.start = start.copy()
        self.value = start.copy()
        self.steps: list[tuple[float, float, Array]] = []
        self.bumps: list[tuple[float, float, slice, Array]] = []

    def move(self, time: float, seconds: float, target: Array) -> None:
        self.steps.append((time, seconds, target - self.value))
        for arm in _ARM:
            for part in (slice(arm.start, arm.start + 3), slice(arm.start + 3, arm.stop)):
                detour = _detour(self.value[part], target[part])
                self.bump(time, seconds, part, detour)
        self.value = target.copy()

    def bump(self, time: float, seconds: float, channels: slice, size: Array) -> None:
        if np.any(size):
            self.bumps.append((time, seconds, channels, size))

    def sample(self, t: Array) -> Array:
        total = np.broadcast_to(self.start, (len(t), len(self.start))).copy()
        for time, seconds, change in self.steps:
            x = np.clip((t - time) / seconds + 0.5, 0, 1)
            total += (x**3 * (10 - 15 * x + 6 * x**2))[:, None] * change
        for time, seconds, channels, size in self.bumps:
            x = np.clip((t - time) / seconds + 0.5, 0, 1)
            total[:, channels] += (16 * x**2 * (1 - x) ** 2)[:, None] * size
        return total


def _arm(pose: Arm) -> Array:
    upper, fore = (np.array(direction) / np.linalg.norm(direction) for direction in pose)
    return np.concatenate([upper, fore])


_FLICKS: tuple[Vector, ...] = ((0.1, 1.0, 0.2), (1.0, 0.0, 0.3), (0.2, -1.0, 0.3))


def _flicked(arm: Array, towards: Vector) -> Array:
    """Turn the forearm towards a direction, or to one that it does not point to already."""
    best, best_miss = arm[3:], np.inf
    for direction in (towards, *_FLICKS):
        unit = np.array(direction) / np.linalg.norm(direction)
        # Neither too small a flick to be seen nor nearly a reversal, which has no shortest way.
        miss = abs(float(unit @ arm[3:]) - 0.1)
        if miss < 0.5:
            best = unit
            break
        if miss < best_miss:
            best, best_miss = unit, miss
    fore = 0.35 * arm[3:] + best
    return np.concatenate([arm[:3], fore / np.linalg.norm(fore)])


class _Dancer:
    """Carries out events one after the other and remembers what is held meanwhile."""

    def __init__(self, words: Vocabulary, style: Style, rng: np.random.Generator) -> None:
        self.words, self.style, self.rng = words, style, rng
        self.lead = int(style.is_mirrored)
        self.is_down = False
        self.pose = 0
        self.is_flicked = False
        self.num_kicks = 0
        self.move = words.moves[0]
        start = np.zeros(_NUM_CHANNELS)
        start[1] = (words.height + style.height) * _STANDING
        start[6] = words.lean + style.lean
        start[9] = -0.5 * (words.lean + style.lean)  # the face stays towards the audience
        for side in (0, 1):
            start[_ARM[side]] = _arm(words.rest)
            start[_FOOT[side]] = (words.stance, 0.0, 0.0)
        self.base = start
        self.held = np.stack([start[arm] for arm in _ARM])
        self.track = _Track(start)

    def choose_move(self) -> None:
        """Take the next phrase of eight counts: another pair of arm poses, the other side."""
        self.move = self.words.moves[self.rng.integers(len(self.words.moves))]
        self.lead = 1 - self.lead

    def react(self, time: float, kinds: set[str], strength: float) -> None:
        target = self.track.value.copy()
        size = self.style.amplitude * (0.6 + 0.4 * strength)
        seconds = self.words.seconds * self.style.quickness
        if "kick" in kinds:
            self._kick(target, time, seconds, size)
        if "snare" in kinds:
            self._snare(target, size)
        if "hat" in kinds:
            self._hat(target, size)
        self.track.move(time, seconds, target)

    def _kick(self, target: Array, time: float, seconds: float, size: float) -> None:
        words = self.words
        self.is_down = not self.is_down
        side = (self.num_kicks + self.lead) % 2
        sign = 1.0 - 2.0 * side
        target[1] = self.base[1] + (-0.75 if self.is_down else 0.25) * words.drop * size
        target[0] = sign * 0.5 * words.sway * size
        target[5] = -sign * 30 * words.sway * size
        target[6] = self.base[6] + (0.6 if self.is_down else -0.4) * words.pop * size
        # The free foot goes out on one kick and comes home on the next.
        foot, other = _FOOT[side], _FOOT[1 - side]
        angle = self.rng.uniform(-0.6, 0.6)
        out = words.step * size * np.array([np.cos(angle), np.sin(angle), 0.0])
        target[foot] = self.base[foot] + out
        target[other] = self.base[other]
        self.track.bump(time, 1.4 * seconds, foot, np.array([0.0, 0.0, words.lift * size]))
        self.num_kicks += 1

    def _snare(self, target: Array, size: float) -> None:
        words = self.words
        self.is_flicked = False
        self.pose = 1 - self.pose
        arms = self._arms(self.move[self.pose], self.move[1 - self.pose])
        if np.linalg.norm(arms - self.held) < _LEAST_CHANGE:
            # After a change of move the next pose can be the one that is held: go on to the other.
            self.pose = 1 - self.pose
            arms = self._arms(self.move[self.pose], self.move[1 - self.pose])
        self.held = arms
        target[_ARM[0]], target[_ARM[1]] = arms
        sign = (1.0 - 2.0 * self.lead) * (1.0 if self.pose else -1.0)
        target[7] = sign * words.twist * size
        target[8] = -0.3 * sign * words.twist * size
        target[9], target[11] = self.base[9], 0.0
        target[list(_HAND)] = 0.0

    def _hat(self, target: Array, size: float) -> None:
        words = self.words
        self.is_flicked = not self.is_flicked
        for side in (0, 1):
            held = self.held[side]
            target[_ARM[side]] = _flicked(held, words.flick) if self.is_flicked else held
            target[_HAND[side]] = 35 * size if self.is_flicked else 0.0
        # Nod and tilt: a nod alone hardly shows from the front.
        nod = words.nod * size if self.is_flicked else 0.0
        target[9] = self.base[9] + nod
        target[11] = nod if self.lead == 0 else -nod

    def _arms(self, pose: Arm, other: Arm) -> Array:
        """Return where both arms go, `[2, 6]`, when the leading one takes a pose."""
        follow = {"both": pose, "opposed": other, "alternate": self.words.rest}[self.words.arms]
        arms = [_arm(pose), _arm(follow)]
        return np.stack(arms if self.lead == 0 else arms[::-1])


def _sway(t: Array, style: Style, score: Score) -> Array:
    phase = 2 * np.pi * t / (style.sway_beats * score.beat_seconds)
    sway = np.zeros((len(t), _NUM_CHANNELS))
    sway[:, 0] = 0.02 * np.sin(phase)
    sway[:, 4] = 2.0 * np.sin(phase / 2)  # pelvis yaw
    sway[:, 10] = 4.0 * np.sin(phase / 2 + 1.0)
    return sway


def choreograph(
    score: Score, style: Style, *, num_frames: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Dance to a song.

    Args:
        score: the song; the dance starts with its first beat.
        style: the dancer.
        num_frames: length at 60 Hz.
        rng: draws the moves of each eight counts, the first foot and the directions of steps.

    Returns:
        `smpl_poses` float32 `[num_frames, 72]` in radians and `smpl_trans` float32
        `[num_frames, 3]` in centimetres.
    """
    dancer = _Dancer(VOCABULARIES[score.genre], style, rng)
    dancer.num_kicks = int(rng.integers(2))
    phrase = -1
    for time, kinds, strength in _merged(score.events):
        if time > num_frames / MOTION_RATE_HZ + 0.5:
            break
        now = int(time / (2 * BEATS_PER_BAR * score.beat_seconds) + 1e-6)
        if now > phrase:
            phrase = now
            dancer.choose_move()
        dancer.react(time, kinds, strength)
    t = np.arange(num_frames) / MOTION_RATE_HZ
    channels = dancer.track.sample(t) + _sway(t, style, score)
    return _poses(channels, style.scaling)


def _merged(events: tuple[Event, ...]) -> list[tuple[float, set[str], float]]:
    merged: list[tuple[float, set[str], float]] = []
    for event in events:
        if merged and event.time - merged[-1][0] < 1e-6:
            time, kinds, strength = merged[-1]
            merged[-1] = (time, kinds | {event.kind}, max(strength, event.strength))
        else:
            merged.append((event.time, {event.kind}, event.strength))
    return merged


def _normalised(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _shortest_arc(start: Array, end: Array) -> Array:
    """Return the axis-angle vectors `[n, 3]` that turn unit vectors `start` into `end`."""
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, np.sum(start * end, axis=-1, keepdims=True))
    return np.asarray(axis / np.maximum(sine, 1e-9) * angle)


def _poses(channels: Array, scaling: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from scipy.spatial.transform import Rotation

    n = len(channels)
    pose = np.zeros((n, 24, 3))
    # Angles are (pitch, yaw, roll) in degrees; the trunk turns about y, then x, then z.
    turn = channels[:, _TURN] + 0.25 * channels[:, _SPINE] * (1, 0, 0)
    pelvis = Rotation.from_euler("YXZ", turn[:, [1, 0, 2]], degrees=True)
    pose[:, 0] = pelvis.as_rotvec()
    spine = channels[:, _SPINE] * (0.25, 1 / 3, 1 / 3) - channels[:, _TURN] * (0, 0, 1 / 3)
    bend = Rotation.from_euler("YXZ", spine[:, [1, 0, 2]], degrees=True).as_rotvec()
    for joint in (3, 6, 9):
        pose[:, joint] = bend
    nod = Rotation.from_euler("YXZ", 0.5 * channels[:, _HEAD][:, [1, 0, 2]], degrees=True)
    pose[:, 12] = pose[:, 15] = nod.as_rotvec()

    for side, sign in ((0, 1.0), (1, -1.0)):
        arm = channels[:, _ARM[side]] * (sign, 1, 1, sign, 1, 1)
        upper, fore = _normalised(arm[:, :3]), _normalised(arm[:, 3:])
        # An elbow folds no further than the flesh allows; it opens to the front.
        folded = np.clip(-0.7 - np.sum(upper * fore, axis=1, keepdims=True), 0, None)
        fore = _normalised(fore + 4 * folded * _across(upper) + folded * upper)
        outwards = np.broadcast_to([sign, 0.0, 0.0], upper.shape)
        # The collarbone follows the arm upwards, the shoulder does the rest.
        raise_ = np.zeros((n, 3))
        raise_[:, 2] = sign * 0.25 * np.clip(upper[:, 1], -0.2, 1)
        pose[:, 13 + side] = raise_
        collar = Rotation.from_rotvec(raise_)
        pose[:, 16 + side] = _shortest_arc(outwards, collar.inv().apply(upper))
        shoulder = collar * Rotation.from_rotvec(pose[:, 16 + side])
        pose[:, 18 + side] = _shortest_arc(outwards, shoulder.inv().apply(fore))
        pose[:, 20 + side, 2] = sign * np.radians(channels[:, _HAND[side]])

    root = channels[:, _PELVIS].copy()
    for side, sign in ((0, 1.0), (1, -1.0)):
        foot = channels[:, _FOOT[side]]
        ankle = np.stack([sign * foot[:, 0], ANKLE_HEIGHT + foot[:, 2], foot[:, 1]], axis=1)
        _leg(pose, side, pelvis, root, ankle)

    trans = (root - OFFSETS[0]) * scaling
    trans[:, 1] += FLOOR_CM
    return pose.reshape(n, 72).astype(np.float32), trans.astype(np.float32)


def _leg(pose: Array, side: int, pelvis: object, root: Array, ankle: Array) -> None:
    """Bend hip, knee and ankle of one leg so that the ankle reaches its place (in body units)."""
    from scipy.spatial.transform import Rotation

    assert isinstance(pelvis, Rotation)
    sign = 1.0 - 2.0 * side
    hip = root + pelvis.apply(OFFSETS[1 + side])
    reach = ankle - hip
    distance = np.linalg.norm(reach, axis=1)
    # A leg that cannot reach stays almost straight and leaves the floor instead of stretching.
    bounded = np.clip(distance, 0.35, 0.995 * (THIGH + SHIN))
    down = _normalised(reach)
    # Law of cosines: the angle between thigh and the line to the ankle, and that of the knee.
    at_hip = np.arccos(np.clip((THIGH**2 + bounded**2 - SHIN**2) / (2 * THIGH * bounded), -1, 1))
    at_knee = np.pi - np.arccos(
        np.clip((THIGH**2 + SHIN**2 - bounded**2) / (2 * THIGH * SHIN), -1, 1)
    )
    ahead = pelvis.apply([0.35 * sign, 0.0, 1.0])
    hinge = _normalised(np.cross(-down, ahead))
    thigh = Rotation.from_rotvec(-at_hip[:, None] * hinge).apply(down)
    frame = np.stack([hinge, -thigh, np.cross(hinge, -thigh)], axis=2)
    hip_world = Rotation.from_matrix(frame)
    pose[:, 1 + side] = (pelvis.inv() * hip_world).as_rotvec()
    knee = np.zeros_like(root)
    knee[:, 0] = at_knee
    pose[:, 4 + side] = knee
    shin_world = hip_world * Rotation.from_rotvec(knee)
    # Feet point outwards a little; a raised foot hangs from its heel.
    raised = np.clip((ankle[:, 1] - ANKLE_HEIGHT) / 0.2, 0, 1)
    foot = Rotation.from_euler(
        "YX", np.stack([np.full(len(root), 0.3 * sign), 0.6 * raised], axis=1)
    )
    pose[:, 7 + side] = (shin_world.inv() * foot).as_rotvec()

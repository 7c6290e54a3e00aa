"""The 3-D skeleton: bones, joint limits, body proportions and forward kinematics.

World and body frames are right-handed, metres, y up. In a body frame x points to the person's LEFT and z to where the
person faces. At rest every limb hangs down (-y), so a bone's frame has +y against the bone; elbows and knees are hinges
about x: an elbow brings the forearm towards +z, a knee the shin towards -z, and neither the other way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Points of the skeleton; the index order is used by the body table.
POINTS = (
    "pelvis", "belly", "chest", "neck", "head",
    "l_shoulder", "l_elbow", "l_wrist", "l_tip", "r_shoulder", "r_elbow", "r_wrist", "r_tip",
    "l_hip", "l_knee", "l_ankle", "l_toe", "r_hip", "r_knee", "r_ankle", "r_toe",
)  # fmt: skip
FRAMES = (
    "pelvis", "belly", "chest", "neck", "head",
    "l_upper", "l_fore", "l_hand", "r_upper", "r_fore", "r_hand",
    "l_thigh", "l_shin", "l_foot", "r_thigh", "r_shin", "r_foot",
)  # fmt: skip
POINT = {name: i for i, name in enumerate(POINTS)}
FRAME = {name: i for i, name in enumerate(FRAMES)}

COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

# Degrees. Positive: bend forwards, look down, raise forwards, spread outwards, turn inwards, flex, point the toes.
_SIDED = {
    "shoulder_flex": (-50.0, 180.0),
    "shoulder_abd": (-15.0, 165.0),
    "shoulder_in": (-95.0, 95.0),
    "elbow": (0.0, 148.0),
    "forearm": (-80.0, 80.0),
    "wrist": (-50.0, 60.0),
    "hip_flex": (-28.0, 125.0),
    "hip_abd": (-12.0, 60.0),
    "hip_in": (-50.0, 35.0),
    "knee": (0.0, 148.0),
    "ankle": (-30.0, 50.0),
}
LIMITS: dict[str, tuple[float, float]] = {
    "yaw": (-720.0, 720.0),
    "pitch": (-180.0, 180.0),
    "roll": (-180.0, 180.0),
    "spine_bend": (-28.0, 85.0),
    "spine_side": (-32.0, 32.0),
    "spine_twist": (-42.0, 42.0),
    "neck_pitch": (-40.0, 48.0),
    "neck_yaw": (-72.0, 72.0),
    "neck_roll": (-30.0, 30.0),
    **{f"{side}_{name}": limit for side in "lr" for name, limit in _SIDED.items()},
}


@dataclass(frozen=True)
class Proportions:
    """A person's measures; lengths are fractions of `height`.

    Args:
        height: body height in metres.
        girth: thickness of limbs and torso, 1 for an average adult.
        belly: extra waist, 0 for none.
        head: half the head's height in metres.
        shoulder: half the distance of the shoulder keypoints.
        hip: half the distance of the hip keypoints.
        torso: mid-hip to neck base.
        leg: thigh and shin, each.
        arm: upper arm; the forearm is 0.91 of it.
        bust: chest depth added at the front.
    """

    height: float = 1.72
    girth: float = 1.0
    belly: float = 0.0
    head: float = 0.115
    shoulder: float = 0.105
    hip: float = 0.052
    torso: float = 0.315
    leg: float = 0.243
    arm: float = 0.17
    bust: float = 0.0


def sample_proportions(rng: np.random.Generator) -> Proportions:
    """Draw a body: adults of both builds, one in six a child, slim to heavy."""
    kind = rng.random()
    girth = float(np.clip(rng.normal(1.0, 0.13), 0.75, 1.4)) + (0.25 * rng.random() if rng.random() < 0.15 else 0.0)
    belly = max(0.0, (girth - 1.0) * rng.uniform(0.3, 1.6))
    if kind < 0.16:  # a child: a large head, short limbs
        height = rng.uniform(0.95, 1.5)
        grown = (height - 0.95) / 0.6
        return Proportions(
            height=height,
            girth=girth * (1.14 - 0.12 * grown),
            belly=belly,
            head=0.098 + 0.012 * grown,
            shoulder=rng.normal(0.100, 0.003),
            hip=rng.normal(0.051, 0.002),
            torso=0.328 - 0.01 * grown,
            leg=0.205 + 0.03 * grown,
            arm=0.158 + 0.01 * grown,
        )
    woman = kind < 0.58
    return Proportions(
        height=rng.normal(1.64 if woman else 1.77, 0.07),
        girth=girth * (0.94 if woman else 1.03),
        belly=belly,
        head=rng.normal(0.112 if woman else 0.118, 0.003),
        shoulder=rng.normal(0.098 if woman else 0.110, 0.004),
        hip=rng.normal(0.054 if woman else 0.050, 0.002),
        torso=rng.normal(0.315, 0.006),
        leg=rng.normal(0.243, 0.005),
        arm=rng.normal(0.170, 0.005),
        bust=rng.uniform(0.006, 0.022) if woman else 0.0,
    )


def clip_pose(pose: dict[str, float]) -> dict[str, float]:
    """Bring every angle (degrees) within its keypoint limit; missing ones become 0 (or the nearest allowed)."""
    return {name: min(max(pose.get(name, 0.0), low), high) for name, (low, high) in LIMITS.items()}


def _turn(axis: int, degrees: float) -> Array:
    """Right-handed rotation matrix about x, y or z (0, 1, 2)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == 0:
        return np.array(((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c)))
    if axis == 1:
        return np.array(((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)))
    return np.array(((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))


def solve(body: Proportions, pose: dict[str, float]) -> tuple[Array, Array]:
    """Forward kinematics with the pelvis at the origin.

    Args:
        body: the person's measures.
        pose: angles in degrees by the names of `LIMITS`; they are clipped to the limits here.

    Returns:
        Points (len(POINTS), 3) in metres and frames (len(FRAMES), 3, 3), columns = axes x (left), y, z.
    """
    a = clip_pose(pose)
    h = body.height
    points = np.zeros((len(POINTS), 3))
    frames = np.empty((len(FRAMES), 3, 3))

    pelvis = _turn(1, a["yaw"]) @ _turn(0, a["pitch"]) @ _turn(2, a["roll"])
    half = _turn(1, 0.5 * a["spine_twist"]) @ _turn(2, 0.5 * a["spine_side"]) @ _turn(0, 0.5 * a["spine_bend"])
    belly = pelvis @ half
    chest = belly @ half
    neck_full = _turn(1, a["neck_yaw"]) @ _turn(0, a["neck_pitch"]) @ _turn(2, a["neck_roll"])
    neck = chest @ _turn(1, 0.4 * a["neck_yaw"]) @ _turn(0, 0.5 * a["neck_pitch"]) @ _turn(2, 0.4 * a["neck_roll"])
    head = chest @ neck_full
    frames[:5] = pelvis, belly, chest, neck, head

    points[POINT["belly"]] = pelvis[:, 1] * (0.33 * body.torso * h)
    points[POINT["chest"]] = points[POINT["belly"]] + belly[:, 1] * (0.30 * body.torso * h)
    points[POINT["neck"]] = points[POINT["chest"]] + chest[:, 1] * (0.37 * body.torso * h)
    points[POINT["head"]] = (
        points[POINT["neck"]] + neck[:, 1] * (0.020 * h + 0.45 * body.head) + head[:, 1] * (0.55 * body.head)
    ) + head[:, 2] * (0.18 * body.head)

    for side, sign in (("l", 1.0), ("r", -1.0)):
        flex, spread = a[f"{side}_shoulder_flex"], a[f"{side}_shoulder_abd"]
        upper = chest @ _turn(2, sign * spread) @ _turn(0, -flex) @ _turn(1, -sign * a[f"{side}_shoulder_in"])
        fore = upper @ _turn(0, -a[f"{side}_elbow"])
        hand = fore @ _turn(1, -sign * a[f"{side}_forearm"]) @ _turn(0, -a[f"{side}_wrist"])
        # a raised arm lifts its shoulder, and pulls it in a little
        lift = max(0.0, max(spread, flex) - 50.0) / 130.0
        shoulder = (
            points[POINT["neck"]]
            + chest[:, 0] * (sign * body.shoulder * h * (1 - 0.12 * lift))
            + chest[:, 1] * ((-0.033 + 0.038 * lift) * h)
        )
        elbow = shoulder - upper[:, 1] * (body.arm * h)
        wrist = elbow - fore[:, 1] * (0.91 * body.arm * h)
        base = POINT[f"{side}_shoulder"]
        points[base : base + 4] = shoulder, elbow, wrist, wrist - hand[:, 1] * (0.098 * h)
        base = FRAME[f"{side}_upper"]
        frames[base : base + 3] = upper, fore, hand

        spread = a[f"{side}_hip_abd"]
        thigh = pelvis @ _turn(2, sign * spread) @ _turn(0, -a[f"{side}_hip_flex"]) @ _turn(1, -sign * a[f"{side}_hip_in"])
        shin = thigh @ _turn(0, a[f"{side}_knee"])
        foot = shin @ _turn(0, a[f"{side}_ankle"])
        hip = pelvis[:, 0] * (sign * body.hip * h)
        knee = hip - thigh[:, 1] * (body.leg * h)
        ankle = knee - shin[:, 1] * (body.leg * h)
        base = POINT[f"{side}_hip"]
        points[base : base + 4] = hip, knee, ankle, ankle + foot[:, 2] * (0.11 * h) - foot[:, 1] * (0.035 * h)
        base = FRAME[f"{side}_thigh"]
        frames[base : base + 3] = thigh, shin, foot
    return points, frames


# On the head, in units of its half height, in the head frame: x left, y up, z forwards.
NOSE_TIP = (0.0, -0.24, 0.99)
LEFT_EYE = (0.27, 0.03, 0.80)
LEFT_EAR = (0.70, -0.06, -0.03)


def coco_keypoints(body: Proportions, points: Array, frames: Array) -> tuple[Array, Array]:
    """The 17 COCO keypoints and, for those on the head, which way their patch of skin faces.

    Args:
        body: the person's measures.
        points: (len(POINTS), 3) skeleton points.
        frames: (len(FRAMES), 3, 3) bone frames.

    Returns:
        Keypoints (17, 3) in metres; normals (5, 3), unit, of nose, eyes and ears.
    """
    head, centre = frames[FRAME["head"]], points[POINT["head"]]
    mirror = np.array((-1.0, 1.0, 1.0))
    local = np.array((NOSE_TIP, LEFT_EYE, mirror * LEFT_EYE, LEFT_EAR, mirror * LEFT_EAR)) * body.head
    facing = np.array(((0, 0, 1), (0.42, 0.05, 0.9), (-0.42, 0.05, 0.9), (0.97, 0, 0.1), (-0.97, 0, 0.1)), dtype=float)
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    names = [f"{s}_{j}" for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for s in "lr"]
    keypoints = np.concatenate((local @ head.T + centre, points[[POINT[n] for n in names]]))
    return keypoints, facing @ head.T

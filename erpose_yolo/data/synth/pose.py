"""Pose sampling: what people do, as keypoint angles with jitter.

Legs and trunk come from an activity, the arms from a gesture, so that many combinations arise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .skeleton import clip_pose

Support = Literal["feet", "air", "chair", "ground"]
Angles = dict[str, float]
_R = np.random.Generator

# name: weight, mean (flex, spread, turned in, elbow), spread of each; degrees
_GESTURES: dict[str, tuple[float, tuple[float, float, float, float], tuple[float, float, float, float]]] = {
    "relaxed": (6.0, (2, 9, 5, 16), (9, 5, 15, 11)),
    "on_hip": (1.5, (-14, 46, 72, 88), (7, 7, 8, 10)),
    "crossed": (1.2, (34, 8, 62, 105), (6, 5, 8, 8)),
    "to_face": (1.5, (48, 12, 28, 132), (14, 9, 14, 9)),
    "raised": (1.6, (158, 6, 10, 22), (18, 10, 20, 18)),
    "spread": (1.5, (5, 92, 0, 18), (15, 24, 25, 15)),
    "waving": (1.0, (10, 85, -80, 85), (10, 18, 15, 22)),
    "reaching": (2.0, (72, 10, 8, 28), (22, 12, 22, 20)),
    "behind": (0.5, (-28, 16, 62, 62), (8, 7, 12, 12)),
    "carrying": (2.2, (14, 10, 22, 88), (12, 7, 18, 16)),
    "throwing": (0.6, (15, 95, -60, 80), (12, 12, 18, 18)),
    "on_lap": (1.0, (28, 8, 28, 52), (8, 5, 10, 12)),
}
_BOTH = ("crossed", "raised", "spread", "carrying", "reaching", "on_hip", "to_face")  # often done with both arms
_ACTIVITIES: dict[str, float] = {
    "stand": 30, "walk": 17, "run": 9, "sit": 13, "sit_floor": 4, "crouch": 5, "kneel": 3, "lunge": 5,
    "jump": 5, "bend": 5, "lie": 3, "kick": 3, "ride": 3,
}  # fmt: skip
ACTIVITIES = tuple(_ACTIVITIES)


def _n(rng: _R, mean: float, sd: float) -> float:
    return float(rng.normal(mean, sd))


def _arm(rng: _R, pose: Angles, side: str, gesture: str) -> None:
    mean, sd = np.array(_GESTURES[gesture][1]), np.array(_GESTURES[gesture][2])
    flex, spread, inward, elbow = rng.normal(mean, sd)
    pose[f"{side}_shoulder_flex"] = float(flex)
    pose[f"{side}_shoulder_abd"] = float(spread)
    pose[f"{side}_shoulder_in"] = float(inward)
    pose[f"{side}_elbow"] = abs(float(elbow))
    pose[f"{side}_forearm"] = _n(rng, 20, 30)
    pose[f"{side}_wrist"] = _n(rng, 5, 15)


def _arms(rng: _R, pose: Angles, favour: str | None = None) -> None:
    names = list(_GESTURES)
    weights = np.array([_GESTURES[n][0] for n in names])
    if favour is not None:
        weights[names.index(favour)] *= 4
    first, second = (names[i] for i in rng.choice(len(names), 2, p=weights / weights.sum()))
    if first in _BOTH and rng.random() < 0.6 or first == "crossed" or (first == "relaxed" and rng.random() < 0.5):
        second = first
    left_first = rng.random() < 0.5
    _arm(rng, pose, "l" if left_first else "r", first)
    _arm(rng, pose, "r" if left_first else "l", second)


def _legs(rng: _R, pose: Angles, side: str, flex: float, knee: float, ankle: float, spread: float = 4.0) -> None:
    pose[f"{side}_hip_flex"] = _n(rng, flex, 4)
    pose[f"{side}_knee"] = max(0.0, _n(rng, knee, 4))
    pose[f"{side}_ankle"] = _n(rng, ankle, 4)
    pose[f"{side}_hip_abd"] = _n(rng, spread, 3)
    pose[f"{side}_hip_in"] = _n(rng, -8, 8)


def _stride(rng: _R, pose: Angles, reach: float, lift: float, swing: float, elbow: float) -> None:
    """A gait at a random phase: hips swing against each other, arms against the legs."""
    phase = rng.uniform(0, 2 * math.pi)
    for side, shift in (("l", 0.0), ("r", math.pi)):
        wave = math.sin(phase + shift)
        flex = reach * wave + 0.25 * reach
        bend = 6 + lift * max(0.0, math.cos(phase + shift)) + 0.35 * lift * max(0.0, -wave)
        _legs(rng, pose, side, flex, bend, 18 * max(0.0, -wave) - flex * 0.15, 2)
        pose[f"{side}_shoulder_flex"] = -swing * wave + _n(rng, 4, 6)
        pose[f"{side}_shoulder_abd"] = abs(_n(rng, 8, 5))
        pose[f"{side}_shoulder_in"] = _n(rng, 15, 10)
        pose[f"{side}_elbow"] = max(0.0, elbow - 0.35 * swing * wave + _n(rng, 0, 7))
        pose[f"{side}_forearm"] = _n(rng, 10, 15)
    pose["spine_twist"] = 8 * math.sin(phase) * reach / 30


def draw_activity(rng: _R, among: Sequence[str] = ()) -> str:
    """One of `ACTIVITIES`, or of some of them, common ones more often."""
    names = among or ACTIVITIES
    weights = np.array([_ACTIVITIES[n] for n in names])
    return names[int(rng.choice(len(weights), p=weights / weights.sum()))]


def sample_pose(rng: _R, activity: str | None = None) -> tuple[Angles, Support]:
    """Draw a pose within the joint limits.

    Args:
        rng: source of randomness.
        activity: one of `ACTIVITIES`, or None to draw one.

    Returns:
        Angles in degrees by the names of `skeleton.LIMITS` (yaw left at 0) and what carries the body.
    """
    if activity is None:
        activity = draw_activity(rng)
    pose: Angles = {
        "spine_bend": _n(rng, 3, 6),
        "spine_side": _n(rng, 0, 5),
        "spine_twist": _n(rng, 0, 8),
        "neck_pitch": _n(rng, 4, 12),
        "neck_yaw": _n(rng, 0, 24),
        "neck_roll": _n(rng, 0, 6),
        "roll": _n(rng, 0, 2),
    }
    support: Support = "feet"
    if activity == "stand":
        lazy = rng.random() < 0.35  # weight on one leg
        wide = abs(_n(rng, 4, 6))
        _legs(rng, pose, "l", 2, 4, -2, wide)
        _legs(rng, pose, "r", 14 if lazy else 2, 24 if lazy else 4, 0, wide)
        _arms(rng, pose)
    elif activity == "walk":
        _stride(rng, pose, rng.uniform(14, 28), rng.uniform(25, 50), rng.uniform(8, 28), rng.uniform(12, 35))
        if rng.random() < 0.4:
            _arms(rng, pose, "carrying")
    elif activity == "run":
        _stride(rng, pose, rng.uniform(32, 52), rng.uniform(65, 110), rng.uniform(30, 55), rng.uniform(75, 100))
        pose["pitch"] = _n(rng, 8, 4)
        support = "air" if rng.random() < 0.4 else "feet"
    elif activity in ("sit", "ride"):
        crossed = rng.random() < 0.15
        knee = _n(rng, 85, 14)
        pose["spine_bend"] = _n(rng, 14, 12)
        wide = abs(_n(rng, 7, 7))
        for side in "lr":
            _legs(rng, pose, side, 86, knee, 0, wide)
        if crossed:
            pose["r_hip_flex"], pose["r_hip_abd"], pose["r_knee"] = 100.0, -10.0, 75.0
        if activity == "ride":  # bicycle or motorbike: leaning on handlebars, one leg higher
            pose["pitch"] = _n(rng, 15, 8)
            pose["l_hip_flex"], pose["r_hip_flex"] = _n(rng, 95, 10), _n(rng, 50, 12)
            pose["r_knee"] = _n(rng, 50, 12)
            for side in "lr":
                _arm(rng, pose, side, "reaching")
        else:
            _arms(rng, pose, "on_lap")
        support = "chair" if activity == "sit" else "air"
    elif activity == "sit_floor":
        stretched = rng.random() < 0.5
        pose["spine_bend"] = _n(rng, 22, 12)
        pose["pitch"] = _n(rng, -10, 6)
        for side in "lr":
            if stretched:
                _legs(rng, pose, side, 82, abs(_n(rng, 25, 25)), 5, 10)
            else:  # cross-legged
                _legs(rng, pose, side, 85, 125, 10, 42)
                pose[f"{side}_hip_in"] = -42
        _arms(rng, pose, "on_lap")
        support = "ground"
    elif activity == "crouch":
        deep = rng.uniform(0.45, 1.0)
        pose["spine_bend"], pose["pitch"] = _n(rng, 28, 10) * deep, _n(rng, 18, 6)
        wide = abs(_n(rng, 12, 8))
        for side in "lr":
            _legs(rng, pose, side, 115 * deep, 130 * deep, -25 * deep, wide)
        _arms(rng, pose, "reaching")
    elif activity == "kneel":
        both = rng.random() < 0.4
        _legs(rng, pose, "l", 5, 92, 40, 5)
        if both:
            _legs(rng, pose, "r", 5, 92, 40, 5)
        else:
            _legs(rng, pose, "r", 88, 88, 0, 8)
        _arms(rng, pose, "carrying")
        support = "ground"
    elif activity == "lunge":
        front, back = ("l", "r") if rng.random() < 0.5 else ("r", "l")
        _legs(rng, pose, front, _n(rng, 60, 14), _n(rng, 60, 14), -8, 10)
        _legs(rng, pose, back, _n(rng, -15, 6), abs(_n(rng, 28, 15)), 20, 10)
        pose["pitch"] = _n(rng, 8, 8)
        _arms(rng, pose, "throwing" if rng.random() < 0.5 else "spread")
    elif activity == "jump":
        for side in "lr":
            _legs(rng, pose, side, _n(rng, 28, 25), abs(_n(rng, 50, 30)), 30, abs(_n(rng, 14, 14)))
        _arms(rng, pose, "raised" if rng.random() < 0.6 else "spread")
        pose["pitch"], pose["roll"] = _n(rng, 0, 10), _n(rng, 0, 8)
        support = "air"
    elif activity == "bend":
        pose["spine_bend"], pose["pitch"] = _n(rng, 50, 14), _n(rng, 32, 12)
        for side in "lr":
            _legs(rng, pose, side, pose["pitch"] + 6, abs(_n(rng, 14, 12)), -4, abs(_n(rng, 6, 5)))
        pose["neck_pitch"] = _n(rng, -5, 18)
        _arms(rng, pose, "reaching")
    elif activity == "lie":
        pose["pitch"] = 90.0 if rng.random() < 0.4 else -90.0
        pose["roll"] = _n(rng, 0, 25)
        for side in "lr":
            bent = rng.random() < 0.35
            _legs(rng, pose, side, 40 if bent else 6, 75 if bent else 10, 30, abs(_n(rng, 8, 6)))
        _arms(rng, pose)
        support = "ground"
    elif activity == "kick":
        kicking, standing = ("l", "r") if rng.random() < 0.5 else ("r", "l")
        _legs(rng, pose, kicking, rng.uniform(45, 110), abs(_n(rng, 18, 15)), 25, 12)
        _legs(rng, pose, standing, 4, abs(_n(rng, 12, 8)), -4, 4)
        pose["pitch"] = _n(rng, -8, 6)
        _arms(rng, pose, "spread")
    else:
        raise ValueError(f"activity must be one of {ACTIVITIES}, got {activity!r}")
    return clip_pose(pose), support

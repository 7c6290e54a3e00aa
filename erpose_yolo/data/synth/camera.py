"""A pinhole camera above a ground plane (y = 0), looking along +z."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .skeleton import Array


@dataclass(frozen=True)
class Camera:
    """Pinhole camera.

    Args:
        focal: focal length in px.
        centre: principal point (x, y) in px.
        height: of the camera above the ground in metres.
        pitch: downwards, degrees.
        roll: degrees.
    """

    focal: float
    centre: tuple[float, float]
    height: float
    pitch: float = 0.0
    roll: float = 0.0

    @cached_property
    def rotation(self) -> Array:
        """(3, 3) rows: image right, image down, viewing direction, in world coordinates."""
        p, r = np.radians(self.pitch), np.radians(self.roll)
        forward = np.array((0.0, -np.sin(p), np.cos(p)))
        right = np.array((-1.0, 0.0, 0.0))
        down = np.array((0.0, -np.cos(p), -np.sin(p)))
        return np.stack((np.cos(r) * right + np.sin(r) * down, np.cos(r) * down - np.sin(r) * right, forward))

    def to_camera(self, points: Array) -> Array:
        """World (..., 3) to camera coordinates (right, down, depth) in metres."""
        return (points - np.array((0.0, self.height, 0.0))) @ self.rotation.T

    def project(self, points: Array) -> tuple[Array, Array]:
        """World (..., 3) to px (..., 2) and depth (...) in metres."""
        cam = self.to_camera(points)
        depth = cam[..., 2]
        safe = np.maximum(depth, 0.05)[..., None]
        return cam[..., :2] * (self.focal / safe) + np.array(self.centre), depth

    def ground_point(self, x: float, depth: float) -> Array:
        """The ground point at horizontal distance `depth` (m) that appears at image column `x` (px), roll aside."""
        p = np.radians(self.pitch)
        along = depth * np.cos(p) + self.height * np.sin(p)
        return np.array((-(x - self.centre[0]) * along / self.focal, 0.0, depth))

    @property
    def horizon(self) -> float:
        """Image row (px) of the horizon at the image's middle."""
        return self.centre[1] - self.focal * float(np.tan(np.radians(self.pitch)))

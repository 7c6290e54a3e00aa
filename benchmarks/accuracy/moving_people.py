"""Clips of moving synthetic people with known truth: who is where in every frame, keypoints and what is visible of each.

People, camera, light, rendering and labels are those of the still images (erpose_yolo/data/synth), so a network trained on
these knows the look. Most people walk along gently curved paths through the image and past one another, in and out of it;
some stand and gesticulate. Keypoint angles are smooth in time: legs from a gait whose reach fits the speed, everything else eased
from one sampled pose to the next. Background, light and camera do not move, and only the sensor's noise is new in each frame.
No two people come nearer to each other than BODY metres, so nobody walks through anybody. The seed decides everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from erpose_yolo.data.synth.body import build_person, keypoint_radii
from erpose_yolo.data.synth.camera import Camera
from erpose_yolo.data.synth.pose import sample_pose
from erpose_yolo.data.synth.scene import Actor, compose, label, photograph
from erpose_yolo.data.synth.skeleton import Proportions, coco_keypoints, sample_proportions, solve
from erpose_yolo.data.synth.wardrobe import dress, grain_bank, sample_outfit

FPS = 25.0
BODY = 0.5  # metres
TALL = (60.0, 140.0)  # px, an adult of 1.7 m at the far and at the near end, in an image of 320 px
WALKING = 0.8  # share of the people
_R = np.random.Generator


@dataclass(frozen=True)
class Frame:
    """A frame and the people of whom enough is visible to count, as the still generator counts.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (M,) identities, the same number for the same person all through the clip.
        boxes: (M, 4) float32 xyxy px of visible pixels.
        keypoints: (M, 17, 3) float32 px x, y and v (0 outside the image, 1 hidden, 2 seen).
    """

    image: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray


def way(rng: _R, camera: Camera, times: np.ndarray, depths: tuple[float, float], speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (T, 3) in metres and headings (T,) in degrees at `times` (s): even speed (m/s), a gently turning heading."""
    depth = float(np.exp(rng.uniform(*np.log(depths))))  # as many large people as small ones
    middle = camera.ground_point(rng.uniform(0.15, 0.85) * 2 * camera.centre[0], depth)
    start = rng.choice((-90, 90)) + rng.normal(0, 30) if speed else 180 + rng.normal(0, 60)  # 0 is away from the camera
    heading = start + rng.normal(0, 18) * np.sin(rng.uniform(1, 2.5) * times + rng.uniform(0, 2 * math.pi))
    ahead = np.radians(heading)
    gone = np.cumsum(speed / FPS * np.stack((np.sin(ahead), 0 * ahead, np.cos(ahead)), 1), 0)
    return middle + gone - gone[rng.integers(len(times))], heading  # through `middle` at some time


class Person:
    """A dressed body with a way and a pose for every time.

    Args:
        rng: source of randomness.
        body: measures.
        places, heading, speed: see :func:`way`.
    """

    def __init__(self, rng: _R, body: Proportions, places: np.ndarray, heading: np.ndarray, speed: float) -> None:
        self.body, self.places, self.heading, self.speed = body, places, heading, speed
        self.outfit = sample_outfit(rng, body)
        self.atlas = dress(rng, body, self.outfit)
        self.keys = np.cumsum(rng.uniform(0.8, 2.0, 2 + len(places))) - 2.0  # times of sampled poses, the first before 0
        self.keys = self.keys[: np.searchsorted(self.keys, len(places) / FPS) + 1]
        self.poses = [sample_pose(rng, "stand")[0] for _ in self.keys]
        self.phase, strides = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.1)  # strides of two steps a second
        self.pace = 2 * math.pi * strides
        # in each of its two steps both legs, of a thigh and a shin, reach to either side
        self.reach = math.degrees(math.asin(speed / (strides * 8 * body.leg * body.height)))
        self.lift = rng.uniform(25, 50)  # degrees, of the knee in swing
        self.swing = rng.uniform(10, 28) if rng.random() < 0.6 else 0.0  # degrees, of the arms; 0: they do something else

    def pose(self, t: int) -> dict[str, float]:
        """Angles in degrees in frame `t`."""
        k = int(np.searchsorted(self.keys, t / FPS, side="right")) - 1
        part = (t / FPS - self.keys[k]) / (self.keys[k + 1] - self.keys[k])
        ease = part * part * (3 - 2 * part)
        angles = {name: (1 - ease) * a + ease * self.poses[k + 1][name] for name, a in self.poses[k].items()}
        angles["yaw"] = float(self.heading[t])
        turn = self.phase + self.pace * t / FPS
        for side, wave, ahead in (("l", math.sin(turn), math.cos(turn)), ("r", -math.sin(turn), -math.cos(turn))):
            if self.speed:
                angles[f"{side}_hip_flex"] = self.reach * (wave + 0.25)
                angles[f"{side}_hip_abd"], angles[f"{side}_hip_in"] = 2.0, -5.0
                angles[f"{side}_knee"] = 6 + self.lift * (max(0.0, ahead) ** 2 + 0.35 * max(0.0, -wave) ** 2)  # bent in swing
                angles[f"{side}_ankle"] = 15 * max(0.0, -wave) ** 2 - 0.15 * angles[f"{side}_hip_flex"]
            if self.speed and self.swing:
                angles[f"{side}_shoulder_flex"], angles[f"{side}_elbow"] = 4 - self.swing * wave, 24 - 0.35 * self.swing * wave
                angles[f"{side}_shoulder_abd"], angles[f"{side}_shoulder_in"] = 7.0, 12.0
        return angles

    def actor(self, t: int) -> Actor:
        """The person in frame `t`, lowest point on the ground."""
        points, frames = solve(self.body, self.pose(t))
        mesh = build_person(self.body, self.outfit, points, frames, self.atlas)
        keypoints, facing = coco_keypoints(self.body, points, frames)
        low = float(mesh.verts[mesh.quads.ravel(), 1].min())
        still = Actor(mesh, keypoints, facing, keypoint_radii(self.body, self.outfit), "feet", self.body.height)
        return still.moved(self.places[t] - (0.0, low, 0.0))


def cast(rng: _R, camera: Camera, frames: int, depths: tuple[float, float], count: int) -> list[Person]:
    """People whose ways keep BODY metres from one another and stay about between the depths (near, far; metres)."""
    times, people = np.arange(frames) / FPS, []
    for k in range(count):
        body = sample_proportions(rng)
        speed = rng.uniform(0.5, 0.9) * body.height if k < round(WALKING * count) else 0.0  # the tall walk faster
        for _ in range(1000):
            places, heading = way(rng, camera, times, depths, speed)
            apart = min((np.linalg.norm(places - p.places, axis=1).min() for p in people), default=BODY)
            if apart >= BODY and 0.85 * depths[0] < places[:, 2].min() and places[:, 2].max() < 1.3 * depths[1]:
                people.append(Person(rng, body, places, heading, speed))
                break
        else:
            raise ValueError(f"no room for {count} people in {frames} frames: ask for fewer, or for a shorter clip")
    return people


def clip(seed: int, size: int = 320, frames: int = 100, people: tuple[int, int] = (5, 8)) -> list[Frame]:
    """Render a clip.

    Args:
        seed: decides everything.
        size: side of the square image in px.
        frames: their number, FPS a second.
        people: fewest and most persons.

    Raises:
        ValueError: so many people do not find room.
    """
    rng = np.random.default_rng((seed, 25))
    focal, height = size * rng.uniform(1.0, 1.6), rng.uniform(1.3, 3.0)
    far, near = (focal * 1.7 / (tall * size / 320) for tall in TALL)
    pitch = math.degrees(math.atan2(height - 0.9, math.sqrt(near * far)))
    camera = Camera(focal, (size / 2, size / 2), height, pitch, float(rng.normal(0, 1.5)))
    group = cast(rng, camera, frames, (near, far), int(rng.integers(*people, endpoint=True)))
    scene, lens, noise = rng.integers(1 << 31, size=3).tolist()
    strength = rng.uniform(1, 4) / 32
    out = []
    for t in range(frames):
        actors = [person.actor(t) for person in group]
        # the same numbers in every frame: the same background, light and lens
        image, _, _, raster = compose(np.random.default_rng(scene), actors, camera, (size, size), props=False)
        image = photograph(np.random.default_rng(lens), image)
        fresh = np.random.default_rng((noise, t))
        y, x = fresh.integers(0, 769 - size, 2)
        grain = grain_bank()[fresh.integers(3), y : y + size, x : x + size]
        image = cv2.addWeighted(image, 1.0, grain, strength, -128 * strength)
        seen = [label([actor], [k], raster, camera) for k, actor in enumerate(actors)]
        ids = np.array([k for k, (boxes, _) in enumerate(seen) if len(boxes)], np.int64)
        out.append(Frame(image, ids, np.concatenate([s[0] for s in seen]), np.concatenate([s[1] for s in seen])))
    return out

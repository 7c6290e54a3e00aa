"""Scenes: people sampled, placed before a camera, drawn, and labelled from what the camera really sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from . import background
from .body import Mesh, Outfit, box_mesh, build_person, coarse, keypoint_radii
from .camera import Camera
from .config import SynthConfig
from .pose import Support, draw_activity, sample_pose
from .raster import Light, Raster, rasterise
from .skeleton import POINT, Array, Proportions, coco_keypoints, sample_proportions, solve
from .wardrobe import cloth, dress, grain_bank, sample_outfit

Image = NDArray[np.uint8]
_R = np.random.Generator
MIN_PIXELS = 12  # a person with fewer visible pixels gets no label
_DETAILED = 110  # px; people who stand less tall are drawn with fewer faces
_AROUND = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])
MIN_SHOWN = 0.10  # nor one of whose silhouette less than this is visible
FARTHEST_GUESS = 2.0  # nobody would label a hidden keypoint farther from what is visible than this many longer sides of its box


@dataclass
class Actor:
    """A posed and dressed person, around the pelvis at the origin until placed.

    Args:
        mesh: its surface.
        keypoints: (17, 3) COCO keypoints in metres.
        facing: (5, 3) unit normals of nose, eyes and ears.
        radii: (17,) depth in metres up to which a keypoint lies within its own limb.
        support: what carries the body.
        height: body height in metres.
        seat: height of the pelvis' underside (m), for a chair.
    """

    mesh: Mesh
    keypoints: Array
    facing: Array
    radii: Array
    support: Support
    height: float
    seat: float = 0.0

    def moved(self, offset: Array) -> Actor:
        """The same person elsewhere."""
        return replace(self, mesh=replace(self.mesh, verts=self.mesh.verts + offset), keypoints=self.keypoints + offset)


def make_actor(
    rng: _R,
    activity: str | None = None,
    yaw: float | None = None,
    body: Proportions | None = None,
    outfit: Outfit | None = None,
) -> Actor:
    """Draw a person standing at the world's origin (lowest point on the ground).

    Args:
        rng: source of randomness.
        activity: see `pose.ACTIVITIES`; None draws one.
        yaw: degrees, 0 looks along +z (away from the camera), 180 at the camera; None draws one.
        body: measures; None draws them.
        outfit: clothes; None draws them.
    """
    body = sample_proportions(rng) if body is None else body
    pose, support = sample_pose(rng, activity)
    if yaw is None:  # half of the people more or less face the camera, as in photographs
        yaw = 180 + (rng.normal(0, 38) if rng.random() < 0.55 else rng.uniform(-180, 180))
    pose["yaw"] = yaw
    outfit = sample_outfit(rng, body) if outfit is None else outfit
    points, frames = solve(body, pose)
    mesh = build_person(body, outfit, points, frames, dress(rng, body, outfit))
    keypoints, facing = coco_keypoints(body, points, frames)
    lift = -float(mesh.verts[mesh.quads.ravel(), 1].min())
    seat = lift + float(points[POINT["pelvis"], 1]) - (0.045 * body.height + 0.02) * body.girth
    if support == "air":
        lift += float(rng.uniform(0.03, 0.45))
    actor = Actor(mesh, keypoints, facing, keypoint_radii(body, outfit), support, body.height, seat)
    return actor.moved(np.array((0.0, lift, 0.0)))


def sample_camera(rng: _R, shape: tuple[int, int], people: int, crowding: float = 0.0) -> tuple[Camera, float]:
    """Draw a camera and the distance (m) at which it sees its subject; crowds are not seen from very far."""
    height, width = shape
    focal = max(shape) * float(np.exp(rng.uniform(np.log(0.85), np.log(2.4))))
    kind = rng.random()
    if kind < 0.72:
        lens = rng.normal(1.5, 0.25)
    elif kind < 0.84:
        lens = rng.uniform(0.3, 1.1)
    else:
        lens = rng.uniform(2.0, 4.5)
    top = 1.5 if people <= 3 else 0.95
    share = float(
        np.exp(rng.uniform(np.log(0.2 if crowding == 0 else 0.32), np.log(top)))
    )  # of the image's height, by a standing adult
    distance = max(focal * 1.7 / (share * height), 1.2, 0.9 * (lens - 1.0))
    aim = rng.uniform(0.9, 1.45) if share > 0.9 else 0.85 + rng.normal(0, 0.25) / max(share, 0.35) * 0.6
    pitch = float(np.degrees(np.arctan2(lens - aim, distance)))
    roll = float(rng.normal(0, 2.0)) if rng.random() < 0.8 else float(rng.normal(0, 9))
    return Camera(focal, (width / 2, height / 2), max(0.2, lens), pitch, roll), distance


def sample_light(rng: _R) -> Light:
    """Draw a light from above: from soft and even to hard and from one side."""
    direction = np.array((rng.normal(0, 0.7), abs(rng.normal(0.7, 0.35)) + 0.15, rng.normal(-0.55, 0.5)))
    strength = rng.uniform(0.2, 0.85)
    ambient = rng.uniform(0.95, 1.1) - 0.62 * strength
    colour = 1 + rng.normal(0, 0.035, 3)
    return Light(direction / np.linalg.norm(direction), ambient, strength, colour)


def _outline(actor: Actor, camera: Camera, offsets: Array) -> tuple[Array, Array]:
    """Surface points of an actor at K offsets (K, 3): px (K, N, 2) and the nearest depth (K,) in metres."""
    some = actor.mesh.verts[actor.mesh.quads[::5, 0]]
    pixels, depth = camera.project(some[None] + offsets[:, None])
    return pixels, depth.min(1)


def _boxes_of(pixels: Array, nearest: Array, shape: tuple[int, int]) -> Array:
    """Boxes (K, 4) px of point sets (K, N, 2), clipped to the image; empty for those too near the lens."""
    height, width = shape
    boxes = np.concatenate((pixels.min(1), pixels.max(1)), 1)
    boxes[nearest < 0.3] = 0
    return np.clip(boxes, 0, (width, height, width, height))


def _coarse(pixels: Array, shape: tuple[int, int], cell: float) -> NDArray[np.bool_]:
    """Rough silhouette of points (N, 2) on a grid of `cell` px."""
    grid = np.zeros((int(shape[0] / cell) + 1, int(shape[1] / cell) + 1), np.uint8)
    at = np.floor(pixels / cell).astype(np.int64)
    at = at[(at >= 0).all(1) & (at[:, 0] < grid.shape[1]) & (at[:, 1] < grid.shape[0])]
    grid[at[:, 1], at[:, 0]] = 1
    return cv2.morphologyEx(grid, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0


def _coarse_visible(masks: Sequence[NDArray[np.bool_]], depths: Sequence[float], cell: float) -> tuple[Array, float]:
    """Boxes (K, 4) px of what stays visible of silhouettes behind one another, and the smallest visible share."""
    owner = np.full(masks[0].shape, -1)
    for k in np.argsort(-np.asarray(depths)):
        owner[masks[k]] = k
    boxes, least = np.zeros((len(masks), 4)), 1.0
    for k, mask in enumerate(masks):
        seen = owner == k
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        least = min(least, seen.sum() / max(mask.sum(), 1))
        if len(rows):
            boxes[k] = columns[0] * cell, rows[0] * cell, (columns[-1] + 1) * cell, (rows[-1] + 1) * cell
    return boxes, least


def box_iou(a: Array, b: Array) -> Array:
    """Pairwise IoU (N, M) of xyxy boxes (N, 4) and (M, 4)."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    side = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]), 0, None)
    common = side.prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-9)


def max_iou(boxes: Array) -> Array:
    """For each box (N, 4) its largest IoU with another one, (N,); 0 for a single box."""
    iou = box_iou(boxes, boxes)
    np.fill_diagonal(iou, 0)
    return iou.max(1) if len(boxes) > 1 else np.zeros(len(boxes))


def place(
    rng: _R, actors: Sequence[Actor], camera: Camera, distance: float, shape: tuple[int, int], crowding: float
) -> list[Actor]:
    """Put people on the ground in front of the camera.

    Without crowding they stand freely. With it, each one after the first tries many spots near an earlier person and
    takes the one whose box IoU is nearest to what the running mean still lacks.
    """
    width = shape[1]
    goal = crowding + 0.9 * max(0.0, crowding - 0.45)  # the last stretch falls short otherwise
    placed: list[Actor] = []
    places, boxes = np.zeros((0, 3)), np.zeros((0, 4))
    masks: list[NDArray[np.bool_]] = []
    depths: list[float] = []
    cell = 4.0
    for k, actor in enumerate(actors):
        lone = np.flatnonzero(max_iou(boxes) < 0.5 * crowding)
        # join somebody, or start another group while somebody is left to join it
        crowd = crowding > 0 and k > 0 and (len(lone) > 0 or k == len(actors) - 1 or rng.random() < 0.4)
        tries = (160 if crowding < 0.55 else 400) if crowd else (6 if k else 1)
        if crowd:
            partner = int(lone[0]) if len(lone) else int(rng.integers(k))
            step = 0.8 * max(0.0, crowding - 0.5)  # uneven ground lets the densest groups show
            spread = np.exp(rng.normal(0, 0.5, (tries, 1)))  # mostly close, some farther away
            spots = places[partner] + rng.normal(0, 1, (tries, 3)) * (0.45 - 0.3 * crowding, step, 0.38 - 0.25 * crowding) * spread
            spots[:, 2] = np.maximum(spots[:, 2], 0.9)
        else:
            depth = np.maximum(distance * np.exp(rng.normal(0, 0.28 if len(actors) > 1 else 0.1, tries)), 1.0)
            margin = 0.02 if rng.random() < 0.8 else -0.04
            reach = (0.12, 0.88) if crowding > 0 else (margin, 1 - margin)
            spots = np.stack([camera.ground_point(float(rng.uniform(*reach)) * width, float(d)) for d in depth])
            if rng.random() < 0.12:
                spots[:, 1] += rng.uniform(-0.3, 0.4)  # on a step, or below
        pixels, nearest = _outline(actor, camera, spots)
        found = _boxes_of(pixels, nearest, shape)
        area = (found[:, 2:] - found[:, :2]).prod(1)
        best = 0
        if crowd:
            # whole boxes are cheap and choose a few spots; what stays visible of everybody decides between those
            lacking = np.abs(box_iou(found, boxes).max(1) - crowding * (1 + 0.3 * crowding)) + 10.0 * (area < MIN_PIXELS)
            cost = np.inf
            for i in np.argsort(lacking)[: 14 if crowding < 0.55 else 60].tolist():
                mask = _coarse(pixels[i], shape, cell)
                visible, least = _coarse_visible([*masks, mask], [*depths, spots[i, 2]], cell)
                most = max_iou(visible)
                value = abs(most[-1] - goal) + 1.5 * abs(most.mean() - goal) + 3.0 * max(0.0, 0.15 - least)
                if value < cost:
                    best, cost, best_mask, best_boxes = i, value, mask, visible
            masks.append(best_mask)
            boxes = best_boxes
        elif k:  # freely, but not quite on top of one another
            score = np.clip(box_iou(found, boxes).max(1) - 0.25, 0, None) + 0.3 * rng.random(tries) + 10.0 * (area < 40)
            best = int(np.argmin(score))
        if not crowd:
            boxes = np.concatenate((boxes, found[best : best + 1]))
            if crowding > 0:
                cell = max(2.0, (found[best, 3] - found[best, 1]) / 30) if k == 0 else cell
                masks.append(_coarse(pixels[best], shape, cell))
        depths.append(float(spots[best, 2]))
        places = np.concatenate((places, spots[best : best + 1]))
        placed.append(actor.moved(spots[best]))
    return placed


def label(actors: Sequence[Actor], indices: Sequence[int], raster: Raster, camera: Camera) -> tuple[Array, Array]:
    """Boxes and keypoints of the people, read off the rendered buffers.

    Args:
        actors: the people as placed.
        indices: their mesh numbers in `raster`.
        raster: what the camera saw.
        camera: the camera.

    Returns:
        Boxes (M, 4) xyxy px of visible pixels and keypoints (M, 17, 3) x, y, v of those people who count.
    """
    height, width = raster.owner.shape
    boxes, keypoints = [], []
    for actor, index in zip(actors, indices, strict=True):
        own = raster.own_depth[index]
        if own is None:
            continue
        (x0, y0, x1, y1), depth = own
        seen = raster.owner[y0:y1, x0:x1] == index
        count = int(seen.sum())
        if count < MIN_PIXELS or count < MIN_SHOWN * raster.own_area[index]:
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = np.array((x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1), float)
        pixels, z = camera.project(actor.keypoints)
        to_lens = camera.to_camera(actor.keypoints[:5])
        turned = np.einsum("ij,ij->i", actor.facing @ camera.rotation.T, to_lens / np.linalg.norm(to_lens, axis=1, keepdims=True))
        inside = (z > 0.1) & (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
        at = np.where(inside[:, None], pixels, 0).astype(np.int64)
        # its pixel and the eight around: a keypoint at the silhouette may fall just beside it
        columns, rows = at[:, :1] + _AROUND[:, 0], at[:, 1:] + _AROUND[:, 1]
        in_own = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        columns, rows = np.clip(columns, x0, x1 - 1), np.clip(rows, y0, y1 - 1)
        mine = in_own & (raster.owner[rows, columns] == index)
        surface = np.where(mine, depth[rows - y0, columns - x0], -1.0).max(1)
        centre = raster.owner[at[:, 1], at[:, 0]]
        visible = ((centre == index) | (centre < 0)) & (surface > z - actor.radii)
        visible[:5] &= turned < -0.08
        outside = np.maximum(box[:2] - pixels, pixels - box[2:]).max(1)
        inside &= visible | (outside <= FARTHEST_GUESS * (box[2:] - box[:2]).max())
        points = np.zeros((17, 3))
        points[inside, :2], points[inside, 2] = pixels[inside], 1 + visible[inside]
        if not points[:, 2].any():
            continue
        boxes.append(box)
        keypoints.append(points)
    if not boxes:
        return np.zeros((0, 4), np.float32), np.zeros((0, 17, 3), np.float32)
    return np.stack(boxes).astype(np.float32), np.stack(keypoints).astype(np.float32)


def _plain(rng: _R) -> Image:
    tile = np.empty((1, 96, 96, 3), np.uint8)
    cloth(rng, tile[0], busy=0.25)
    return tile


def _props(rng: _R, actors: Sequence[Actor]) -> list[Mesh]:
    """Chairs under those who sit, and now and then a table, crate, wall or pole in front of people."""
    things: list[Mesh] = []
    for actor in actors:
        if actor.support != "chair":
            continue
        mid = (actor.keypoints[11] + actor.keypoints[12]) / 2
        knees = (actor.keypoints[13] + actor.keypoints[14]) / 2
        ahead = (knees - mid) * (1, 0, 1)
        ahead /= np.linalg.norm(ahead) + 1e-9
        yaw = float(np.degrees(np.arctan2(ahead[0], ahead[2])))
        half = 0.12 * actor.height
        floor = float(actor.mesh.verts[:, 1].min())
        top = max(actor.seat, floor + 0.12)
        seat = mid + ahead * (0.4 * half)
        colours = _plain(rng)
        kind = rng.random()
        if kind < 0.45:  # a chair
            things.append(box_mesh((seat[0], top - 0.03, seat[2]), (half, 0.03, half), yaw, colours))
            for sx in (-1, 1):
                for sz in (-1, 1):
                    side = np.array((ahead[2], 0, -ahead[0]))
                    foot = seat + side * (sx * 0.85 * half) + ahead * (sz * 0.85 * half)
                    tall = (top - floor) / 2 - 0.03
                    things.append(box_mesh((foot[0], floor + tall, foot[2]), (0.02, max(tall, 0.02), 0.02), yaw, colours))
            if rng.random() < 0.7:
                back = seat - ahead * (1.45 * half)
                things.append(box_mesh((back[0], top + 0.25, back[2]), (half, 0.24, 0.02), yaw, colours))
        elif kind < 0.85:  # a bench, block or sofa
            wide = half * rng.uniform(1.0, 4.0)
            middle = seat - ahead * 0.02
            tall = (top - floor) / 2
            things.append(box_mesh((middle[0], floor + tall, middle[2]), (wide, max(tall, 0.03), half * 0.95), yaw, colours))
    if actors and rng.random() < 0.16:
        target = actors[int(rng.integers(len(actors)))]
        spot = target.keypoints[11:13].mean(0) * (1, 0, 1)
        nearer = rng.uniform(0.3, 0.75)
        spot[2] -= min(nearer, 0.45 * spot[2])
        kind = rng.random()
        if kind < 0.45:  # table or counter
            tall = rng.uniform(0.3, 0.55)
            slab = (float(rng.uniform(0.3, 1.0)), float(tall) if rng.random() < 0.5 else 0.03, 0.18)
            things.append(
                box_mesh((spot[0] + rng.normal(0, 0.3), 2 * tall - slab[1], spot[2]), slab, rng.normal(0, 12), _plain(rng))
            )
        elif kind < 0.8:  # pole
            things.append(
                box_mesh((spot[0] + rng.normal(0, 0.15), 1.3, spot[2]), (rng.uniform(0.02, 0.09), 1.5, 0.05), 20, _plain(rng))
            )
        else:  # crate
            half_size = rng.uniform(0.15, 0.4)
            things.append(
                box_mesh(
                    (spot[0] + rng.normal(0, 0.3), half_size, spot[2]),
                    (half_size,) * 3,
                    rng.uniform(0, 90),
                    _plain(rng),
                )
            )
    return things


def _shadows(image: Image, actors: Sequence[Actor], camera: Camera, darkness: float) -> None:
    """Soft contact shadows on the ground (in place), drawn at a quarter of the resolution."""
    height, width = image.shape[:2]
    mask = np.full((height // 4 + 1, width // 4 + 1), 255, np.uint8)
    for actor in actors:
        floor = float(actor.mesh.verts[:, 1].min())
        for keypoint in (15, 16) if actor.support in ("feet", "chair") else (11, 5, 15):
            spot = actor.keypoints[keypoint] * (1, 0, 1) + (0, min(floor, 0.0), 0)
            corners = spot + np.array(((0, 0, 0), (0.28, 0, 0), (0, 0, 0.16)))
            px, depth = camera.project(corners)
            if depth[0] < 0.5:
                continue
            wide = abs(px[1, 0] - px[0, 0]) / 4
            deep = max(abs(px[2, 1] - px[0, 1]) / 4, 0.15 * wide)
            centre = np.clip(px[0] / 4, -1e4, 1e4).astype(int)
            cv2.ellipse(mask, tuple(centre.tolist()), (int(wide) + 1, int(deep) + 1), 0, 0, 360, int(255 * (1 - darkness)), -1)
    mask = cv2.resize(cv2.GaussianBlur(mask, (0, 0), 1.3), (4 * mask.shape[1], 4 * mask.shape[0]))[:height, :width]
    image[:] = cv2.multiply(image, cv2.merge((mask, mask, mask)), None, 1 / 255)


def soften(image: Image, raster: Raster) -> None:
    """Smooth the jagged silhouettes (in place): blend with a blur where the depth jumps."""
    # a depth step marks a silhouette, within one person too
    step = cv2.morphologyEx(raster.depth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edge = cv2.compare(step, 0.1, cv2.CMP_GT)
    cv2.copyTo(cv2.GaussianBlur(image, (3, 3), 0), edge, image)


def photograph(rng: _R, image: Image) -> Image:
    """Make the rendering look taken: blur, exposure, colour cast, sensor noise, JPEG."""
    height, width = image.shape[:2]
    kind = rng.random()
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.32, 0.55))  # no lens is as sharp as a rendering
    if kind < 0.25:
        image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.5, 1.2))
    elif kind < 0.30:
        n = int(rng.integers(3, 8))
        kernel = np.zeros((n, n), np.float32)
        cv2.line(kernel, (0, int(rng.integers(n))), (n - 1, int(rng.integers(n))), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    elif kind < 0.35:  # low resolution
        part = rng.uniform(0.4, 0.8)
        small = cv2.resize(image, None, fx=part, fy=part, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    ramp = np.arange(256, dtype=np.float32) / 255
    gamma, gain, lift = np.exp(rng.normal(0, 0.16)), rng.normal(1.0, 0.1), rng.normal(0, 0.025)
    cast = 1 + rng.normal(0, 0.045, 3) * (rng.random() < 0.6)
    curve = np.clip((ramp[:, None] ** gamma * gain + lift) * cast, 0, 1) * 255
    image = cv2.LUT(image, curve.astype(np.uint8).reshape(256, 1, 3))
    if rng.random() < 0.04:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.7 and max(height, width) <= 700:
        grain = grain_bank()[rng.integers(3)]
        y, x = rng.integers(0, 769 - height), rng.integers(0, 769 - width)
        strength = abs(rng.normal(0, 5.0)) / 32
        crop = grain[y : y + height, x : x + width]
        image = cv2.addWeighted(image, 1.0, crop, strength, -128 * strength)
    if rng.random() < 0.25:
        ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        if ok:
            image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return image


def compose(
    rng: _R,
    actors: Sequence[Actor],
    camera: Camera,
    shape: tuple[int, int],
    distance: float = 4.0,
    props: bool = True,
    plain: bool = False,
) -> tuple[Image, Array, Array, Raster]:
    """Draw placed people into a fresh background and label them.

    Args:
        rng: source of randomness for background, light and things.
        actors: people at their places in the world.
        camera: the camera.
        shape: height and width in px.
        distance: of the subject in metres.
        props: whether chairs and foreground things are added.
        plain: before an even background.

    Returns:
        Image (H, W, 3) uint8 BGR before `photograph`; boxes (M, 4); keypoints (M, 17, 3); the raster.
    """
    image = background.even(rng, shape) if plain else background.paint(rng, shape, camera.horizon)
    light = sample_light(rng)
    things = _props(rng, actors) if props else []
    if actors and rng.random() < 0.8:
        _shadows(image, actors, camera, rng.uniform(0.2, 0.6))
    people = []
    for actor in actors:
        tall = camera.focal * actor.height / max(float(camera.to_camera(actor.keypoints[0])[2]), 0.1)
        people.append(actor.mesh if tall > _DETAILED else coarse(actor.mesh))
    raster = rasterise(image, [*people, *things], camera, light)
    soften(image, raster)
    boxes, keypoints = label(actors, range(len(actors)), raster, camera)
    return image, boxes, keypoints, raster


def render_scene(rng: _R, cfg: SynthConfig) -> tuple[Image, Array, Array]:
    """Draw one image.

    Args:
        rng: source of all randomness.
        cfg: what to draw.

    Returns:
        Image (H, W, 3) uint8 BGR; boxes (M, 4) float32 xyxy px of each person's visible pixels; keypoints
        (M, 17, 3) float32 px x, y and v (0 outside the image, 1 hidden, 2 seen).
    """
    low, high = cfg.people
    if cfg.crowding > 0:
        low = max(low, 2)  # one person alone cannot be crowded
    count = 0 if rng.random() < cfg.empty else int(rng.integers(low, high + 1))
    camera, distance = sample_camera(rng, cfg.shape, count, cfg.crowding)
    # people in a crowd tend to do the same thing, and boxes of one shape overlap more
    common = draw_activity(rng, cfg.activities)
    actors = []
    for _ in range(count):
        own = draw_activity(rng, cfg.activities) if cfg.activities else None  # None: drawn in its turn, as ever for a seed
        actors.append(make_actor(rng, common if rng.random() < cfg.crowding else own))
    actors = place(rng, actors, camera, distance, cfg.shape, cfg.crowding)
    image, boxes, keypoints, _ = compose(rng, actors, camera, cfg.shape, distance, props=not cfg.plain, plain=cfg.plain)
    return image if cfg.plain else photograph(rng, image), boxes, keypoints

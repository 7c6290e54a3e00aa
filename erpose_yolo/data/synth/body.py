"""Body parts: the skeleton clothed in flesh, hair and garments, as one quad mesh.

Every part is a loft: a row of elliptic rings along some bones. A ring's centre is a weighted mean of skeleton points
plus an offset in a weighted mean of bone frames, so all rings of a person are placed with three small matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .skeleton import FRAME, FRAMES, POINT, POINTS, Array, Proportions, clip_pose, solve

SEGMENTS = 12  # quads around a ring
# texture tiles of a person
SKIN, HEAD, TOP, BOTTOM, SHOE, HAIR, HAT = range(7)
_TEXTURE_METRES = 0.62  # length of a limb covered by one tile


@dataclass(frozen=True)
class Outfit:
    """What a person wears, as far as it has shape.

    Args:
        sleeve: covered part of the arm: 0 none, 1 to the elbow, 2 to the wrist.
        leg: covered part of the leg: 0 none, 1 to the knee, 2 to the ankle.
        skirt: length of the skirt in thighs, 0 for none.
        waist: where top and bottom meet, fraction of height above the hips.
        bare_chest: no top at all.
        loose: thickness of the top in metres.
        loose_leg: thickness of the trousers in metres.
        flare: widening of the trousers towards the ankle.
        barefoot: feet in skin.
        gloves: hands in the shoe tile.
        hair: "none", "short", "long", "tail", "bun" or "afro".
        hat: "none", "cap" or "brim".
        hood: a scarf or hood around head and neck.
    """

    sleeve: float = 0.4
    leg: float = 2.0
    skirt: float = 0.0
    waist: float = 0.03
    bare_chest: bool = False
    loose: float = 0.008
    loose_leg: float = 0.008
    flare: float = 0.0
    barefoot: bool = False
    gloves: bool = False
    hair: str = "short"
    hat: str = "none"
    hood: bool = False


@dataclass
class Mesh:
    """Quads in world space, ready for the camera.

    Args:
        verts: (V, 3) metres.
        normals: (V, 3) unit, outward.
        uv: (V, 2) texture coordinates in [0, 1].
        quads: (F, 4) vertex indices.
        tile: (F,) which tile of `atlas`.
        atlas: (T, N, N, 3) uint8 BGR textures.
        bias: (F,) metres added to a face's depth when faces are sorted.
    """

    verts: Array
    normals: Array
    uv: Array
    quads: NDArray[np.int64]
    tile: NDArray[np.int64]
    atlas: NDArray[np.uint8]
    bias: Array


@dataclass
class _Ring:
    loft: str
    points: dict[str, float]
    frames: dict[str, float]
    offset: tuple[float, float, float]
    rx: float
    rz: float
    unit: str = "body"  # body: fractions of height, girth applies; bone: no girth; head: half head heights
    flat: bool = False  # ring in the frame's x-y plane (feet) instead of x-z
    reach: float = 0.0  # how far along the limb, decides what covers it


def _limb_rings(side: str) -> list[_Ring]:
    """Arm (into the hand) and leg of one side; `reach` counts bones from the trunk."""
    rings = []
    s = 1.0 if side == "l" else -1.0
    arm = [f"{side}_{n}" for n in ("shoulder", "elbow", "wrist", "tip")]
    bones = [f"{side}_{n}" for n in ("upper", "fore", "hand")]
    # deltoid: from inside the chest over the keypoint
    rings.append(
        _Ring(
            f"{side}_arm",
            {arm[0]: 1},
            {"chest": 0.7, bones[0]: 0.3},
            (-s * 0.026, 0.004, 0),
            0.018,
            0.024,
            "body",
            False,
            -0.3,
        )
    )
    rings.append(
        _Ring(
            f"{side}_arm",
            {arm[0]: 1},
            {"chest": 0.3, bones[0]: 0.7},
            (-s * 0.006, 0.002, 0),
            0.0245,
            0.029,
            "body",
            False,
            -0.2,
        )
    )
    profile = (
        (0.06, 0.0265, 0.0300), (0.25, 0.0265, 0.0290), (0.5, 0.0250, 0.0270), (0.8, 0.0215, 0.0225),
        (1.0, 0.0205, 0.0210),
        (1.2, 0.0225, 0.0220), (1.5, 0.0195, 0.0190), (1.8, 0.0150, 0.0155), (1.98, 0.0125, 0.0150),
        (2.15, 0.0115, 0.0195), (2.4, 0.0115, 0.0240), (2.65, 0.0100, 0.0225), (2.9, 0.0075, 0.0170),
        (3.0, 0.0030, 0.0080),
    )  # fmt: skip
    for reach, rx, rz in profile:
        i = min(int(reach), 2)
        t = reach - i
        if abs(reach - 1.0) < 0.01:
            frames = {bones[0]: 0.5, bones[1]: 0.5}
        elif abs(reach - 1.98) < 0.03:
            frames = {bones[1]: 0.5, bones[2]: 0.5}
        else:
            frames = {bones[i]: 1.0}
        rings.append(_Ring(f"{side}_arm", {arm[i]: 1 - t, arm[i + 1]: t}, frames, (0, 0, 0), rx, rz, "body", False, reach))
    hand = {bones[2]: 1.0}
    for y, z, r, reach in ((-0.008, 0.010, 0.006, 2.2), (-0.032, 0.026, 0.0075, 2.3), (-0.058, 0.032, 0.004, 2.6)):
        rings.append(_Ring(f"{side}_thumb", {arm[2]: 1}, hand, (0, y, z), r, r, "bone", False, reach))

    leg = [f"{side}_{n}" for n in ("hip", "knee", "ankle")]
    bones = [f"{side}_{n}" for n in ("thigh", "shin")]
    rings.append(
        _Ring(
            f"{side}_leg",
            {leg[0]: 1},
            {"pelvis": 0.5, bones[0]: 0.5},
            (-s * 0.006, 0.03, -0.004),
            0.040,
            0.052,
            "body",
            False,
            -0.2,
        )
    )
    profile2 = (
        (0.04, 0.0480, 0.0560, -0.006), (0.25, 0.0470, 0.0530, -0.003), (0.55, 0.0400, 0.0430, 0),
        (0.85, 0.0320, 0.0345, 0.002),
        (1.0, 0.0295, 0.0325, 0.003), (1.12, 0.0285, 0.0310, -0.002), (1.32, 0.0300, 0.0340, -0.008),
        (1.55, 0.0250, 0.0280, -0.007),
        (1.8, 0.0180, 0.0205, -0.003), (1.98, 0.0165, 0.0195, -0.003), (2.08, 0.0150, 0.0170, -0.002),
    )  # fmt: skip
    for reach, rx, rz, z in profile2:
        i = min(int(reach), 1)
        t = reach - i
        frames = {bones[0]: 0.5, bones[1]: 0.5} if abs(reach - 1.0) < 0.01 else {bones[i]: 1.0}
        rings.append(_Ring(f"{side}_leg", {leg[i]: 1 - t, leg[i + 1]: t}, frames, (0, 0, z), rx, rz, "body", False, reach))
    for z, y, rx, ry in (
        (-0.038, -0.018, 0.008, 0.010), (-0.030, -0.018, 0.018, 0.022), (0.0, -0.014, 0.021, 0.028),
        (0.040, -0.022, 0.023, 0.021), (0.080, -0.029, 0.027, 0.014), (0.105, -0.033, 0.022, 0.010),
        (0.116, -0.035, 0.008, 0.005),
    ):  # fmt: skip
        rings.append(_Ring(f"{side}_foot", {leg[2]: 1}, {f"{side}_foot": 1}, (0, y, z), rx, ry, "bone", True, 2.5))
    return rings


def _table() -> list[_Ring]:
    rings: list[_Ring] = []
    # torso, from the crotch up: height above the hips in fractions of the torso, half width, half depth, forward shift
    trunk = (
        (-0.20, 0.030, 0.040, -0.002), (-0.13, 0.075, 0.060, -0.006), (-0.02, 0.094, 0.067, -0.008),
        (0.12, 0.092, 0.064, -0.006),
        (0.28, 0.082, 0.056, 0.0), (0.42, 0.079, 0.054, 0.003), (0.56, 0.083, 0.057, 0.003),
        (0.70, 0.091, 0.061, 0.003),
        (0.80, 0.096, 0.060, 0.0), (0.875, 0.094, 0.053, -0.003), (0.935, 0.078, 0.044, -0.006),
        (0.985, 0.053, 0.036, -0.006),
        (1.03, 0.036, 0.031, -0.004), (1.07, 0.028, 0.029, 0.0),
    )  # fmt: skip
    knots = (("pelvis", 0.0), ("belly", 0.33), ("chest", 0.63), ("neck", 1.0))
    for y, rx, rz, z in trunk:
        if y <= 0:
            points, frames, lift = {"pelvis": 1.0}, {"pelvis": 1.0}, y * 0.292
        elif y >= 1:
            points, frames, lift = {"neck": 1.0}, {"chest": 0.7, "neck": 0.3}, (y - 1) * 0.292
        else:
            i = next(i for i in range(3) if knots[i][1] <= y < knots[i + 1][1])
            t = (y - knots[i][1]) / (knots[i + 1][1] - knots[i][1])
            points, lift = {knots[i][0]: 1 - t, knots[i + 1][0]: t}, 0.0
            w = float(np.clip((y - 0.1) / 0.3, 0, 1)), float(np.clip((y - 0.45) / 0.3, 0, 1))
            frames = {"pelvis": 1 - w[0], "belly": w[0] - w[1], "chest": w[1]}
        rings.append(_Ring("torso", points, frames, (0, lift, z), rx, rz, "body", False, y))
    for t, r in ((-0.05, 0.036), (0.25, 0.0305), (0.6, 0.029), (0.85, 0.031)):
        rings.append(_Ring("neck", {"neck": 1 - t, "head": t}, {"neck": 1}, (0, 0, -0.006), r, r, "body", False, t))
    head = {"head": 1.0}

    def on_head(loft: str, rows: tuple[tuple[float, float, float, float], ...], x: float = 0.0) -> None:
        for y, rx, rz, z in rows:
            rings.append(_Ring(loft, head, head, (x, y, z), rx, rz, "head", False, y))

    on_head("head", (
        (-1.0, 0.10, 0.10, 0.42), (-0.96, 0.28, 0.26, 0.40), (-0.82, 0.43, 0.46, 0.30), (-0.6, 0.54, 0.64, 0.16),
        (-0.35, 0.60, 0.74, 0.08), (-0.1, 0.65, 0.82, 0.01), (0.15, 0.68, 0.87, -0.04), (0.4, 0.68, 0.88, -0.06),
        (0.65, 0.60, 0.77, -0.08), (0.85, 0.42, 0.54, -0.09), (0.97, 0.20, 0.27, -0.10), (1.0, 0.02, 0.02, -0.10),
    ))  # fmt: skip
    on_head(
        "nose",
        ((-0.37, 0.06, 0.05, 0.78), (-0.31, 0.15, 0.15, 0.82), (-0.2, 0.13, 0.16, 0.83), (0.06, 0.06, 0.06, 0.80)),
    )
    for name, x in (("l_ear", 0.69), ("r_ear", -0.69)):
        on_head(
            name,
            ((-0.28, 0.03, 0.05, 0.0), (-0.2, 0.07, 0.12, -0.02), (0.05, 0.08, 0.19, -0.06), (0.14, 0.03, 0.08, -0.06)),
            x,
        )
    on_head("hair_long", (
        (-2.1, 0.30, 0.12, -0.62), (-1.9, 0.62, 0.24, -0.60), (-1.2, 0.74, 0.36, -0.52), (-0.6, 0.76, 0.50, -0.38),
        (0.0, 0.76, 0.66, -0.25), (0.45, 0.76, 0.82, -0.13), (0.78, 0.58, 0.68, -0.12),
        (1.0, 0.34, 0.40, -0.12), (1.09, 0.05, 0.05, -0.12),
    ))  # fmt: skip
    on_head("hair_tail", (
        (-1.5, 0.05, 0.05, -1.0), (-1.2, 0.17, 0.16, -1.08), (-0.5, 0.24, 0.2, -1.18), (0.1, 0.2, 0.2, -1.1),
        (0.35, 0.1, 0.1, -0.9),
    ))  # fmt: skip
    on_head(
        "hair_bun",
        (
            (0.55, 0.08, 0.08, -0.75),
            (0.65, 0.3, 0.3, -0.8),
            (0.9, 0.34, 0.34, -0.78),
            (1.15, 0.2, 0.2, -0.7),
            (1.2, 0.05, 0.05, -0.7),
        ),
    )
    on_head("hair_afro", (
        (-0.55, 0.4, 0.3, -0.55), (-0.2, 0.85, 0.75, -0.42), (0.3, 1.05, 1.0, -0.28), (0.75, 1.0, 1.0, -0.2),
        (1.1, 0.78, 0.8, -0.2),
        (1.3, 0.4, 0.42, -0.2), (1.36, 0.05, 0.05, -0.2),
    ))  # fmt: skip
    on_head(
        "hat_crown",
        (
            (0.36, 0.74, 0.93, -0.06),
            (0.6, 0.72, 0.9, -0.07),
            (0.9, 0.58, 0.7, -0.1),
            (1.1, 0.3, 0.36, -0.1),
            (1.13, 0.03, 0.03, -0.1),
        ),
    )
    on_head("hat_peak", ((0.36, 0.5, 0.1, 1.25), (0.38, 0.62, 0.62, 0.75), (0.46, 0.6, 0.5, 0.6), (0.52, 0.3, 0.2, 0.6)))
    on_head(
        "hat_brim",
        ((0.32, 0.8, 0.95, 0.0), (0.36, 1.5, 1.65, -0.05), (0.42, 1.48, 1.63, -0.05), (0.5, 0.72, 0.9, -0.05)),
    )
    on_head("hood", (
        (-1.5, 0.9, 0.8, -0.1), (-1.1, 0.7, 0.75, -0.15), (-0.6, 0.72, 0.72, -0.22), (0.0, 0.80, 0.86, -0.22),
        (0.45, 0.78, 0.92, -0.15),
        (0.8, 0.62, 0.8, -0.14), (1.05, 0.32, 0.4, -0.12), (1.12, 0.04, 0.04, -0.12),
    ))  # fmt: skip
    for t in (-0.28, -0.05, 0.3, 0.62, 1.0, 1.4, 1.8):  # skirt: radii are set per pose in `build_person`
        frames = {"pelvis": 0.6, "l_thigh": 0.2, "r_thigh": 0.2} if t <= 0 else {"l_thigh": 0.5, "r_thigh": 0.5}
        if t <= 1:
            points = {"l_hip": (1 - t) / 2, "l_knee": t / 2, "r_hip": (1 - t) / 2, "r_knee": t / 2}
        else:
            points = {"l_knee": (2 - t) / 2, "l_ankle": (t - 1) / 2, "r_knee": (2 - t) / 2, "r_ankle": (t - 1) / 2}
        rings.append(_Ring("skirt", points, frames, (0, 0, -0.004), 0.075, 0.07, "body", False, t))
    for side in "lr":
        rings += _limb_rings(side)
    return rings


class _Tables:
    """The ring table as arrays, built once."""

    def __init__(self) -> None:
        rings = _table()
        n = len(rings)
        self.lofts = list(dict.fromkeys(r.loft for r in rings))
        self.loft = np.array([self.lofts.index(r.loft) for r in rings])
        self.points, self.frames = np.zeros((n, len(POINTS))), np.zeros((n, len(FRAMES)))
        for i, ring in enumerate(rings):
            for name, w in ring.points.items():
                self.points[i, POINT[name]] = w
            for name, w in ring.frames.items():
                self.frames[i, FRAME[name]] = w
        self.offset = np.array([r.offset for r in rings])
        self.radii = np.array([(r.rx, r.rz) for r in rings])
        self.is_head = np.array([r.unit == "head" for r in rings])
        self.has_girth = np.array([r.unit == "body" for r in rings])
        self.flat = np.array([r.flat for r in rings])
        self.reach = np.array([r.reach for r in rings])
        kinds = [r.loft.split("_")[-1] if r.loft[1] == "_" else r.loft for r in rings]
        self.kind = {name: np.array([k == name for k in kinds]) for name in set(kinds)}
        self.thigh = {side: np.flatnonzero(np.array([r.loft == f"{side}_leg" for r in rings])) for side in "lr"}
        angle = np.linspace(0, 2 * np.pi, SEGMENTS + 1)
        self.sin, self.cos = np.sin(angle), -np.cos(angle)  # u = 0.5 is the front, u = 0.25 the left side
        self.u = np.linspace(0, 1, SEGMENTS + 1)
        index = np.arange(n)
        same_next = np.append(self.loft[1:] == self.loft[:-1], False)
        same_prev = np.append(False, self.loft[1:] == self.loft[:-1])
        self.next = np.where(same_next, index + 1, index)
        self.prev = np.where(same_prev, index - 1, index)
        first = index[same_next]
        corner = (first[:, None] * (SEGMENTS + 1) + np.arange(SEGMENTS)).reshape(-1)
        self.quads = np.stack((corner, corner + 1, corner + SEGMENTS + 2, corner + SEGMENTS + 1), 1)
        self.quad_ring = np.repeat(first, SEGMENTS)
        self.flip = np.ones(n)


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """Ring arrays; the winding of each loft is found from its signed volume in the rest pose."""
    t = _Tables()
    verts = _place(t, Proportions(), *solve(Proportions(), clip_pose({})), t.radii * 1.0)[0]
    q = verts.reshape(-1, 3)[t.quads]
    for k in range(len(t.lofts)):
        mine = q[t.loft[t.quad_ring] == k]
        mine = mine - mine.mean((0, 1))
        volume = np.einsum("ij,ij->", mine.mean(1), np.cross(mine[:, 2] - mine[:, 0], mine[:, 3] - mine[:, 1]))
        t.flip[t.loft == k] = np.sign(volume)
    backward = t.flip[t.quad_ring] < 0
    t.quads[backward] = t.quads[backward][:, ::-1]
    return t


def _place(t: _Tables, body: Proportions, points: Array, frames: Array, radii: Array) -> tuple[Array, Array, Array]:
    """Ring vertices (R, SEGMENTS + 1, 3), centres (R, 3) and ring axes (R, 3, 3)."""
    axes = np.einsum("rf,fij->rij", t.frames, frames)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True) + 1e-9
    unit = np.where(t.is_head, body.head, body.height)
    centres = t.points @ points + np.einsum("rij,rj->ri", axes, t.offset * unit[:, None])
    second = np.where(t.flat[:, None], axes[:, :, 1], axes[:, :, 2])
    a, b = axes[:, :, 0] * radii[:, :1], second * radii[:, 1:]
    verts = centres[:, None] + a[:, None] * t.sin[None, :, None] + b[:, None] * t.cos[None, :, None]
    return verts, centres, axes


def build_person(body: Proportions, outfit: Outfit, points: Array, frames: Array, atlas: NDArray[np.uint8]) -> Mesh:
    """Clothe a posed skeleton.

    Args:
        body: measures.
        outfit: what is worn.
        points: (len(POINTS), 3) from `skeleton.solve`.
        frames: (len(FRAMES), 3, 3) from `skeleton.solve`.
        atlas: (7, N, N, 3) textures by tile.

    Returns:
        The mesh of the person, around the pelvis at the origin.
    """
    t = _tables()
    h = body.height
    radii = t.radii * np.where(t.is_head, body.head, h)[:, None]
    radii[t.has_girth] *= body.girth**0.8
    torso, arm, leg, foot = t.kind["torso"], t.kind["arm"], t.kind["leg"], t.kind["foot"]
    waist_bump = np.exp(-(((t.reach - 0.4) / 0.28) ** 2))
    radii[torso, 0] *= 1 + 0.35 * body.belly * waist_bump[torso]
    radii[torso, 1] *= 1 + 0.9 * body.belly * waist_bump[torso]
    radii[torso, 0] *= np.where(t.reach[torso] > 0.6, body.shoulder / 0.105, np.clip(body.hip / 0.052, 0.9, 1.1))
    bust = body.bust * h * np.exp(-(((t.reach - 0.73) / 0.1) ** 2))
    radii[torso, 1] += 0.7 * bust[torso]

    # garments: which rings they cover, and their thickness
    tile = np.full(len(t.reach), SKIN)
    waist = outfit.waist / body.torso
    top_on = torso & (t.reach >= waist - 0.06)
    arm_on = arm & (t.reach < outfit.sleeve - 0.02)
    leg_on = leg & (t.reach < outfit.leg - 0.02)
    low_on = torso & ~top_on
    tile[torso] = BOTTOM
    if not outfit.bare_chest:
        tile[top_on], tile[arm_on] = TOP, TOP
        radii[top_on & (t.reach < 1.02)] += outfit.loose
        radii[arm_on] += outfit.loose * np.clip(0.6 + 0.5 * t.reach[arm_on], 0.3, 1.3)[:, None]
        tile[torso & (t.reach >= 1.0)] = SKIN
        if outfit.sleeve > 1.6 and outfit.loose > 0.012:
            tile[t.kind["neck"] & (t.reach < 0.2)] = TOP
    else:
        tile[top_on] = SKIN
    tile[leg_on] = BOTTOM
    radii[leg_on] += outfit.loose_leg + (outfit.flare * 0.03 * h) * np.clip(t.reach[leg_on], 0, 2)[:, None]
    radii[low_on] += 0.7 * outfit.loose_leg
    tile[foot] = SKIN if outfit.barefoot else SHOE
    if not outfit.barefoot:
        radii[foot] += 0.005
        tile[leg & (t.reach > 1.93) & ~leg_on] = SHOE
    if outfit.gloves:
        tile[(arm | t.kind["thumb"]) & (t.reach >= 1.97)] = SHOE
    for name in ("head", "nose"):
        tile[t.kind[name]] = HEAD if name == "head" else SKIN
    for name in t.kind:
        if name.startswith("hair"):
            tile[t.kind[name]] = HAIR
        elif name.startswith("hat") or name == "hood":
            tile[t.kind[name]] = HAT
    if outfit.hair not in ("none",):  # short hair too has a volume
        top = t.kind["head"] & (t.reach > 0.3)
        radii[top] += 0.07 * body.head * np.clip(t.reach[top] + 0.1, 0, 1)[:, None]
    tile[t.kind["skirt"]] = TOP if outfit.waist < 0 else BOTTOM

    verts, centres, _ = _place(t, body, points, frames, radii)
    if outfit.skirt > 0:
        _drape(t, verts, centres, points, outfit, h * body.girth**0.8)
    if body.bust:
        front = np.clip(t.cos, 0, 1) ** 2
        ring = np.flatnonzero(torso & (np.abs(t.reach - 0.73) < 0.2))
        push = 0.3 * bust[ring]
        verts[ring] += push[:, None, None] * front[None, :, None] * frames[FRAME["chest"]][:, 2]

    around = np.empty_like(verts)
    around[:, 1:-1] = verts[:, 2:] - verts[:, :-2]
    around[:, 0] = around[:, -1] = verts[:, 1] - verts[:, -2]
    along = verts[t.next] - verts[t.prev]
    normals = np.empty_like(verts)  # np.cross is slow
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        normals[..., i] = around[..., j] * along[..., k] - around[..., k] * along[..., j]
    normals *= (t.flip[:, None] / (np.sqrt(np.einsum("rsi,rsi->rs", normals, normals)) + 1e-9))[..., None]

    step = np.linalg.norm(centres - centres[t.prev], axis=1)
    run = np.cumsum(step) / _TEXTURE_METRES
    start = np.zeros(len(run))
    starts = t.prev == np.arange(len(run))
    start[starts] = run[starts]
    run = run - np.maximum.accumulate(start)
    v = run % 2
    v = np.where(v > 1, 2 - v, v)
    v[torso] = 1 - np.clip((t.reach[torso] + 0.2) / 1.2, 0, 1)
    v[t.kind["head"]] = (1 - t.reach[t.kind["head"]]) / 2
    uv = np.empty((*verts.shape[:2], 2))
    uv[..., 0], uv[..., 1] = t.u, v[:, None]

    hidden = [n for n in t.lofts if n.startswith(("hair", "hat", "hood", "skirt"))]
    worn = {f"hair_{outfit.hair}", {"cap": "hat_peak", "brim": "hat_brim"}.get(outfit.hat, "")}
    worn |= {"hat_crown"} if outfit.hat != "none" else set()
    worn |= {"hood"} if outfit.hood else set()
    worn |= {"skirt"} if outfit.skirt > 0 else set()
    drop = np.array([n in hidden and n not in worn for n in t.lofts])
    keep = ~drop[t.loft][t.quad_ring]
    if outfit.skirt > 0:
        keep &= ~(t.kind["skirt"] & (t.reach > outfit.skirt - 0.3))[t.quad_ring]
    bias = np.zeros(len(t.reach))
    bias[t.kind["nose"]] = -0.02
    bias[t.kind["hat_crown"]] = -0.015
    bias[t.kind["skirt"]] = -0.02
    return Mesh(
        verts=verts.reshape(-1, 3),
        normals=normals.reshape(-1, 3),
        uv=uv.reshape(-1, 2),
        quads=t.quads[keep],
        tile=tile[t.quad_ring][keep],
        atlas=atlas,
        bias=bias[t.quad_ring][keep],
    )


def coarse(mesh: Mesh) -> Mesh:
    """A person's mesh with half as many faces around each ring, for people who appear small."""
    quads = mesh.quads.reshape(-1, SEGMENTS, 4)[:, ::2].reshape(-1, 4)
    quads = quads + quads % (SEGMENTS + 1) % 2  # odd columns, the right edge of an even quad, move one on
    return replace(
        mesh,
        quads=quads,
        tile=mesh.tile.reshape(-1, SEGMENTS)[:, ::2].ravel(),
        bias=mesh.bias.reshape(-1, SEGMENTS)[:, ::2].ravel(),
    )


def _drape(t: _Tables, verts: Array, centres: Array, points: Array, outfit: Outfit, h: float) -> None:
    """Give the skirt's rings an ellipse around both thighs (in place), however far apart they are."""
    rings = np.flatnonzero(t.kind["skirt"])
    weights = t.points[rings]
    left, right = weights.copy(), weights.copy()
    for side, w in (("l", right), ("r", left)):  # the other side's points out, to get one leg's place
        w[:, [POINT[f"{side}_{n}"] for n in ("hip", "knee", "ankle")]] = 0
    across = 2 * (left - right) @ points
    gap = np.linalg.norm(across, axis=1, keepdims=True)
    reach = t.reach[rings][:, None]
    frame_x = verts[rings, SEGMENTS // 4] - centres[rings]
    frame_z = verts[rings, SEGMENTS // 2] - centres[rings]
    frame_x /= np.linalg.norm(frame_x, axis=1, keepdims=True)
    frame_z /= np.linalg.norm(frame_z, axis=1, keepdims=True)
    x_axis = np.where(gap > 0.05 * h, across / (gap + 1e-9), frame_x)
    z_axis = frame_z - x_axis * np.einsum("ij,ij->i", frame_z, x_axis)[:, None]
    z_axis /= np.linalg.norm(z_axis, axis=1, keepdims=True) + 1e-9
    thick = h * (0.058 - 0.014 * np.clip(reach, 0, 1.2)) + 0.01 + 0.03 * outfit.flare * h * np.clip(reach, 0, 2)
    rx, rz = gap / 2 + thick, 1.12 * thick + 0.012
    verts[rings] = (
        centres[rings][:, None] + (x_axis * rx)[:, None] * t.sin[None, :, None] + (z_axis * rz)[:, None] * t.cos[None, :, None]
    )


def keypoint_radii(body: Proportions, outfit: Outfit) -> Array:
    """How deep (metres) each COCO keypoint may lie below its own surface and still count as seen, (17,)."""
    h, g = body.height, body.girth**0.8
    loose, leg = (0.0 if outfit.bare_chest else outfit.loose), outfit.loose_leg
    limb = [0.05 * h * g + loose] * 2 + [0.032 * h * g + loose] * 2 + [0.026 * h * g + loose] * 2
    limb += [0.085 * h * g * (1 + body.belly) + leg] * 2 + [0.045 * h * g + leg] * 2 + [0.034 * h * g + leg] * 2
    if outfit.skirt > 0:
        limb[6:8] = [r + 0.03 for r in limb[6:8]]
    return np.array([0.03, 0.03, 0.03, 0.035, 0.035, *limb]) + 0.01


def box_mesh(
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    yaw: float,
    colours: NDArray[np.uint8],
    cell: float = 0.14,
) -> Mesh:
    """A box cut into cells, small enough to be depth-sorted by their centres.

    Args:
        centre: world position in metres.
        half: half extents in metres.
        yaw: turn about y in degrees.
        colours: (1, N, N, 3) texture.
        cell: edge of a cell in metres.
    """
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    turn = np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    verts, normals, uvs, quads = [], [], [], []
    total = 0
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        ni, nj = (int(np.clip(np.ceil(2 * half[k] / cell), 1, 9)) for k in (i, j))
        gi, gj = np.meshgrid(np.linspace(-1, 1, ni + 1), np.linspace(-1, 1, nj + 1), indexing="ij")
        corner = (np.arange(ni)[:, None] * (nj + 1) + np.arange(nj)).reshape(-1)
        face = np.stack((corner, corner + nj + 1, corner + nj + 2, corner + 1), 1)
        for sign in (-1.0, 1.0):
            local = np.empty((gi.size, 3))
            local[:, axis], local[:, i], local[:, j] = sign * half[axis], gi.ravel() * half[i], gj.ravel() * half[j]
            normal = np.zeros(3)
            normal[axis] = sign
            verts.append(local @ turn.T + centre)
            normals.append(np.tile(turn @ normal, (gi.size, 1)))
            uvs.append(np.stack((gi.ravel(), gj.ravel()), 1) * 0.5 + 0.5)
            quads.append((face if sign > 0 else face[:, ::-1]) + total)
            total += gi.size
    faces = np.concatenate(quads)
    return Mesh(
        np.concatenate(verts), np.concatenate(normals), np.concatenate(uvs), faces, np.zeros(len(faces),
        dtype=np.int64), colours,
        np.zeros(len(faces)),
    )  # fmt: skip

"""Rasteriser: quads to an image, with exact knowledge of which person owns each pixel and how deep it lies.

Each mesh is painted far-to-near into a small buffer of face numbers (cv2 does the filling), the buffers are merged by
depth, and only then are the visible pixels textured and shaded, all at once: attributes are affine within a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .body import Mesh
from .camera import Camera
from .skeleton import Array

FAR = 1e6  # depth of nothing, metres
_SHIFT = 4  # sub-pixel bits of cv2's fixed point coordinates


@dataclass(frozen=True)
class Light:
    """Scene light.

    Args:
        direction: unit vector towards the light, world.
        ambient: shade of a surface turned away.
        strength: added when facing the light.
        colour: BGR factors.
    """

    direction: Array
    ambient: float
    strength: float
    colour: Array


@dataclass
class Raster:
    """What the camera sees.

    Args:
        owner: (H, W) int32, index of the mesh that owns the pixel, -1 for none.
        depth: (H, W) float32 metres, FAR where empty.
        own_area: per mesh, pixels of its own silhouette within the image.
        own_depth: per mesh, its region (x0, y0, x1, y1) and own depth buffer there (FAR where not covered), or None.
    """

    owner: NDArray[np.int32]
    depth: NDArray[np.float32]
    own_area: list[int]
    own_depth: list[tuple[tuple[int, int, int, int], NDArray[np.float32]] | None]


# numpy reduces a short middle axis slowly; the four corners written out are several times faster
def _mean4(a: NDArray[Any]) -> NDArray[Any]:
    return (a[:, 0] + a[:, 1] + a[:, 2] + a[:, 3]) * 0.25


def _min4(a: NDArray[Any]) -> NDArray[Any]:
    return np.minimum(np.minimum(a[:, 0], a[:, 1]), np.minimum(a[:, 2], a[:, 3]))


def _max4(a: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(np.maximum(a[:, 0], a[:, 1]), np.maximum(a[:, 2], a[:, 3]))


def _where(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, columns and flat indices where a (H, W) mask is set; faster than np.nonzero in two dimensions."""
    flat = np.flatnonzero(mask)
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1], flat


def rasterise(image: NDArray[np.uint8], meshes: Sequence[Mesh], camera: Camera, light: Light) -> Raster:
    """Draw meshes into `image` (H, W, 3 uint8 BGR, in place) and report depth and ownership."""
    height, width = image.shape[:2]
    owner = np.full((height, width), -1, np.int32)
    depth = np.full((height, width), FAR, np.float32)
    out = Raster(owner, depth, [0] * len(meshes), [None] * len(meshes))
    if not meshes:
        return out
    counts = [len(m.verts) for m in meshes]
    faces = [len(m.quads) for m in meshes]
    shift = np.concatenate(([0], np.cumsum(counts)[:-1]))
    quads = np.concatenate([m.quads + s for m, s in zip(meshes, shift, strict=True)])
    verts, normals = np.concatenate([m.verts for m in meshes]), np.concatenate([m.normals for m in meshes])
    mesh_of = np.repeat(np.arange(len(meshes)), faces)

    pixels, z = camera.project(verts)
    lit = normals @ light.direction
    shade = light.ambient + light.strength * np.where(lit > 0, lit, 0.12 * lit) + 0.10 * light.ambient * normals[:, 1]
    pixels = pixels.astype(np.float32)
    attributes = np.empty((len(verts), 4), np.float32)
    attributes[:, 0], attributes[:, 3] = shade, z
    attributes[:, 1:3] = np.concatenate([m.uv for m in meshes])

    corners = (pixels - np.float32(0.5))[quads]  # pixel i covers [i, i + 1)
    e1 = (corners[:, 1] - corners[:, 0] + corners[:, 2] - corners[:, 3]) * 0.5
    e2 = (corners[:, 3] - corners[:, 0] + corners[:, 2] - corners[:, 1]) * 0.5
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    face_z = attributes[:, 3][quads]
    bias = np.concatenate([m.bias for m in meshes])
    low_px, high_px = np.floor(_min4(corners)), np.ceil(_max4(corners)) + 1
    on_screen = (high_px > 0).all(1) & (low_px[:, 0] < width) & (low_px[:, 1] < height)
    visible = np.flatnonzero((area < 0) & (_min4(face_z) > 0.15) & on_screen)
    if not len(visible):
        return out
    quads, corners, e1, e2, area, mesh_of = (a[visible] for a in (quads, corners, e1, e2, area, mesh_of))
    low_px, high_px = low_px[visible], high_px[visible]
    tile = np.concatenate([m.tile for m in meshes])[visible]
    key = _mean4(face_z[visible]) + bias[visible]

    # affine fit of the attributes over each face: value = base + gx * x + gy * y
    values = attributes[quads]
    d1 = (values[:, 1] - values[:, 0] + values[:, 2] - values[:, 3]) * 0.5
    d2 = (values[:, 3] - values[:, 0] + values[:, 2] - values[:, 1]) * 0.5
    inverse = np.where(np.abs(area) > 0.3, 1.0 / np.minimum(area, -1e-6), 0.0).astype(np.float32)[:, None]
    gx = (d1 * e2[:, 1:] - d2 * e1[:, 1:]) * inverse
    gy = (d2 * e1[:, :1] - d1 * e2[:, :1]) * inverse
    middle = _mean4(corners)
    base = _mean4(values) - gx * middle[:, :1] - gy * middle[:, 1:]
    low, high = _min4(values), _max4(values)

    fixed = np.clip(np.rint(corners * (1 << _SHIFT)), -(1 << 24), 1 << 24).astype(np.int32)
    face_buffer = np.full((height, width), -1, np.int32)
    z_plane = np.stack((base[:, 3], gx[:, 3], gy[:, 3], low[:, 3], high[:, 3]), 1).astype(np.float32)
    bounds = np.searchsorted(mesh_of, np.arange(len(meshes) + 1))
    for m in range(len(meshes)):
        mine = np.arange(bounds[m], bounds[m + 1])
        if not len(mine):
            continue
        x0, y0 = np.maximum(low_px[mine].min(0), 0).astype(int).tolist()
        x1, y1 = np.minimum(high_px[mine].max(0) + 1, (width, height)).astype(int).tolist()
        if x1 <= x0 or y1 <= y0:
            continue
        order = mine[np.argsort(-key[mine])]
        local = np.full((y1 - y0, x1 - x0), -1, np.int32)
        polygons = fixed[order] - np.array((x0, y0), np.int32) * (1 << _SHIFT)
        for polygon, number in zip(list(polygons), order.tolist(), strict=True):
            cv2.fillConvexPoly(local, polygon, number, cv2.LINE_8, _SHIFT)
        ys, xs, flat = _where(local >= 0)
        number = local.ravel()[flat]
        plane = z_plane[number]
        zs = plane[:, 0] + plane[:, 1] * (xs + x0).astype(np.float32) + plane[:, 2] * (ys + y0).astype(np.float32)
        zs = np.minimum(np.maximum(zs, plane[:, 3]), plane[:, 4])
        own = np.full(local.shape, FAR, np.float32)
        own.ravel()[flat] = zs
        out.own_area[m] = len(ys)
        out.own_depth[m] = ((int(x0), int(y0), int(x1), int(y1)), own)
        region = depth[y0:y1, x0:x1]
        wins = own < region
        np.copyto(region, own, where=wins)
        np.copyto(face_buffer[y0:y1, x0:x1], local, where=wins)
        np.copyto(owner[y0:y1, x0:x1], m, where=wins)

    ys, xs, pixel = _where(face_buffer >= 0)
    number = face_buffer.ravel()[pixel]
    xf, yf = xs.astype(np.float32)[:, None], ys.astype(np.float32)[:, None]
    fit = np.concatenate((base[:, :3], gx[:, :3], gy[:, :3], low[:, :3], high[:, :3]), 1).astype(np.float32)[number]
    value = fit[:, :3] + fit[:, 3:6] * xf + fit[:, 6:9] * yf
    value = np.minimum(np.maximum(value, fit[:, 9:12]), fit[:, 12:])
    atlas = np.concatenate([m.atlas for m in meshes])
    first_tile = np.concatenate(([0], np.cumsum([len(m.atlas) for m in meshes])[:-1]))
    n = atlas.shape[1]
    texel = (value[:, 1:] * (n - 0.01)).astype(np.int32)
    flat = ((first_tile[mesh_of] + tile)[number] * n + texel[:, 1]) * n + texel[:, 0]
    colour = atlas.reshape(-1, 3)[flat] * (value[:, :1] * light.colour.astype(np.float32))
    image.reshape(-1, 3)[pixel] = np.minimum(colour, 255).astype(np.uint8)
    return out

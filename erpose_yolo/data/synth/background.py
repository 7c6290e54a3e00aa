"""Images without people to put people into: rooms, streets, nature, textures and clutter."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .wardrobe import Colour, noise_bank, roughen

Image = NDArray[np.uint8]
_R = np.random.Generator


def _colour(rng: _R, saturation: int = 120, low: int = 40, high: int = 245) -> Colour:
    pixel = np.array([[[rng.integers(180), int(saturation * rng.random() ** 1.7), rng.integers(low, high + 1)]]], np.uint8)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return (blue, green, red)


def _vary(rng: _R, colour: Colour, by: float) -> Colour:
    scale = 1 - by + 2 * by * rng.random()
    blue, green, red = (
        min(max(c * scale + n, 0.0), 255.0) for c, n in zip(colour, rng.normal(0, 30 * by, 3).tolist(), strict=True)
    )
    return (blue, green, red)


def _gradient(image: Image, first: Colour, last: Colour, vertical: bool = True) -> None:
    ends = np.array((first, last), np.float32).reshape((2, 1, 3) if vertical else (1, 2, 3))
    height, width = image.shape[:2]
    thin = (1, height) if vertical else (width, 1)
    line = cv2.resize(ends, thin, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    image[:] = cv2.resize(line, (width, height), interpolation=cv2.INTER_NEAREST)


def _noise(rng: _R, image: Image, strength: float, drawn_out: bool = False, zoom: float | None = None) -> None:
    """Multiply a region (in place) by fractal noise of random scale."""
    height, width = image.shape[:2]
    if height < 2 or width < 2:
        return
    bank = noise_bank()[2 * rng.integers(4) + int(drawn_out)]
    size = int(384 / (zoom or rng.uniform(1.0, 4.0)))
    y, x = rng.integers(0, 385 - size, 2)
    crop = cv2.resize(bank[y : y + size, x : x + size], (width, height), interpolation=cv2.INTER_LINEAR)
    soft = cv2.addWeighted(crop, strength, crop, 0, 128 * (1 - strength))
    image[:] = cv2.multiply(image, soft, None, 1 / 128)


def _pattern(rng: _R, n: int = 192) -> Image:
    """A flat wall or floor covering: bricks, tiles, planks, stripes, checks or plain."""
    tile = np.empty((n, n, 3), np.uint8)
    base = _colour(rng, 130)
    tile[:] = base
    kind = rng.integers(7)
    keypoint = np.clip(np.array(base) * rng.uniform(0.6, 1.3), 0, 255).tolist()
    if kind == 0:
        high, wide = int(rng.integers(8, 22)), int(rng.integers(18, 48))
        for row, y in enumerate(range(0, n, high)):
            for x in range(-(row % 2) * wide // 2, n, wide):
                cv2.rectangle(tile, (x + 1, y + 1), (x + wide - 2, y + high - 2), _vary(rng, base, 0.15), -1)
            cv2.line(tile, (0, y), (n, y), keypoint, 1)
    elif kind == 1:
        step = int(rng.integers(14, 60))
        tile[::step] = keypoint
        tile[:, ::step] = keypoint
    elif kind == 2:
        step = int(rng.integers(8, 26))
        for x in range(0, n, step):
            tile[:, x : x + step - 1] = _vary(rng, base, 0.12)
            tile[:, x + step - 1 : x + step] = keypoint
    elif kind == 3:
        step = int(rng.integers(6, 40))
        tile[:, np.arange(n) % step < step // 2] = _colour(rng, 130)
    elif kind == 4:
        step = int(rng.integers(10, 48))
        odd = (np.arange(n)[:, None] // step + np.arange(n) // step) % 2 == 0
        tile[odd] = _colour(rng, 100)
    if rng.random() < 0.5:
        tile = np.ascontiguousarray(tile.transpose(1, 0, 2))
    roughen(rng, tile, rng.uniform(0.1, 0.6))
    return tile


def _floor(rng: _R, image: Image, horizon: float, covering: Image, start: int = 0) -> None:
    """Lay a covering on the ground plane below `horizon` and row `start`, in perspective (in place)."""
    height, width = image.shape[:2]
    top = int(np.clip(max(horizon, start), 0, height - 1))
    n = covering.shape[0]
    far = rng.uniform(0.02, 0.2) * height
    spread = rng.uniform(1.0, 3.0)
    near, vanish = height, rng.uniform(0.2, 0.8) * width
    y_far = max(horizon + far * 0.2, 0.0)
    scale = (near - horizon) / max(y_far - horizon, 2.0)
    wide = spread * width
    source = np.array(((0, 0), (n, 0), (n, n), (0, n)), np.float32)
    target = np.array(
        ((vanish - wide / scale, y_far), (vanish + wide / scale, y_far), (vanish + wide, near), (vanish - wide, near)),
        np.float32,
    )
    target[:, 1] -= top
    warp = cv2.getPerspectiveTransform(source, target)
    image[top:] = cv2.warpPerspective(covering, warp, (width, height - top), borderMode=cv2.BORDER_WRAP)


def _tree(rng: _R, image: Image, x: int, base: int, tall: int) -> None:
    trunk = _vary(rng, (40, 60, 85), 0.3)
    cv2.line(image, (x, base), (x + int(rng.normal(0, tall * 0.04)), base - tall // 2), trunk, max(1, tall // 14))
    leaf = _vary(rng, (45, 110, 70), 0.45)
    for _ in range(14):
        dx, dy = rng.normal(0, tall * 0.16), rng.normal(0, tall * 0.16)
        r = int(tall * rng.uniform(0.06, 0.16)) + 1
        cv2.circle(image, (int(x + dx), int(base - tall * 0.7 + dy)), r, _vary(rng, leaf, 0.3), -1)


def _building(rng: _R, image: Image, x: int, base: int, wide: int, tall: int) -> None:
    wall = _colour(rng, 90, 60, 220)
    cv2.rectangle(image, (x, base - tall), (x + wide, base), wall, -1)
    step_x, step_y = max(5, wide // int(rng.integers(3, 8))), max(6, int(wide / rng.uniform(2, 6)))
    glass = _colour(rng, 80, 20, 200)
    for wy in range(base - tall + step_y // 3, base - step_y // 2, step_y):
        for wx in range(x + step_x // 4, x + wide - step_x // 2, step_x):
            cv2.rectangle(image, (wx, wy), (wx + step_x // 2, wy + step_y // 2), _vary(rng, glass, 0.25), -1)


def _car(rng: _R, image: Image, x: int, base: int, wide: int) -> None:
    tall = int(wide * 0.3)
    paint = _colour(rng, 200, 30, 240)
    cabin = np.array(
        (
            (x + wide * 0.2, base - tall * 0.6),
            (x + wide * 0.32, base - tall * 1.2),
            (x + wide * 0.7, base - tall * 1.2),
            (x + wide * 0.85, base - tall * 0.6),
        )
    )
    cv2.fillPoly(image, [cabin.astype(np.int32)], _vary(rng, (90, 80, 70), 0.4))
    cv2.rectangle(image, (x, base - int(tall * 0.65)), (x + wide, base - tall // 6), paint, -1)
    for part in (0.2, 0.8):
        cv2.circle(image, (int(x + wide * part), base - tall // 6), max(1, tall // 4), (25, 25, 25), -1)


def _outdoor(rng: _R, image: Image, horizon: float) -> None:
    height, width = image.shape[:2]
    line = int(np.clip(horizon, 0, height))
    if line > 2:
        sky = image[:line]
        top = _vary(rng, ((225, 170, 110), (210, 200, 190), (120, 110, 140), (180, 190, 225))[rng.integers(4)], 0.2)
        _gradient(sky, top, _vary(rng, (235, 228, 220), 0.12))
        if rng.random() < 0.6:
            _noise(rng, sky, rng.uniform(0.2, 0.6), zoom=rng.uniform(1.5, 4))
        if rng.random() < 0.4:  # hills
            xs = np.linspace(0, width, 12)
            ys = line - np.abs(rng.normal(0.08, 0.06, 12)) * height
            ridge = np.concatenate((np.stack((xs, ys), 1), ((width, line), (0, line))))
            cv2.fillPoly(image, [ridge.astype(np.int32)], _vary(rng, (110, 125, 100), 0.35))
    if line < height - 2:
        ground = image[line:]
        near = _vary(rng, ((50, 120, 80), (95, 95, 98), (150, 185, 210), (80, 100, 125), (235, 232, 230))[rng.integers(5)], 0.25)
        _gradient(ground, _vary(rng, near, 0.12), near)
        if rng.random() < 0.3:
            _floor(rng, image, horizon, _pattern(rng))
        _noise(rng, image[line:], rng.uniform(0.2, 0.8), drawn_out=rng.random() < 0.4)
        if rng.random() < 0.35:  # a road or path to the horizon
            vx = rng.uniform(0, width)
            road = np.array(
                (
                    (vx - 4, line),
                    (vx + 4, line),
                    (vx + rng.uniform(20, 300), height),
                    (vx - rng.uniform(20, 300), height),
                )
            )
            cv2.fillPoly(image, [road.astype(np.int32)], _vary(rng, (100, 100, 102), 0.25))
    foot = int(np.clip(line + 0.04 * height, 0, height - 1))
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 6))):
            wide = int(rng.uniform(0.1, 0.45) * width)
            _building(rng, image, int(rng.uniform(-0.2, 1) * width), foot, wide, int(rng.uniform(0.15, 0.9) * height))
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 7))):
            _tree(
                rng,
                image,
                int(rng.uniform(0, width)),
                foot + int(rng.uniform(0, 0.1) * height),
                int(rng.uniform(0.15, 0.8) * height),
            )
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            _car(
                rng,
                image,
                int(rng.uniform(-0.1, 0.9) * width),
                foot + int(rng.uniform(0, 0.12) * height),
                int(rng.uniform(0.12, 0.4) * width),
            )
    if rng.random() < 0.3:  # a fence or railing
        y = foot + int(rng.uniform(0, 0.1) * height)
        step, tall = int(rng.integers(6, 30)), int(rng.uniform(0.05, 0.2) * height)
        paint = _colour(rng, 60)
        for x in range(0, width, step):
            cv2.line(image, (x, y), (x, y - tall), paint, max(1, step // 8))
        cv2.line(image, (0, y - tall), (width, y - tall), paint, 2)


def _indoor(rng: _R, image: Image, horizon: float) -> None:
    height, width = image.shape[:2]
    seam = int(np.clip(horizon + rng.uniform(0.05, 0.4) * height, 0, height))
    wall = _pattern(rng) if rng.random() < 0.4 else None
    if seam > 1:
        if wall is None:
            shade = _colour(rng, 70, 90, 240)
            _gradient(image[:seam], shade, _vary(rng, shade, 0.2), vertical=rng.random() < 0.5)
            _noise(rng, image[:seam], rng.uniform(0.0, 0.25))
        else:
            image[:seam] = cv2.resize(wall, (width, seam), interpolation=cv2.INTER_LINEAR)
    if seam < height:
        _floor(rng, image, min(horizon, height - 4), _pattern(rng), seam)
        cv2.line(image, (0, seam), (width, seam), _colour(rng, 40), int(rng.integers(1, 5)))
    for _ in range(int(rng.integers(0, 6))):  # windows, doors, images, shelves
        w, h = int(rng.uniform(0.06, 0.35) * width), int(rng.uniform(0.08, 0.6) * height)
        x, y = int(rng.uniform(-0.1, 0.95) * width), int(rng.uniform(-0.1, 0.9) * max(seam - h, 1))
        frame = _colour(rng, 90, 20, 245)
        cv2.rectangle(image, (x, y), (x + w, y + h), frame, -1)
        inner = image[max(y + 3, 0) : max(y + h - 3, 0), max(x + 3, 0) : max(x + w - 3, 0)]
        if inner.size and min(inner.shape[:2]) > 2:
            _gradient(inner, _colour(rng, 140), _colour(rng, 140), vertical=rng.random() < 0.5)
            if rng.random() < 0.5:
                _noise(rng, inner, 0.9)
        if rng.random() < 0.4:
            for k in range(1, int(rng.integers(2, 6))):
                if rng.random() < 0.5:
                    cv2.line(image, (x, y + k * h // 5), (x + w, y + k * h // 5), frame, 2)
                else:
                    cv2.line(image, (x + k * w // 5, y), (x + k * w // 5, y + h), frame, 2)
    for _ in range(int(rng.integers(0, 4))):  # furniture against the wall
        w, h = int(rng.uniform(0.1, 0.5) * width), int(rng.uniform(0.08, 0.35) * height)
        x, base = int(rng.uniform(-0.1, 0.9) * width), seam + int(rng.uniform(0, 0.12) * height)
        body = _colour(rng, 150, 25, 220)
        cv2.rectangle(image, (x, base - h), (x + w, base), body, -1)
        cv2.rectangle(image, (x, base - h), (x + w, base - h + max(2, h // 6)), _vary(rng, body, 0.3), -1)
        cv2.line(image, (x, base), (x + w, base), (30, 30, 30), 1)


def _texture(rng: _R, image: Image) -> None:
    height, width = image.shape[:2]
    kind = rng.integers(3)
    if kind == 0:
        _gradient(image, _colour(rng, 200), _colour(rng, 200), vertical=rng.random() < 0.5)
        _noise(rng, image, rng.uniform(0.0, 1.0), drawn_out=rng.random() < 0.5)
    elif kind == 1:  # colour noise: low resolution colours scaled up
        cells = int(rng.integers(2, 24))
        patch = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        how = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_NEAREST
        image[:] = cv2.resize(patch, (width, height), interpolation=how)
        _noise(rng, image, 0.4)
    else:
        pattern = _pattern(rng)
        turn = cv2.getRotationMatrix2D((96, 96), rng.uniform(0, 180), rng.uniform(0.7, 3))
        image[:] = cv2.warpAffine(pattern, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


def _capsule(rng: _R, image: Image) -> None:
    """A chain of thick shaded strokes: a branch, hose or limb that belongs to nobody."""
    height, width = image.shape[:2]
    size = max(height, width)
    point = rng.uniform(0, 1, 2) * (width, height)
    angle, thick = rng.uniform(0, 2 * np.pi), rng.uniform(0.01, 0.05) * size
    colour = np.array((120, 150, 205)) * rng.uniform(0.35, 1.1) if rng.random() < 0.5 else np.array(_colour(rng, 180))
    for _ in range(int(rng.integers(1, 4))):
        step = rng.uniform(0.05, 0.2) * size
        end = point + step * np.array((np.cos(angle), np.sin(angle)))
        for part in (1.0, 0.6):
            ink = np.clip(colour * (0.75 if part == 1.0 else 1.0), 0, 255).tolist()
            cv2.line(
                image,
                tuple(point.astype(int).tolist()),
                tuple(end.astype(int).tolist()),
                ink,
                max(1, int(thick * part)),
                cv2.LINE_AA,
            )
        point, angle, thick = end, angle + rng.normal(0, 0.9), thick * 0.8


def clutter(rng: _R, image: Image, count: int) -> None:
    """Draw `count` random things over the image (in place): shapes, limb-like strokes, balls, poles, letters."""
    height, width = image.shape[:2]
    size = max(height, width)
    for _ in range(count):
        kind = rng.integers(6)
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        r = int(size * rng.uniform(0.01, 0.12)) + 1
        ink = _colour(rng, 220, 10, 250)
        if kind == 0:
            cv2.ellipse(
                image,
                (x, y),
                (r, max(1, int(r * rng.uniform(0.3, 1)))),
                rng.uniform(0, 180),
                0,
                360,
                ink,
                -1,
                cv2.LINE_AA,
            )
        elif kind == 1:
            corners = (np.array((x, y)) + rng.normal(0, r, (int(rng.integers(3, 7)), 2))).astype(np.int32)
            cv2.fillConvexPoly(image, cv2.convexHull(corners), ink, cv2.LINE_AA)
        elif kind == 2:
            _capsule(rng, image)
        elif kind == 3:  # a ball or lamp with a highlight
            cv2.circle(image, (x, y), r, ink, -1, cv2.LINE_AA)
            cv2.circle(image, (x - r // 3, y - r // 3), max(1, r // 2), _vary(rng, ink, 0.3), -1, cv2.LINE_AA)
        elif kind == 4:
            lean = int(rng.normal(0, 0.03) * height)
            cv2.line(image, (x, 0 if rng.random() < 0.5 else y), (x + lean, height), ink, max(1, r // 4), cv2.LINE_AA)
        else:
            text = "".join(rng.choice(list("ABCDEFGHOPRSTUWX 0123456789"), int(rng.integers(1, 7))))
            cv2.putText(image, text, (x, y), 0, rng.uniform(0.3, 1.5), ink, int(rng.integers(1, 4)), cv2.LINE_AA)


def even(rng: _R, shape: tuple[int, int]) -> Image:
    """One colour, a little lighter or darker at one end. Arguments and result as :func:`paint`."""
    image = np.empty((*shape, 3), np.uint8)
    colour = _colour(rng, 90, 90, 235)
    _gradient(image, colour, _vary(rng, colour, 0.15))
    return image


def paint(rng: _R, shape: tuple[int, int], horizon: float) -> Image:
    """Paint a background.

    Args:
        rng: source of randomness.
        shape: height and width in px.
        horizon: row of the camera's horizon in px; may lie outside the image.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    image = np.empty((*shape, 3), np.uint8)
    kind = rng.random()
    if kind < 0.42:
        _outdoor(rng, image, horizon)
    elif kind < 0.80:
        _indoor(rng, image, horizon)
    else:
        _texture(rng, image)
    if rng.random() < 0.5:
        clutter(rng, image, int(rng.integers(1, 14)))
    if rng.random() < 0.45:  # depth of field
        k = int(rng.choice((3, 5, 7)))
        image = cv2.GaussianBlur(image, (k, k), 0)
    return image

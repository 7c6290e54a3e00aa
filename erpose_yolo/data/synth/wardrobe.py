"""What covers the bodies: outfits, and the texture tiles of skin, face, hair and cloth."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .body import BOTTOM, HAIR, HAT, HEAD, SHOE, SKIN, TOP, Outfit
from .skeleton import Proportions

TILE = 96  # px, edge of a texture tile
Image = NDArray[np.uint8]
Colour = tuple[float, float, float]
_R = np.random.Generator

# BGR, from very light to very dark
_SKINS = (
    (196, 216, 244), (178, 202, 238), (160, 188, 230), (146, 178, 222), (128, 164, 212), (112, 148, 198),
    (98, 132, 184),
    (82, 114, 166), (68, 96, 144), (54, 78, 120), (44, 62, 98), (36, 48, 74),
)  # fmt: skip
_HAIRS = (
    (18, 16, 16), (24, 24, 28), (26, 32, 44), (34, 46, 68), (42, 62, 96), (60, 94, 138), (96, 146, 188),
    (130, 186, 220),
    (40, 66, 132), (150, 150, 152), (205, 205, 208),
)  # fmt: skip
_HAIR_WEIGHTS = np.array((5, 5, 5, 4, 3, 2, 1.5, 1.5, 1, 1.2, 0.8))
_LETTERS = "ABCDEGHKMNRSTXYZ0123456789"


@lru_cache(maxsize=1)
def noise_bank() -> NDArray[np.uint8]:
    """(8, 384, 384, 3) fractal noise around 128, the same in every process; crops of it stand in for fresh noise."""
    rng = np.random.default_rng(7)
    bank = np.empty((8, 384, 384, 3), np.uint8)
    for i in range(8):
        total = np.zeros((384, 384), np.float32)
        for octave, weight in ((6, 1.0), (16, 0.7), (48, 0.45), (128, 0.3), (384, 0.22)):
            wide = octave if i % 2 == 0 else max(3, octave // 4)  # odd ones are drawn out, like folds or hair
            cells = rng.normal(size=(wide, octave)).astype(np.float32)
            total += weight * cv2.resize(cells, (384, 384), interpolation=cv2.INTER_CUBIC)
        total = 128 + 36 * total / total.std()
        bank[i] = np.clip(total, 0, 255)[..., None]
    return bank


@lru_cache(maxsize=1)
def grain_bank() -> NDArray[np.uint8]:
    """(3, 768, 768, 3) sensor noise around 128 with deviation 32: white, soft and grey."""
    rng = np.random.default_rng(11)
    white = rng.normal(0, 32, (768, 768, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(white, (0, 0), 0.8)
    grey = np.repeat(white[..., :1], 3, 2)
    return np.clip(np.stack((white, soft * (32 / soft.std()), grey)) + 128, 0, 255).astype(np.uint8)


def roughen(rng: _R, tile: Image, strength: float, drawn_out: bool = False) -> None:
    """Multiply (in place) a tile of at most 384 px by noise: 1 +- about 0.28 * strength."""
    height, width = tile.shape[:2]
    noise = noise_bank()[2 * rng.integers(4) + int(drawn_out)]
    y, x = rng.integers(0, 385 - height), rng.integers(0, 385 - width)
    crop = noise[y : y + height, x : x + width]
    soft = cv2.addWeighted(crop, strength, crop, 0, 128 * (1 - strength))
    cv2.multiply(tile, soft, tile, 1 / 128)


def _fill(tile: Image, colour: Colour | NDArray[Any]) -> None:
    """Paint a whole tile (in place) in one colour; cv2 does it faster than a broadcast."""
    cv2.rectangle(tile, (0, 0), (tile.shape[1], tile.shape[0]), np.clip(colour, 0, 255).tolist(), -1)


def cloth_colour(rng: _R) -> Colour:
    """A colour people wear (BGR): a third black, white, grey or navy, the rest of any hue."""
    kind = rng.random()
    if kind < 0.36:
        grey = float(rng.choice((22, 30, 45, 70, 110, 160, 205, 235, 245)))
        return (grey + rng.uniform(-6, 10), grey + rng.uniform(-6, 6), grey + rng.uniform(-6, 6))
    if kind < 0.5:
        return (rng.uniform(60, 130), rng.uniform(40, 80), rng.uniform(20, 55))  # navy, denim
    pixel = np.array([[[rng.integers(180), rng.integers(50, 240), rng.integers(60, 245)]]], np.uint8)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return (blue, green, red)


def cloth(rng: _R, tile: Image, base: Colour | None = None, busy: float = 0.55) -> None:
    """Fill a tile (in place) with cloth: plain or, with probability `busy`, patterned."""
    n = tile.shape[0]
    base = cloth_colour(rng) if base is None else base
    _fill(tile, base)
    if rng.random() < busy:
        ink = np.clip(cloth_colour(rng), 0, 255)
        kind = rng.integers(8)
        period = int(rng.integers(5, 28))
        wide = max(2, int(period * rng.uniform(0.25, 0.6)))
        on = np.arange(n) % period < wide
        if kind == 0:
            tile[on] = ink
        elif kind == 1:
            tile[:, on] = ink
        elif kind == 2:  # checks, darker where the bands cross
            tile[on] = 0.5 * np.array(base) + 0.5 * ink
            tile[:, on] = tile[:, on] // 2 + (ink // 2).astype(np.uint8)
        elif kind == 3:
            for y in range(0, n, period):
                for x in range(0, n, period):
                    cv2.circle(tile, (x + (y // period % 2) * period // 2, y), max(1, period // 4), ink.tolist(), -1)
        elif kind == 4:  # blotches: camouflage, flowers
            for x, y, r in rng.integers((0, 0, 3), (n, n, 12), (28, 3)).tolist():
                cv2.ellipse(tile, (x, y), (r, max(2, r // 2)), 37 * r, 0, 360, ink.tolist(), -1)
        elif kind == 5:  # a print on the chest: a disc, a bar, letters
            cx, cy = n // 2, int(n * 0.42)
            cv2.circle(tile, (cx, cy), int(rng.integers(6, 14)), np.clip(cloth_colour(rng), 0, 255).tolist(), -1)
            text = "".join(rng.choice(list(_LETTERS), rng.integers(1, 5)))
            scale = rng.uniform(0.4, 0.8)
            cv2.putText(tile, text, (cx - int(9 * scale * len(text)), cy + 8), 0, scale, ink.tolist(), 2)
        elif kind == 6:  # two blocks of colour
            cut = int(n * rng.uniform(0.3, 0.7))
            tile[:cut] = ink
        else:  # an open jacket: shirt and seam in the middle
            half = int(rng.integers(2, 9))
            tile[:, n // 2 - half : n // 2 + half] = ink
    roughen(rng, tile, rng.uniform(0.3, 0.75), drawn_out=rng.random() < 0.5)


def _face(rng: _R, tile: Image, skin: Colour, hair: Colour, outfit: Outfit, child: bool, beard: bool) -> None:
    """Paint the head's tile: u = 0.5 is the front, v runs from the crown (0) to below the chin (1)."""
    n = tile.shape[0]
    _fill(tile, skin)
    tone = np.array(skin)

    def at(u: float, v: float) -> tuple[int, int]:
        return int(round(u * n * 16)), int(round(v * n * 16))

    def blob(u: float, v: float, a: float, b: float, colour: NDArray | Colour) -> None:
        axes = int(a * n * 16), int(b * n * 16)
        cv2.ellipse(tile, at(u, v), axes, 0, 0, 360, np.clip(colour, 0, 255).tolist(), -1, cv2.LINE_AA, 4)

    redder = tone * (0.86, 0.9, 1.02)
    for side in (-1, 1):
        blob(0.5 + 0.085 * side, 0.60, 0.05, 0.06, redder)  # cheeks
        blob(0.5 + 0.068 * side, 0.475, 0.052, 0.05, tone * 0.84)  # sockets
    tile[:] = cv2.blur(tile, (7, 7))
    if beard:
        colour = 0.75 * np.array(hair) + 0.25 * tone * 0.6
        line = np.array(
            [
                (0.32, 0.52),
                (0.36, 0.66),
                (0.43, 0.68),
                (0.5, 0.665),
                (0.57, 0.68),
                (0.64, 0.66),
                (0.68, 0.52),
                (0.68, 1),
                (0.32, 1),
            ]
        )
        cv2.fillPoly(tile, [np.rint(line * n).astype(np.int32)], np.clip(colour, 0, 255).tolist(), cv2.LINE_AA)
    open_eye = rng.uniform(0.013, 0.03)
    brow = np.clip(0.7 * np.array(hair) + 0.1 * tone, 0, 255)
    look = rng.uniform(-0.008, 0.008)
    iris = (40, 36, 32) if rng.random() < 0.75 else (130, 110, 70)
    for side in (-1, 1):
        u = 0.5 + 0.068 * side
        blob(u, 0.483, 0.036, open_eye + 0.012, tone * 0.45)  # lashes
        blob(u, 0.488, 0.031, open_eye, (225, 228, 230))
        blob(u + look, 0.486, 0.015, max(open_eye, 0.02), iris)
        points = np.array([(u - 0.04, 0.42), (u, 0.40), (u + 0.04, 0.42)]) * n
        cv2.polylines(tile, [np.rint(points).astype(np.int32)], False, brow.tolist(), 2, cv2.LINE_AA)
        blob(0.5 + 0.016 * side, 0.642, 0.009, 0.010, tone * 0.5)  # nostrils
    smile = rng.random()
    blob(0.5, 0.745, 0.056, 0.030 if smile > 0.5 else 0.022, tone * (0.62, 0.62, 0.88))
    if smile > 0.5:
        blob(0.5, 0.742, 0.042, 0.014, (220, 226, 230) if smile > 0.65 else (40, 40, 70))
    else:
        blob(0.5, 0.743, 0.05, 0.006, tone * 0.45)
    blob(0.5, 0.80, 0.05, 0.012, tone * 0.84)
    kind = rng.random()
    if kind < 0.16 and not child:
        dark = rng.random() < 0.4
        for side in (-1, 1):
            lens = int(0.052 * n * 16), int(0.05 * n * 16)
            cv2.ellipse(tile, at(0.5 + 0.07 * side, 0.488), lens, 0, 0, 360, (25, 22, 22),
                        -1 if dark else 1, cv2.LINE_AA, 4)  # fmt: skip
        cv2.line(tile, (int(0.27 * n), int(0.47 * n)), (int(0.73 * n), int(0.47 * n)), (30, 28, 28), 1)
    if outfit.hair != "none":
        front = rng.uniform(0.16, 0.33) if outfit.hair != "afro" else 0.22
        temple, nape = rng.uniform(0.36, 0.46), rng.uniform(0.7, 0.8)
        part = rng.uniform(-0.06, 0.06)
        line = np.array([(0, nape), (0.16, nape), (0.21, 0.52), (0.27, temple + 0.06), (0.33, temple),
        (0.36, front + 0.06),
                         (0.5 + part, front), (0.64, front + 0.06), (0.67, temple), (0.73, temple + 0.06),
                         (0.79, 0.52), (0.84, nape),
                         (1, nape), (1, 0), (0, 0)])  # fmt: skip
        over = np.empty_like(tile)
        _fill(over, hair)
        roughen(rng, over, 0.9, drawn_out=True)
        mask = np.zeros(tile.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint(line * n).astype(np.int32)], 255)
        cv2.copyTo(over, mask, tile)


def sample_outfit(rng: _R, body: Proportions) -> Outfit:
    """Draw clothes, shoes, hair and hat for a body."""
    skirt, waist, leg = 0.0, rng.uniform(0.0, 0.05), 2.0
    flare, loose_leg = 0.0, rng.uniform(0.003, 0.014)
    legwear = rng.random()
    feminine = body.bust > 0
    if legwear < 0.26:
        leg = rng.uniform(0.35, 1.05)  # shorts
        loose_leg, flare = rng.uniform(0.006, 0.022), rng.uniform(0.0, 0.35)
    elif legwear < (0.52 if feminine else 0.28):
        skirt, leg = rng.uniform(0.5, 1.9), (0.0 if rng.random() < 0.75 else 2.0)
        flare, loose_leg = rng.uniform(0.1, 1.6), 0.002
        if rng.random() < 0.5:
            waist = -0.1  # a dress: the top's tile down to the hem
    elif legwear > 0.85:
        flare, loose_leg = rng.uniform(0.1, 0.45), 0.01
    sleeve = float(
        rng.choice((rng.uniform(0.0, 0.1), rng.uniform(0.3, 0.75), rng.uniform(1.0, 1.6), 1.97), p=(0.14, 0.38, 0.08, 0.40))
    )
    jacket = sleeve > 1.5 and rng.random() < 0.5
    weights = (0.02, 0.2, 0.4, 0.2, 0.1, 0.08) if feminine else (0.13, 0.74, 0.05, 0.02, 0.01, 0.05)
    hair = str(rng.choice(("none", "short", "long", "tail", "bun", "afro"), p=weights))
    hood = rng.random() < (0.06 if feminine else 0.03)
    hat = "none" if hood else str(rng.choice(("none", "cap", "brim", "beanie"), p=(0.78, 0.12, 0.05, 0.05)))
    if hat != "none" and hair in ("bun", "afro"):
        hair = "short"
    return Outfit(
        sleeve=sleeve,
        leg=leg,
        skirt=skirt,
        waist=waist,
        bare_chest=not feminine and skirt == 0 and rng.random() < 0.06,
        loose=rng.uniform(0.016, 0.034) if jacket else rng.uniform(0.003, 0.014),
        loose_leg=loose_leg,
        flare=flare,
        barefoot=rng.random() < (0.3 if leg < 1.0 else 0.06),
        gloves=sleeve > 1.5 and rng.random() < 0.08,
        hair=hair,
        hat=hat,
        hood=hood,
    )


def dress(rng: _R, body: Proportions, outfit: Outfit) -> Image:
    """Paint the tiles of one person.

    Returns:
        (7, TILE, TILE, 3) uint8 BGR, by the tile numbers of `body`.
    """
    atlas = np.empty((7, TILE, TILE, 3), np.uint8)
    tone = np.array(_SKINS[rng.integers(len(_SKINS))], float) * rng.uniform(0.93, 1.05) + rng.normal(0, 4, 3)
    index = int(rng.choice(len(_HAIRS), p=_HAIR_WEIGHTS / _HAIR_WEIGHTS.sum()))
    if tone[2] < 150 and index > 3:
        index = int(rng.integers(3))  # dark skin mostly goes with dark hair
    hair = np.array(_HAIRS[index], float) + rng.normal(0, 5, 3)
    if rng.random() < 0.02:
        hair = rng.uniform(30, 230, 3)  # dyed
    skin: Colour = (float(tone[0]), float(tone[1]), float(tone[2]))
    hair_colour: Colour = (float(hair[0]), float(hair[1]), float(hair[2]))
    _fill(atlas[SKIN], tone)
    roughen(rng, atlas[SKIN], 0.18)
    child = body.height < 1.5 and body.head < 0.111
    beard = body.bust == 0 and not child and rng.random() < 0.3
    _face(rng, atlas[HEAD], skin, hair_colour, outfit, child, beard)
    cloth(rng, atlas[TOP])
    suit = rng.random() < 0.08
    if suit:
        atlas[BOTTOM] = atlas[TOP]
    else:
        cloth(rng, atlas[BOTTOM], busy=0.5 if outfit.skirt > 0 else 0.2)
    _fill(atlas[SHOE], cloth_colour(rng))
    cv2.rectangle(atlas[SHOE], (0, 0), (TILE, int(TILE * 0.1)), np.clip(cloth_colour(rng), 0, 255).tolist(), -1)
    _fill(atlas[HAIR], hair)
    roughen(rng, atlas[HAIR], 0.9, drawn_out=True)
    if outfit.hat != "none" or outfit.hood:
        cloth(rng, atlas[HAT], busy=0.3)
    return atlas

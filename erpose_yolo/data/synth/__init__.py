"""Synthetic people: labelled images of articulated 3-D people, made on first use, so that nothing is downloaded.

In order of the work: `skeleton` (bones, limits, proportions), `pose` (what people do), `body` (flesh and clothes as a
mesh), `wardrobe` (outfits and textures), `camera`, `raster` (pixels, depth, ownership), `background`, `scene`
(placement and labels), `dataset` (files).
"""

from __future__ import annotations

from .config import SynthConfig
from .dataset import contact_sheet, generate
from .scene import render_scene

__all__ = ["SynthConfig", "contact_sheet", "generate", "render_scene"]

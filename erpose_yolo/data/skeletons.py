"""What is known of skeletons: keypoint names, limbs, mirror pairs and OKS sigmas; and left and right read from names.

Shapes: K keypoints, counted from 0. A limb is a pair of keypoint indices. A ``flip_idx`` is a permutation of the keypoints:
entry k names the keypoint of the original image that becomes keypoint k of the mirrored one.

Standard library only, so that the command line tools start at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erpose_yolo.method.sigmas import COCO_SIGMAS, CROWDPOSE_SIGMAS

Limbs = tuple[tuple[int, int], ...]

LEFT, MIDDLE, RIGHT = "left", "", "right"


@dataclass(frozen=True)
class Skeleton:
    """A published skeleton.

    Args:
        title: name of the data set that defined it.
        names: K keypoint names.
        limbs: pairs of keypoint indices.
        sigmas: K OKS sigmas.
    """

    title: str
    names: tuple[str, ...]
    limbs: Limbs
    sigmas: tuple[float, ...]

    @property
    def flip(self) -> list[int]:
        """The ``flip_idx`` of this skeleton."""
        return flip_from_names(self.names)[0]


# Keypoints and limbs: COCO keypoint annotations 2017.
COCO_17 = Skeleton(
    "COCO-17",
    (
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    (
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    COCO_SIGMAS,
)  # fmt: skip

# Keypoints: CrowdPose annotations. Limbs: ours, since
# the `skeleton` in CrowdPose's own files is COCO's and points past the 14 keypoints.
CROWDPOSE_14 = Skeleton(
    "CrowdPose-14",
    (
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
    ),
    (
        (12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
        (9, 11),
    ),
    CROWDPOSE_SIGMAS,
)  # fmt: skip

KNOWN = (COCO_17, CROWDPOSE_14)

_ALIASES = {"top head": "head", "head top": "head"}  # CrowdPose's crown goes by either name

_NEAR = {  # keypoints of other skeletons, and the one of COCO's that is next to them
    "head": "nose", "face": "nose", "chin": "nose", "mouth": "nose", "forehead": "nose",
    "hand": "wrist", "palm": "wrist", "fingers": "wrist", "foot": "ankle", "heel": "ankle", "toe": "ankle", "toes": "ankle",
}  # fmt: skip

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")  # leftEye, LEFT_EYE, left-eye.1 -> words
_SIDES = {"left": LEFT, "l": LEFT, "lft": LEFT, "right": RIGHT, "r": RIGHT, "rt": RIGHT, "rgt": RIGHT}
_GLUED = re.compile(r"(left|right)(.+)|(.+)(left|right)")  # lefteye, eyeleft


def side_of(name: str) -> tuple[str, str]:
    """Read the side from a keypoint's name.

    ``left_eye``, ``L_Eye``, ``eye.r``, ``leftEye``, ``LEFT EYE`` and ``righteye`` are understood.

    Returns:
        The side (LEFT, RIGHT or MIDDLE) and the rest of the name in lower case, words parted by one space.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    at = [i for i, word in enumerate(words) if word in _SIDES]
    if len(at) == 1:  # none is a middle keypoint; two contradict each other
        return _SIDES[words[at[0]]], " ".join(words[: at[0]] + words[at[0] + 1 :])
    if not at:
        for i, word in enumerate(words):
            match = _GLUED.fullmatch(word)
            if match:
                side, rest = match[1] or match[4], match[2] or match[3]
                return _SIDES[side], " ".join([*words[:i], rest, *words[i + 1 :]])
    return MIDDLE, " ".join(words)


def sides_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Side and rest of every name, see :func:`side_of`.

    A single letter glued to a name (``lshoulder``, ``rshoulder``) counts only where both of a pair are there, because
    ``lip`` and ``rib`` begin with these letters too.
    """
    found = [side_of(name) for name in names]
    middle = {rest for side, rest in found if side == MIDDLE}
    for i, (side, rest) in enumerate(found):
        if side == MIDDLE and len(rest) > 1 and rest[0] in "lr" and {"l" + rest[1:], "r" + rest[1:]} <= middle:
            found[i] = (LEFT if rest[0] == "l" else RIGHT, rest[1:].strip())
    return found


def flip_from_names(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Read the mirror pairs from the keypoints' names.

    Returns:
        The ``flip_idx`` (K,), and the names that have a side but no partner (they are left where they are).
    """
    sides = sides_of(names)
    places: dict[tuple[str, str], int] = {}
    for i, key in enumerate(sides):
        places.setdefault(key, i)
    flip, alone = [], []
    for i, (side, rest) in enumerate(sides):
        partner = i if side == MIDDLE else places.get((RIGHT if side == LEFT else LEFT, rest))
        if partner is None:
            alone.append(names[i])
        flip.append(i if partner is None else partner)
    return flip, alone


def known_skeleton(names: Sequence[str] | None, keypoints: int | None = None) -> Skeleton | None:
    """Return the published skeleton with these keypoints in this order, whatever the spelling.

    Args:
        names: K keypoint names; None where the data do not tell.
        keypoints: K, for data without names: a guess from the number of keypoints alone.
    """
    if names is None:
        return next((s for s in KNOWN if len(s.names) == keypoints), None)
    keys = _keys(names)
    return next((s for s in KNOWN if _keys(s.names) == keys), None)


def keypoint_names(kpt_names: Any, keypoints: int) -> list[str] | None:
    """Keypoint names as somebody gave them, for the first class; None where there are not K of them, or numbers alone.

    Args:
        kpt_names: of a data YAML or model, ``{class: [names]}`` (Ultralytics' convention), or a list of names. Ultralytics
            gives models of data without names numbers.
        keypoints: K.
    """
    if isinstance(kpt_names, dict):
        kpt_names = next(iter(kpt_names.values()), None)
    if not isinstance(kpt_names, (list, tuple)) or len(kpt_names) != keypoints:
        return None
    names = [str(name) for name in kpt_names]
    return None if all(name.isdecimal() for name in names) else names


def read_kpt_shape(value: Any, source: object) -> list[int]:
    """(K, D) as a list, which stock code compares with [17, 3]; a tuple, as Python code hands it over, is read, too.

    Args:
        value: of ``kpt_shape``.
        source: file to name in errors.

    Raises:
        ValueError: it is not two whole numbers, of which the second is 2 or 3.
    """
    if isinstance(value, (list, tuple)) and len(value) == 2:
        k, d = value
        if all(isinstance(n, int) and not isinstance(n, bool) for n in value) and k >= 1 and d in (2, 3):
            return [k, d]
    said = "missing" if value is None else repr(value)
    raise ValueError(f"{source}: kpt_shape is {said}. Write 'kpt_shape: [17, 3]' (number of keypoints, 2 or 3 values each).")


def names_of(kpt_names: Any, keypoints: int) -> list[str]:
    """Names to call keypoints by: those of :func:`keypoint_names`, COCO's for 17 keypoints without, else numbers."""
    without = list(COCO_17.names) if keypoints == len(COCO_17.names) else [str(i) for i in range(keypoints)]
    return keypoint_names(kpt_names, keypoints) or without


def match_names(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """For each wanted keypoint the index of that of the same name, else of its neighbour on the body; None without either.

    Spelling does not matter. Numbers are no names: keypoint 3 of one data set has nothing to do with keypoint 3 of another.
    """
    places = {key: i for i, key in reversed(list(enumerate(_keys(known))))}
    found = []
    for name, (side, rest) in zip(wanted, _keys(wanted)):
        near = places.get((side, _NEAR.get(rest, rest)))
        found.append(None if name.isdecimal() else places.get((side, rest), near))
    return found


def limbs_ok(limbs: Any, keypoints: int) -> bool:
    """Tell whether a data YAML's ``skeleton`` is a list of pairs of keypoint indices below K, counted from 0."""
    return isinstance(limbs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(j, int) and 0 <= j < keypoints for j in pair)
        for pair in limbs
    )


def limbs_of(data: Mapping[str, Any], keypoints: int) -> Limbs:
    """Limbs to draw for a data set: its ``skeleton`` where it is usable, else those of a published skeleton.

    Args:
        data: data YAML; ``skeleton`` and ``kpt_names`` are read.
        keypoints: K.

    Returns:
        Pairs of keypoint indices; none where nothing is known of the keypoints.
    """
    limbs = data.get("skeleton")
    if limbs is not None and limbs_ok(limbs, keypoints):
        return tuple((a, b) for a, b in limbs)
    known = known_skeleton(keypoint_names(data.get("kpt_names"), keypoints), keypoints)
    return known.limbs if known else ()


def _keys(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(side, _ALIASES.get(rest, rest)) for side, rest in sides_of(names)]

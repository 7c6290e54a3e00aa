"""The field's terms: words that only this project used are refused in code, messages and pages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".mjs", ".html"}
EXEMPT = {"CHANGELOG.md", "tests/test_language.py"}

# what is refused: what the field says
REFUSED = {
    r"mend(s|ed|ing)?": "fix",
    r"look[- ]?ups?": "bilinear sampling",
    r"look_gain": "refinement loss weight",
    r"steer(s|ed|ing)?": "gradients that reach the backbone",
    r"by[- ]heart": "overfitting",
    r"strata": "AP breakdown",
    r"pictures?": "image",
    r"joints?(?! limits?\b)": "keypoint",
    r"trunks?": "backbone and neck",
    r"(drawn|cut-out) (people|persons?)": "synthetic people, copy-paste crowds",
    r"passes (of|over) (the )?(images|photos)": "images seen",
    r"normaliser": "average factor",
    r"one_by_one": "per_keypoint_sampling",
}
PATTERN = re.compile("|".join(rf"\b(?:{word})\b" for word in REFUSED), re.IGNORECASE)
# trees have trunks and people have joints
SYNTHETIC = re.compile(r"\b(joints?|trunks?)\b", re.IGNORECASE)


def pages() -> list[str]:
    """Files of the repository; in a source distribution, which has no git, its modules."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    found = done.stdout.split() if done.returncode == 0 else [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")]
    return [name for name in found if Path(name).suffix in SUFFIXES and name not in EXEMPT and (ROOT / name).exists()]


def refused(text: str, synthetic: bool = False) -> list[str]:
    """The refused words of a text, underscores taken for spaces."""
    words = [match[0] for match in PATTERN.finditer(text.replace("_", " _ "))]
    return [word for word in words if not (synthetic and SYNTHETIC.fullmatch(word))]


@pytest.mark.parametrize("name", pages())
def test_the_fields_terms(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = refused(text, synthetic="synth" in name)
    assert not found, f"{name}: {sorted(set(found))}; say {', '.join(sorted(set(REFUSED.values())))}"


def test_the_check_can_fail() -> None:
    assert refused("Mend the row of num_joints by a look-up") == ["Mend", "joints", "look-up"]
    assert refused("a joint limit", synthetic=True) == [] and refused("joint limits") == []

"""Finds the models, weights and data YAMLs that ship with the package, by bare name and from any folder.

Ultralytics looks in its own ``cfg`` folder and takes the scale from ``yolo<digit><letter>`` stems only; these functions
do for ``erpose-n.yaml`` what it does for ``yolo11n.yaml``. A file of the user's always wins.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SCALES = ("n", "s", "m", "l", "x")
SUFFIXES = (".yaml", ".yml")

_SCALED = re.compile(r"(?P<base>.+?)-(?P<scale>[A-Za-z])(?P<pyramid>-p\d+)?")  # erpose11-s-p2: erpose11, s, -p2
_FAMILY = re.compile(r"(?P<base>.+?)(?P<pyramid>-p\d+)?")  # erpose-p2: erpose, -p2


def cfg_root() -> Path:
    """Return the folder that holds ``models/``, ``weights/`` and ``datasets/``.

    A wheel carries it inside the package; in a checkout, and so in an editable install, it lies beside the package.

    Raises:
        FileNotFoundError: Neither is there, so the installation is damaged.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "cfg", package.parent / "cfg")
    for root in candidates:
        if any((root / "models").glob("erpose*.yaml")):  # not any folder named cfg that may lie in site-packages
            return root
    raise FileNotFoundError(
        f"The model files of erpose-yolo are missing, neither {candidates[0]} nor {candidates[1]} holds "
        "models/erpose*.yaml. Fix the installation: pip install --force-reinstall --no-deps erpose-yolo"
    )


def list_models() -> list[str]:
    """Return every model name that ships with the package: each family in each scale, such as ``erpose-n-p2.yaml``."""
    return [_scaled_name(family, scale) for family in _families() for scale in SCALES]


def list_datasets() -> list[str]:
    """Return the file names of the data sets that ship with the package, such as ``synth-people.yaml``."""
    return sorted(path.name for path in (cfg_root() / "datasets").glob("*.yaml"))


def list_weights() -> list[str]:
    """Return the names of the trained weights that ship with the package, such as ``erpose-n.pt``."""
    return sorted(path.name for path in (cfg_root() / "weights").glob("*.pt"))


def is_weights_name(name: object) -> bool:
    """Whether this is a bare name of weights of the ``erpose`` kind, such as ``erpose-n.pt``, and no local file."""
    if not isinstance(name, (str, Path)):
        return False
    path = Path(name)
    ours = path.name == str(name) and path.suffix == ".pt" and path.stem.lower().startswith("erpose")
    return ours and not path.is_file()


def resolve_weights(weights: Any, folder: str | Path = "") -> Any:
    """Turn the bare name of weights that ship with the package into their path; leave everything else as it is.

    Args:
        weights: what the user gave as ``model=`` or ``pretrained=``.
        folder: of the user's weights; a file there wins.

    Raises:
        FileNotFoundError: a bare name of the ``erpose`` kind that neither exists nor ships.
    """
    if not is_weights_name(weights) or (folder and (Path(folder) / weights).is_file()):
        return weights
    found = cfg_root() / "weights" / Path(weights).name
    if found.is_file():
        return str(found)
    shipped = ", ".join(list_weights()) or "none"
    raise FileNotFoundError(
        f"'{weights}' does not exist. Trained weights that ship with erpose-yolo: {shipped}. For a model with random weights "
        f"give '{Path(weights).stem}.yaml'."
    )


def find_dataset(name: str | Path) -> Path | None:
    """Find a data set that ships with the package by its bare name, with or without ``.yaml``.

    Args:
        name: What the user gave as ``data=``.

    Returns:
        The YAML file, or None to leave the name to ultralytics: it has a folder in it, is a local file, or is not ours.
    """
    path = Path(name)
    if path.name != str(name) or path.suffix not in ("", *SUFFIXES) or path.is_file():
        return None
    found = cfg_root() / "datasets" / f"{path.stem if path.suffix else path.name}.yaml"
    return found if found.is_file() else None


def resolve_data(data: object) -> object:
    """Turn a ``data=`` argument into what ultralytics finds: the shipped YAML's path for a bare name of ours, else as given."""
    found = find_dataset(data) if isinstance(data, (str, Path)) else None
    return data if found is None else str(found)


def resolve_stored_data(data: object) -> object:
    """Resolve the ``data`` that a checkpoint stored, which may be the shipped YAML's path in another environment.

    Such a path is absolute, ends in ``cfg/datasets/NAME.yaml``, and leads nowhere here. Nothing that a user types comes
    this way: a mistyped folder must not become the shipped set.
    """
    if isinstance(data, (str, Path)):
        *_, home, folder, name = ["", "", *re.split(r"[\\/]", str(data))]
        absolute = str(data).startswith("/") or re.match(r"[A-Za-z]:[\\/]", str(data)) is not None
        if absolute and (home, folder) == ("cfg", "datasets") and not Path(data).exists():
            found = find_dataset(name)
            return data if found is None else str(found)
    return resolve_data(data)


def find_model(name: str | Path) -> tuple[Path, str] | None:
    """Find the YAML file and the scale that a model name stands for.

    Tried in this order: the file itself; its family file in the same folder (``a/erpose-s.yaml`` is scale s of
    ``a/erpose.yaml``); for a bare name, the family file that ships with the package.

    Args:
        name: A model name such as ``erpose-n.yaml``, ``erpose11-s-p2.yaml`` or ``my/erpose-hands.yaml``.

    Returns:
        The YAML file and the scale letter; the letter is empty for a file of the user's whose name has none. None if
        the name is not a YAML, or neither exists nor is of the ``erpose`` kind.

    Raises:
        ValueError: The family exists, but not in this scale.
        FileNotFoundError: Of the ``erpose`` kind, but there is no such file or family.
    """
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        return None
    match = _SCALED.fullmatch(path.stem)
    family, scale = (match["base"] + (match["pyramid"] or ""), match["scale"]) if match else (path.stem, "")
    if path.is_file():
        return path, scale if scale in SCALES else ""
    if not path.stem.lower().startswith("erpose"):
        return None

    bare = path.name == str(name)
    folders = [path.parent, cfg_root() / "models"] if bare else [path.parent]
    for folder in folders:
        file = next((file for suffix in SUFFIXES if (file := folder / (family + suffix)).is_file()), None)
        if file and scale not in ("", *SCALES):
            raise ValueError(
                f"'{path.name}': {file.stem} has no scale '{scale}'. The scales are {', '.join(SCALES)}, "
                f"for example '{_scaled_name(file.stem, 'n')}'."
            )
        if file:
            return file, scale or SCALES[0]
    shipped = ", ".join(_scaled_name(family, "{" + ",".join(SCALES) + "}") for family in _families())
    where = "" if bare else f" (nor {family}.yaml in that folder)"
    raise FileNotFoundError(f"'{name}' does not exist{where}. Models that ship with erpose-yolo, by bare name: {shipped}.")


def _families() -> list[str]:
    """Stems of the shipped model files, plain pyramids first."""
    stems = (path.stem for path in (cfg_root() / "models").glob("erpose*.yaml"))
    return sorted(stems, key=lambda stem: ("-" in stem, stem))


def _scaled_name(family: str, scale: str) -> str:
    """Put a scale into a family's name, before its pyramid: erpose-p2 and n make ``erpose-n-p2.yaml``."""
    match = _FAMILY.fullmatch(family)
    base, pyramid = (match["base"], match["pyramid"] or "") if match else (family, "")
    return f"{base}-{scale}{pyramid}.yaml"

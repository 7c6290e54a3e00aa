"""The photos of a comparison: whom it trains on, chooses a learning rate with, is judged on; and its copy-paste crowds."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, img2label_paths

from benchmarks.accuracy import copy_paste
from erpose_yolo import catalog

SHARE = 0.1  # of the photos, to judge learning rates on, and of the budget, to try one
CROWDS = {"images": 3000, "val_images": 300, "epochs": 3}


def lay_out(args: argparse.Namespace) -> None:
    """Make the folder of photos of a track with a choice of learning rates, and the crowds; sets what ``args`` needs of them.

    Photos are links. train: all but those of whom a person is in the crowds that judge. fit and held: the same, without and
    with every tenth one. val: that of the data YAML.
    """
    crowded: set[str] = set()
    args.crowds, args.photos = None, args.out / args.name / "photos"
    if args.cutouts:
        settings = copy_paste.Settings(str(args.cutouts.resolve()), CROWDS["images"], CROWDS["val_images"], args.imgsz)
        crowded = set(copy_paste.generate(args.out / args.name / "crowd-set", settings)["val"]["sources"])
        args.crowds = args.out / args.name / "crowd-set" / "data.yaml"
    info = check_det_dataset(args.data)
    found = {split: photos_of(info[split]) for split in ("train", "val")}
    used = [file for file in found["train"] if file.stem not in crowded]
    tenth = round(1 / SHARE)
    splits = {"train": used, "held": used[::tenth], "val": found["val"]}
    splits["fit"] = [file for n, file in enumerate(used) if n % tenth]
    for split, files in splits.items():
        for kind, sources in (("images", files), ("labels", [Path(f) for f in img2label_paths([str(f) for f in files])])):
            folder = args.photos / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            for source in sources:
                if source.exists() and not (folder / source.name).is_symlink():
                    (folder / source.name).symlink_to(source.resolve())
    keys = ("kpt_shape", "flip_idx", "kpt_oks_sigmas", "kpt_names", "skeleton", "names")
    shared = {"path": str(args.photos.resolve()), **{key: info[key] for key in keys if key in info}}
    for name, pair in (("data", ("train", "val")), ("choose", ("fit", "held"))):
        text = yaml.safe_dump({**shared, "train": f"images/{pair[0]}", "val": f"images/{pair[1]}"})
        (args.photos / f"{name}.yaml").write_text(text)
    args.data, args.images = str(args.photos / "data.yaml"), len(used)


def count(data: str) -> int:
    """Photos that a data set trains on."""
    return len(photos_of(check_det_dataset(str(catalog.resolve_data(data)))["train"]))


def photos_of(folders: str | list[str]) -> list[Path]:
    """Photos of a split, by name.

    Raises:
        ValueError: two of one name.
    """
    folders = [folders] if isinstance(folders, str) else folders
    files = [file for folder in folders for file in Path(folder).iterdir() if file.suffix[1:].lower() in IMG_FORMATS]
    if len({file.stem for file in files}) < len(files):
        raise ValueError(f"{', '.join(folders)} have photos of the same name. Fix: rename them.")
    return sorted(files, key=lambda file: file.name)

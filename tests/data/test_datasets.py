"""The data sets that ship: found by bare name, read by Ultralytics, right by our own linter, without foreign hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from erpose_yolo import catalog
from erpose_yolo.data.check import Report, check_yaml
from erpose_yolo.data.data_yaml import load_data_yaml
from erpose_yolo.data.skeletons import known_skeleton
from erpose_yolo.method.oks import sigmas_for

NAMES = ("box-free-example.yaml", "coco-people.yaml", "crowdpose.yaml", "synth-crowd.yaml", "synth-people.yaml")
MADE_BY_HAND = ("coco-people.yaml", "crowdpose.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ultralytics' datasets folder, empty."""
    import ultralytics.data.utils as utils

    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "datasets")
    return tmp_path / "datasets"


def test_these_ship() -> None:
    assert set(NAMES) <= set(catalog.list_datasets())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_and_consistent(name: str) -> None:
    file = catalog.find_dataset(name)
    assert file is not None and catalog.find_dataset(name.removesuffix(".yaml")) == file
    source = load_data_yaml(name)
    report = Report()
    shape = check_yaml(source, report)
    assert report.findings == [] and shape is not None
    skeleton = known_skeleton(source.data["kpt_names"][0])
    assert skeleton is not None and shape == (len(skeleton.names), 3)
    assert source.data["flip_idx"] == skeleton.flip
    assert source.data["kpt_oks_sigmas"] == list(skeleton.sigmas)
    assert [tuple(limb) for limb in source.data.get("skeleton", skeleton.limbs)] == list(skeleton.limbs)
    assert sigmas_for(shape[0], source.data["kpt_oks_sigmas"]).shape == (shape[0],)


@pytest.mark.parametrize("name", NAMES)
def test_none_names_a_host_or_a_folder_of_a_machine(name: str) -> None:
    text = Path(str(catalog.find_dataset(name))).read_text()
    assert "://" not in text and "/home" not in text and "/tmp" not in text and "www." not in text
    assert not Path(yaml.safe_load(text)["path"]).is_absolute()


@pytest.mark.parametrize("name", NAMES)
def test_ultralytics_reads_each(name: str, folder: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    root = folder / name.removesuffix(".yaml")
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
    data = check_det_dataset(str(catalog.find_dataset(name)))
    assert data["path"] == root and Path(data["val"]) == root / "images" / "val"
    assert data["names"] == {0: "person"} and data["channels"] == 3
    if name in MADE_BY_HAND:
        assert data["annotations"] == {"train": "annotations/train.json", "val": "annotations/val.json"}


@pytest.mark.parametrize("name", MADE_BY_HAND)
def test_sets_that_users_make_say_how(name: str, folder: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    with pytest.raises(FileNotFoundError, match=r"erpose convert (coco|crowdpose) .*--out .*--split"):
        check_det_dataset(str(catalog.find_dataset(name)))


@pytest.mark.parametrize("name", ["box-free-example.yaml", "synth-crowd.yaml"])
def test_sets_that_are_generated(name: str, folder: Path, tmp_path: Path) -> None:
    """The `download:` of the YAML, with a smaller set."""
    from ultralytics.data.utils import check_det_dataset

    data: dict[str, Any] = yaml.safe_load(Path(str(catalog.find_dataset(name))).read_text())
    data["synth"] |= {"images": 3, "val_images": 2, "size": 96}
    (tmp_path / name).write_text(yaml.safe_dump(data))
    made = check_det_dataset(str(tmp_path / name))
    rows = [line for f in (Path(made["path"]) / "labels").rglob("*.txt") for line in f.read_text().splitlines()]
    assert {len(row.split()) for row in rows} == {52 if name.startswith("box-free") else 56}
    assert len(list(Path(made["train"]).iterdir())) == 3 and len(list(Path(made["val"]).iterdir())) == 2
    if name == "synth-crowd.yaml":
        assert data["synth"]["crowding"] > 0 and len(rows) >= 10


def test_the_commands_in_the_comments_parse() -> None:
    """Each `erpose convert` line of a YAML is one that the converter takes."""
    from erpose_yolo.data.convert import _parser

    for name in MADE_BY_HAND:
        text = Path(str(catalog.find_dataset(name))).read_text()
        lines = [line.split("erpose convert ")[1].split() for line in text.splitlines() if line.startswith("#   erpose convert ")]
        assert len(lines) == 2
        for line, split in zip(lines, ("train", "val")):
            args = _parser().parse_args(line)
            assert args.split == split and args.out.name == name.removesuffix(".yaml")

"""``erpose eval`` and the exact evaluation inside a validator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from erpose_yolo.data.skeletons import CROWDPOSE_14, names_of
from erpose_yolo.metrics import coco
from erpose_yolo.metrics.evaluate import evaluate, is_crowdpose, main
from erpose_yolo.metrics.exact import ExactPose
from erpose_yolo.metrics.predictions import read_predictions
from erpose_yolo.metrics.truth import from_annotations

QUIET = {"imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "verbose": False}


@pytest.fixture
def oblong(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny data set with images of other shapes, so that letterboxing matters; the labels are relative."""
    import cv2

    content = yaml.safe_load(tiny_dataset.read_text())
    root = tmp_path / "oblong"
    for n, file in enumerate(sorted((tiny_dataset.parent / "images/val").iterdir())):
        (root / "images/val").mkdir(parents=True, exist_ok=True)
        (root / "labels/val").mkdir(parents=True, exist_ok=True)
        size = ((150, 100), (64, 120), (97, 61), (64, 64))[n % 4]
        cv2.imwrite(str(root / "images/val" / file.name), cv2.resize(cv2.imread(str(file)), size))
        label = Path(str(file).replace("images", "labels")).with_suffix(".txt")
        (root / "labels/val" / label.name).write_text(label.read_text())
    data = root / "data.yaml"
    data.write_text(yaml.safe_dump({**content, "path": str(root), "train": "images/val"}))
    return data


def oracle(*bases: type) -> Any:
    """A stock validator that predicts the labels, with some noise, each person once more with a lower score."""
    import torch
    from ultralytics.models.yolo.pose import PoseValidator

    class Oracle(*bases, PoseValidator):  # type: ignore[misc]
        noise = 1.0

        def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
            self.batch = super().preprocess(batch)
            return self.batch

        def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
            generator, out = torch.Generator().manual_seed(self.batch_i), []
            height, width = self.batch["img"].shape[2:]
            size = torch.tensor([width, height, width, height])
            for i in range(len(self.batch["img"])):
                of = self.batch["batch_idx"] == i
                box = self.batch["bboxes"][of] * size
                keypoints = self.batch["keypoints"][of].clone()
                keypoints[..., :2] *= size[:2]
                keypoints[..., :2] += torch.randn(keypoints[..., :2].shape, generator=generator) * self.noise
                n = len(box)
                corners = torch.cat((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1).repeat(2, 1)
                score = torch.cat((0.9 - 0.1 * torch.arange(n), 0.5 - 0.1 * torch.arange(n)))
                keypoints = torch.cat((keypoints, keypoints + 20 * self.noise))
                out.append({"bboxes": corners, "conf": score, "cls": torch.zeros(2 * n), "keypoints": keypoints})
            return out

    return Oracle


def run(validator: Any, data: Path, **changes: Any) -> Any:
    """A standalone run of a validator class; returns the validator."""
    from ultralytics import YOLO

    runs = []

    def make(args: Any = None, _callbacks: Any = None) -> Any:
        runs.append(validator(args=args, _callbacks=_callbacks))
        return runs[-1]

    YOLO("yolo26n-pose.yaml").val(validator=make, **{**QUIET, "data": str(data), "plots": False, **changes})
    return runs[0]


@pytest.mark.parametrize("rect", [True, False])
def test_rides_along_without_changing_the_stock_figures(oblong: Path, rect: bool) -> None:
    plain = run(oracle(), oblong, rect=rect)
    ours = run(oracle(ExactPose), oblong, rect=rect)
    assert plain.metrics.results_dict == ours.metrics.results_dict
    assert 0.1 < plain.metrics.pose.map < 0.99  # neither all nor nothing
    # the file is complete, gives the same figures again, and pycocotools agrees
    found = read_predictions(ours.save_dir / "predictions.json", ours.truth)
    sigmas = coco.exact_sigmas(17)
    again = coco.evaluate_coco(ours.truth, found, sigmas)
    assert again == ours.exact == ours.metrics.exact and 0.1 < again["AP"] < 0.99
    assert {name: again[name] for name in coco.STATS} == coco.reference_evaluation(ours.truth, found, sigmas)
    assert len(found.score) == 2 * 2 * 4


def test_perfect_predictions_survive_the_letterbox(oblong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    perfect = oracle(ExactPose)
    perfect.noise = 0.0
    done = run(perfect, oblong)
    assert done.exact["AP"] == pytest.approx(1)
    found = done.collected.predictions(done.truth)
    best = found.score >= 0.7
    labelled = done.truth.keypoints[..., 2] > 0
    gap = np.abs(found.keypoints[best][..., :2] - done.truth.keypoints[..., :2]).max(-1)
    assert gap[labelled].max() < 0.01  # pixels of the original image


def test_annotations_decide_where_they_exist(oblong: Path) -> None:
    """The same persons, but the area of a segment: another AP than from labels."""
    labels = run(oracle(ExactPose), oblong)
    assert "0.53" in labels.truth.area_rule
    content = labels.truth.to_coco()
    for entry in content["annotations"]:
        entry["area"] *= 0.3
    (oblong.parent / "annotations").mkdir()
    (oblong.parent / "annotations/some.json").write_text(json.dumps(content))
    data = yaml.safe_load(oblong.read_text())
    oblong.write_text(yaml.safe_dump({**data, "annotations": {"val": "annotations/some.json"}}))
    exact = run(oracle(ExactPose), oblong)
    assert "segment area" in exact.truth.area_rule and exact.exact["AP"] < labels.exact["AP"]
    assert exact.metrics.results_dict == labels.metrics.results_dict
    del content["images"][2]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != labels.truth.ids[2]]
    (oblong.parent / "annotations/some.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"2.png' is not in .*some.json"):
        run(oracle(ExactPose), oblong)


def test_custom_sigmas_count(oblong: Path) -> None:
    before = run(oracle(ExactPose), oblong).exact["AP"]
    data = yaml.safe_load(oblong.read_text())
    oblong.write_text(yaml.safe_dump({**data, "kpt_oks_sigmas": [0.01] * 17}))
    assert run(oracle(ExactPose), oblong).exact["AP"] < before


@pytest.mark.parametrize("name", ["yolo11n-pose.yaml", "yolo26n-pose.yaml", "erpose-n.yaml"])
def test_every_pose_model_has_the_figures_of_yolo_val(
    name: str, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from ultralytics import YOLO

    from erpose_yolo.upstream import compat

    compat.install()
    torch.manual_seed(0)
    model = YOLO(name)
    options = {**QUIET, "data": str(tiny_dataset), "conf": 0.0001, "max_det": 50}
    stock = model.val(plots=False, **options)
    options.pop("data")
    report = evaluate(model, data=tiny_dataset, save_dir=tmp_path / "out", reference=True, **options)
    assert report["stock"] == {k: float(v) for k, v in stock.results_dict.items()}
    out = capsys.readouterr().out
    for title in ("COCO keypoints", "Crowds", "Keypoints", "left_ankle", "(labels)"):
        assert title in out
    saved = json.loads((tmp_path / "out/metrics.json").read_text())
    assert saved["sigmas"] == coco.exact_sigmas(17).tolist()
    assert saved["coco"] == report["coco"] and saved["settings"]["imgsz"] == 64
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    if name != "yolo26n-pose.yaml":  # whose random scores are all too low
        assert len(records) >= 4 and set(records[0]) >= {"image_id", "category_id", "keypoints", "score", "bbox"}
    if records:
        assert report["reference"]["apart"] == 0
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"precision_recall.png", "calibration.png", "crowding.png"} <= names


def test_a_predictions_file(oblong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(oracle(ExactPose), oblong)
    file = done.save_dir / "predictions.json"
    arguments = [f"predictions={file}", f"data={oblong}", f"save_dir={tmp_path / 'out'}", "plots=False"]
    assert main(arguments) == 0
    saved = json.loads((tmp_path / "out/metrics.json").read_text())
    assert saved["coco"] == pytest.approx(done.exact)
    assert saved["crowding"]["persons"] == 8 and saved["crowding"]["miss_rate"] < 1
    assert not (tmp_path / "out/crowding.png").exists()

    records = json.loads(file.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps([*records, {**records[0], "image_id": 777, "file_name": "elsewhere.jpg"}]))
    capsys.readouterr()
    assert main([f"predictions={other}", f"data={oblong}", f"save_dir={tmp_path / 'bad'}"]) == 1
    assert "for image '777', which is not among the 4 images" in capsys.readouterr().err
    assert not (tmp_path / "bad/metrics.json").exists()
    other.write_text(file.read_text()[:-30])
    assert main([f"predictions={other}", f"data={oblong}", f"save_dir={tmp_path / 'bad'}"]) == 1
    assert "other.json is truncated" in capsys.readouterr().err


def test_crowdpose_is_recognised(tmp_path: Path) -> None:
    from test_crowdpose import make_crowd

    truth = make_crowd(np.random.default_rng(0))
    file = tmp_path / "crowd.json"
    file.write_text(json.dumps(truth.to_coco()))
    read = from_annotations(file, 14)
    assert is_crowdpose(read, {})
    for entry in (content := truth.to_coco())["images"]:
        del entry["crowdIndex"]
    file.write_text(json.dumps(content))
    plain = from_annotations(file, 14)
    assert not is_crowdpose(plain, {})
    assert is_crowdpose(plain, {"kpt_oks_sigmas": list(CROWDPOSE_14.sigmas)})
    assert is_crowdpose(plain, {"kpt_names": {0: list(CROWDPOSE_14.names)}})
    assert (
        names_of(None, 3) == ["0", "1", "2"] and names_of(None, 17)[16] == "right_ankle" and names_of(["a", "b"], 2) == ["a", "b"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=x.yaml"], "either model= or predictions="),
        (["model=a.pt", "predictions=b.json", "data=x.yaml"], "either model= or predictions="),
        (["model=yolo26n-pose.yaml"], "Give data="),
        (["model=yolo26n-pose.yaml", "data=x.yaml", "protocol=mpii"], "protocol=mpii"),
        (["yolo26n-pose.yaml"], "is not key=value"),
        (["model=yolo26n-pose.yaml", "data=not-there.yaml"], "not-there.yaml"),
        (["model=yolo26n.yaml", "data=x.yaml"], "task 'detect', not of 'pose'"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_argument_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mdoel=yolo26n-pose.yaml", "data=x.yaml"]) == 2
    assert capsys.readouterr().err == "erpose eval: 'mdoel' is not an argument. Did you mean 'model'?\n"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody raised on purpose is no mistake of the user's."""
    for bug in ("None + 1", "assert False, 'cannot be'", "int('x')"):
        space: dict[str, Any] = {"__name__": "erpose_yolo.metrics.evaluate"}
        exec(f"def broken(*args):\n    {bug}", space)
        monkeypatch.setattr("erpose_yolo.metrics.evaluate._run", space["broken"])
        with pytest.raises((TypeError, AssertionError, ValueError)):
            main(["model=yolo26n-pose.yaml", "data=x.yaml"])


def test_the_image_size_is_640_and_said(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever size a checkpoint was trained at, so that a comparison is fair."""
    from ultralytics import YOLO

    model = YOLO("erpose-n.yaml")
    model.overrides["imgsz"] = 96  # as of a checkpoint
    options = {k: v for k, v in QUIET.items() if k != "imgsz"} | {"data": tiny_dataset, "plots": False}
    report = evaluate(model, save_dir=tmp_path / "a", **options)
    assert report["settings"]["imgsz"] == 640 and "Image size: 640 px" in capsys.readouterr().out
    report = evaluate(model, save_dir=tmp_path / "b", imgsz=64, **options)
    assert report["settings"]["imgsz"] == 64 and "Image size: 64 px" in capsys.readouterr().out


def test_another_number_of_keypoints(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "yolo26n-pose-five.yaml"
    from ultralytics.utils import ROOT, YAML

    YAML.save(model, {**YAML.load(ROOT / "cfg/models/26/yolo26-pose.yaml"), "kpt_shape": [5, 3], "scale": "n"})
    assert main([f"model={model}", f"data={tiny_dataset}", "imgsz=64", "workers=0", "task=pose"]) == 1
    assert "kpt_shape [5, 3] of the model differs from kpt_shape [17, 3]" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main([]) == 1
    assert "protocol" in capsys.readouterr().out

"""Error bars beside the stock fields of a result: in pixels of its image, through all that is done with results."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from erpose_yolo import ERPose
from erpose_yolo.cli import main
from erpose_yolo.data.drawing import ErrorBars, PoseResults
from erpose_yolo.method.errorbars import pose_oks, sigma_units, within
from erpose_yolo.method.oks import COCO_SIGMAS, sigmas_for
from erpose_yolo.metrics.errorbars import calibration_error, measure_errors
from erpose_yolo.metrics.truth import from_labels

OPTIONS = {"conf": 1e-6, "max_det": 4, "imgsz": 64, "device": "cpu", "verbose": False}


def make_model(shape: tuple[int, int] = (17, 3), std: float = 0.3) -> ERPose:
    """Random weights with spreads that differ from cell to cell."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    if shape != (17, 3):
        model.model = type(model.model)("erpose-n.yaml", data_kpt_shape=shape, verbose=False)
    for conv in model.model.model[-1].deployed.spread:
        torch.nn.init.normal_(conv.weight, std=std)
    return model


def bars_of(sigma: torch.Tensor, oks: float = 0.5) -> torch.Tensor:
    """What ErrorBars take: error bars (P, K), and the same OKS for every person."""
    return torch.cat((sigma, torch.full((len(sigma), 1), oks)), 1)


@pytest.fixture(scope="module")
def model() -> ERPose:
    return make_model()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)


def numbers(values: torch.Tensor) -> list[float]:
    return values.flatten().tolist()


@pytest.mark.parametrize("shape", [(17, 3), (5, 2)])
def test_pixels_of_the_original_image(shape: tuple[int, int], image: np.ndarray) -> None:
    model = make_model(shape)
    result = model.predict(image, **OPTIONS)[0]
    assert result.erpose.sigma.shape == (4, shape[0]) and result.keypoints.data.shape == (4, *shape)
    network = model.predictor.model.model
    seen = model.predictor.preprocess([image])
    rows = network(seen)[0][0, :4]
    gain = seen.shape[3] / image.shape[1]
    assert gain == 0.5 and numbers(result.erpose.sigma) == pytest.approx(numbers(rows[:, -shape[0] :] / gain), rel=1e-4)
    assert rows.shape[1] == 6 + shape[0] * (shape[1] + 1)
    assert torch.equal(network.model[-1].sigma_units, sigma_units(sigmas_for(shape[0])))
    assert model.model.model[-1].sigma_units is None  # the user's own network is as it was


@pytest.mark.parametrize("shape", [(17, 3), (5, 2)])
def test_oks_of_a_person_is_what_the_score_is_weighed_with(shape: tuple[int, int], image: np.ndarray) -> None:
    model = make_model(shape, std=0.03)  # far from the bound of the spreads, which scores do not have
    head, options, found = model.model.model[-1], {**OPTIONS, "max_det": 300}, {}
    head.spread_factors = [1.0] * shape[0]
    for by, factor in (("score", 1.0), ("expected_oks", 1.0), ("expected_oks", 2.0)):
        head.confidence, head.oks_factor, model.predictor = by, factor, None
        result = model.predict(image, **options)[0]
        order = result.erpose.sigma.double().sum(1).argsort()  # the same cells, sorted alike
        found[by, factor] = result[order]
    score, weighed, lowered = found.values()
    assert len(score) == len(weighed) == len(lowered) == 84  # every cell
    assert numbers(weighed.boxes.conf) == pytest.approx(numbers(score.boxes.conf.sqrt() * weighed.erpose.oks), rel=0.03)
    assert numbers(weighed.erpose.oks) == pytest.approx(numbers(score.erpose.oks), rel=1e-3)
    assert (lowered.erpose.oks < weighed.erpose.oks).all() and torch.equal(lowered.boxes.conf, weighed.boxes.conf)
    assert torch.equal(lowered.erpose.sigma, weighed.erpose.sigma)


def test_batch(model: ERPose, image: np.ndarray) -> None:
    alone = model.predict(image, **OPTIONS)[0]
    both = model.predict([image[:, ::-1].copy(), image], **OPTIONS, batch=2)
    assert numbers(both[1].erpose.sigma) == pytest.approx(numbers(alone.erpose.sigma), rel=1e-3)


def test_results_keep_them(model: ERPose, image: np.ndarray) -> None:
    result = model.predict(image, **OPTIONS)[0]
    sigma = result.erpose.sigma
    assert torch.equal(result[1:3].erpose.sigma, sigma[1:3]) and torch.equal(result[2].erpose.sigma, sigma[2:3])
    assert torch.equal(result[torch.tensor([3, 0])].erpose.sigma, sigma[[3, 0]]) and len(result[:0].erpose) == 0
    assert isinstance(result.numpy().erpose.sigma, np.ndarray)
    assert result.to(dtype=torch.float64).erpose.sigma.dtype == torch.float64
    assert torch.equal(result.cpu()[0].cpu().erpose.sigma, sigma[:1])
    covariance = result.erpose.covariance
    assert torch.allclose(covariance.diagonal(dim1=2, dim2=3), sigma[..., None].square().expand(-1, -1, 2))
    assert not covariance[..., 0, 1].any() and np.allclose(result.numpy().erpose.covariance, covariance)


def test_slices_and_tracks_keep_them(model: ERPose, image: np.ndarray) -> None:
    large = np.tile(image, (2, 2, 1))
    options = {**OPTIONS, "max_det": 30}
    found = model.predict(large, slices=64, overlap=0.0, **options)[0]
    views = [large, *(large[y : y + 64, x : x + 64] for y in (0, 64, 128) for x in range(0, 256, 64))]
    known = torch.cat([model.predict(np.ascontiguousarray(view), **options)[0].erpose.sigma for view in views])
    assert len(found.erpose) == len(found) > 0 and isinstance(found, PoseResults)
    assert torch.cdist(found.erpose.sigma, known).amin(1).max() < 1e-2 * known.mean()
    tracked = model.track(image, tracker="bytetrack.yaml", **OPTIONS)[0]
    assert len(tracked.erpose) == len(tracked)


def test_saved_and_tabulated(model: ERPose, image: np.ndarray, tmp_path: Path) -> None:
    result = model.predict(image, **OPTIONS)[0]
    plain, bars = tmp_path / "plain.txt", tmp_path / "new" / "bars.txt"
    result.save_txt(plain, save_conf=True)
    result.save_txt(bars, save_conf=True, save_sigma=True)
    result.save_txt(bars, save_conf=True, save_sigma=True)  # appends, as stock does
    lines = bars.read_text().splitlines()
    assert len(lines) == 8 and [line.split()[:-17] for line in lines] == 2 * [x.split() for x in plain.read_text().splitlines()]
    assert [float(x) for x in lines[1].split()[-17:]] == pytest.approx(numbers(result.erpose.sigma[1]), rel=1e-4)
    listed = json.loads(result.to_json(sigma=True))
    assert listed[2]["keypoints"]["sigma"] == pytest.approx(numbers(result.erpose.sigma[2]), abs=1e-4)
    assert result.to_df(sigma=True)["keypoints"][0]["sigma"] == listed[0]["keypoints"]["sigma"]
    assert "sigma" in result.to_csv(sigma=True) and "sigma" not in result.to_csv() + result.to_json()
    assert "sigma" not in result.summary()[0]["keypoints"]


def test_drawn(model: ERPose, image: np.ndarray) -> None:
    """Circles of two standard deviations around keypoints that are drawn, and only there."""
    keypoints = torch.zeros(1, 17, 3)
    keypoints[0, :2] = torch.tensor([[30.0, 40, 1], [90.0, 40, 0.1]])  # the second is not visible
    boxes = torch.tensor([[10.0, 10, 100, 90, 0.9, 0]])
    stock = Results(np.zeros_like(image), "x.jpg", {0: "person"}, boxes=boxes, keypoints=keypoints)
    result = PoseResults.of(stock, None, bars_of(torch.full((1, 17), 6.0)))
    options = {"boxes": False, "line_width": 1, "kpt_radius": 1}
    changed = (result.plot(sigma=True, **options) != result.plot(**options)).any(2)
    y, x = np.nonzero(changed)
    radius = np.hypot(x - 30, y - 40)
    assert radius.max() == pytest.approx(12, abs=1.5) and (radius < 11).sum() > 300
    result.show_sigma = True
    assert np.array_equal(result[0:1].plot(**options), result.plot(sigma=True, **options))


def test_none_without_trained_spreads(image: np.ndarray, tmp_path: Path) -> None:
    model = make_model()
    head = model.model.model[-1]
    head.confidence = "score"
    result = model.predict(image, **OPTIONS)[0]
    assert result.erpose is None and result[0].erpose is None
    for ask in (result.plot, result.to_df, result.summary):
        with pytest.raises(ValueError, match="no error bars"):
            ask(sigma=True)
    with pytest.raises(ValueError, match="no error bars"):
        result.save_txt(tmp_path / "x.txt", save_sigma=True)
    head.spread_factors = [2.0] * 17  # fitted: then they mean something
    model.predictor = None
    twice = model.predict(image, **OPTIONS)[0].erpose.sigma
    head.spread_factors, head.confidence, model.predictor = None, "expected_oks", None
    once = model.predict(image, **{**OPTIONS, "max_det": 300})[0].erpose.sigma
    assert torch.cdist(twice / 2, once).amin(1).max() < 1e-3


def test_factors_are_saved_and_old_files_open(tmp_path: Path, image: np.ndarray) -> None:
    model = make_model()
    model.model.model[-1].spread_factors = factors = [1.0 + k / 10 for k in range(17)]
    model.model.model[-1].oks_factor = 1.25
    for name in ("new.pt", "new.safetensors"):
        model.save(tmp_path / name)
        head = ERPose(tmp_path / name).model.model[-1]
        assert head.spread_factors == pytest.approx(factors) and head.oks_factor == 1.25
    del model.model.model[-1].spread_factors, model.model.model[-1].oks_factor  # as in files of before
    model.save(tmp_path / "old.pt")
    assert not {"spread_factors", "oks_factor"} & vars(ERPose(tmp_path / "old.pt").model.model[-1]).keys()
    assert ERPose(tmp_path / "old.pt").predict(image, **OPTIONS)[0].erpose is not None


def test_command_line(tmp_path: Path, image: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save(tmp_path / "m.pt")
    cv2.imwrite(str(tmp_path / "a.png"), image)
    words = ["predict", f"model={tmp_path / 'm.pt'}", f"source={tmp_path / 'a.png'}", "conf=1e-6", "max_det=4", "imgsz=64"]
    words += ["device=cpu", "save_txt=True", f"project={tmp_path}", "exist_ok=True", "show_conf=False", "show_boxes=False"]
    assert main([*words, "name=plain", "save=True"]) == 0
    assert main([*words, "name=bars", "save=True", "show_sigma", "save_sigma=True"]) == 0
    plain, bars = ((tmp_path / name / "labels" / "a.txt").read_text().split() for name in ("plain", "bars"))
    assert len(bars) == len(plain) + 4 * 17
    drawn = [cv2.imread(str(next((tmp_path / name).glob("a.*")))) for name in ("plain", "bars")]
    assert not np.array_equal(*drawn)
    assert main(["export", f"model={tmp_path / 'm.pt'}", "show_sigma=True"]) == 2
    assert "goes with predict and track" in capsys.readouterr().err


def people(count: int = 40) -> tuple[list[dict], np.ndarray]:
    """Labels of images with one person each, and keypoints (count, 17, 2) in pixels."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 17, 3))
    points[..., 2] = 2
    points[:, 3, 2] = 0  # never labelled
    box = np.array([[0.5, 0.5, 0.8, 0.8]])
    labels = [
        {"im_file": f"{i}.jpg", "shape": (200, 100), "cls": np.zeros((1, 1)), "bboxes": box, "keypoints": points[i : i + 1]}
        for i in range(count)
    ]
    return labels, points[..., :2] * [100, 200]


def test_errors_are_measured_in_error_bars() -> None:
    labels, points = people()
    truth = from_labels(labels, {0: "person"})
    off = np.random.default_rng(1).normal(0, 1, points.shape)
    results = []
    for i in range(len(points)):
        keypoints = torch.tensor(np.concatenate((points[i] + off[i], np.ones((17, 1))), 1)[None]).float()
        boxes = torch.tensor([[10.0, 20, 90, 180, 0.9, 0]])
        stock = Results(np.zeros((200, 100, 3), np.uint8), f"{i}.jpg", {0: "person"}, boxes=boxes, keypoints=keypoints)
        results.append(PoseResults.of(stock, None, bars_of(torch.full((1, 17), 2.0), 0.7)))
    results[0] = results[0][:0]  # nobody found
    errors = measure_errors(results, truth, np.array(COCO_SIGMAS))
    assert errors.ratio.shape == (39, 17) and not errors.labelled[:, 3].any() and errors.labelled.sum() == 39 * 16
    order = [truth.find([f"{i}.jpg"])[0] for i in range(1, 40)]
    wanted = np.linalg.norm(off, axis=2)[1:][np.argsort(order)] / 2
    assert np.allclose(errors.ratio[errors.labelled], wanted[errors.labelled], atol=1e-4)
    assert (0.5 < errors.true).all() and np.allclose(errors.expected, 0.7) and (errors.visibility == 1).all()
    reach = np.sqrt(0.53 * 80 * 160) * 2 * np.array(COCO_SIGMAS)
    assert np.allclose(errors.spread, 2 / (np.sqrt(3.5) * reach))
    with pytest.raises(ValueError, match="without error bars"):
        measure_errors([PoseResults.of(stock, None)], truth, np.array(COCO_SIGMAS))


def test_calibration_error() -> None:
    expected = np.array([0.05, 0.05, 0.95, 0.95])
    assert calibration_error(expected, np.array([0.0, 0.1, 0.9, 1.0])) == pytest.approx(0)
    assert calibration_error(expected, np.array([0.0, 0.1, 0.5, 0.6])) == pytest.approx(0.2)


def test_calibrate(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Factors make the error bars of a model that claims too little as wide as the law says; a second time changes nothing."""
    model = make_model()
    head = model.model.model[-1]
    rng = np.random.default_rng(0)
    noise: dict[str, torch.Tensor] = {}

    def predict(file: str, **options: object) -> list[PoseResults]:
        """The labels, each off by a normal error of one pixel, with error bars of half a pixel times the factors."""
        image = cv2.imread(file)
        label = Path(file.replace("images", "labels")).with_suffix(".txt")
        rows = np.loadtxt(label, ndmin=2)
        size = np.array(image.shape[1::-1])
        keypoints = torch.tensor(rows[:, 5:].reshape(-1, 17, 3)).float()
        keypoints[..., :2] *= torch.tensor(size)
        if file not in noise:
            noise[file] = torch.tensor(rng.normal(0, 1, keypoints[..., :2].shape)).float()
        keypoints[..., :2] += noise[file]
        centre, side = rows[:, 1:3] * size, rows[:, 3:5] * size
        boxes = np.concatenate((centre - side / 2, centre + side / 2, np.tile([1.0, 0.0], (len(rows), 1))), 1)
        stock = Results(image, file, {0: "person"}, boxes=torch.tensor(boxes).float(), keypoints=keypoints)
        return [PoseResults.of(stock, None, bars_of(0.5 * torch.tensor(head.spread_factors).expand(len(rows), -1)))]

    monkeypatch.setattr(model, "predict", predict)
    model.calibrate(str(tiny_dataset), "train")
    fitted, oks_factor = head.spread_factors, head.oks_factor
    assert len(fitted) == 17 and all(1.4 < factor < 2.4 for factor in fitted)
    errors = model.calibrate(str(tiny_dataset), "train")
    assert head.spread_factors == pytest.approx(fitted) and head.oks_factor == oks_factor != 1
    spread = torch.from_numpy(errors.spread) * torch.tensor(fitted)
    assert float(pose_oks(spread, torch.ones_like(spread), oks_factor).mean()) == pytest.approx(errors.true.mean(), abs=1e-4)
    errors = model.measure_errors(str(tiny_dataset), "train")
    shares = [(errors.ratio[errors.labelled] <= n).mean() for n in (1, 2)]
    assert shares == pytest.approx([within(1), within(2)], abs=0.12)
    monkeypatch.setattr(model, "predict", lambda file, **options: [predict(file)[0][:0]])
    with pytest.raises(ValueError, match="none of the people"):
        model.calibrate(str(tiny_dataset), "train")
    assert head.spread_factors == pytest.approx(fitted) and head.oks_factor == oks_factor


def test_error_bars_of_one_person() -> None:
    bars = ErrorBars(torch.arange(18.0), (4, 4))
    assert bars.sigma.shape == (1, 17) and bars.oks.tolist() == [17.0]

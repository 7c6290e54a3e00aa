"""How good are boxes that nobody predicts? Box AP, and the share of people who are inside their boxes.

    python -m benchmarks.accuracy.derived_boxes --data coco-people.yaml --weights erpose-n.pt --peer yolo26n-pose.pt

One row for each of: boxes derived from the keypoints of --weights, with and without the room that predicted boxes get
(boxes.ROOM); the learned branch (``boxes: true``) on the same weights; boxes derived from the keypoints of --peer, a YOLO26-pose
checkpoint; and the peer's own boxes. All are judged on the val split by COCO's box AP, and by the share of people found (OKS of 0.1
or more, score of 0.25 or more) at least 90 % of whose labelled box is inside the predicted one.

The learned branch is trained on photos of the training split, everything else frozen: it is one 1 x 1 convolution per level, so
features of the cells that persons are assigned to one-to-one, which are those that give the boxes, are taken once, and the loss is
the package's own (1 - GIoU). On all 2,782 photos that takes about six minutes of one core, nearly all of it for the features.
"""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from ultralytics import YOLO
from ultralytics.utils import TQDM

from benchmarks import common
from erpose_yolo import ERPose, catalog
from erpose_yolo.method.boxes import decode_boxes, default_margins, derive_boxes, with_room
from erpose_yolo.method.losses import ERPoseLoss, Side, Targets, box_overlap
from erpose_yolo.method.oks import object_area, sigmas_for
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.errorbars import MATCH_OKS
from erpose_yolo.metrics.evaluate import read_labels
from erpose_yolo.metrics.matching import match
from erpose_yolo.metrics.predictions import Predictions
from erpose_yolo.metrics.truth import GroundTruth, from_labels
from erpose_yolo.nn.network import ERPoseModel

LEAST, SHOWN, INSIDE = 0.01, 0.25, 0.9


def labels_of(data: str, split: str) -> tuple[list[dict[str, Any]], GroundTruth, np.ndarray]:
    """Labels of a split, the same as ground truth, and OKS sigmas."""
    with TemporaryDirectory() as folder:
        labels, info = read_labels(str(catalog.resolve_data(data)), split, Path(folder), {})
    truth = from_labels(labels, info["names"])
    return labels, truth, exact_sigmas(truth.keypoints.shape[1], info.get("kpt_oks_sigmas"))


def predict(model: Any, labels: list[dict[str, Any]], truth: GroundTruth, **options: Any) -> tuple[Predictions, np.ndarray]:
    """Predictions of all images, and their boxes (M, 4): left, top, width, height in pixels."""
    rows: list[tuple[np.ndarray, ...]] = []
    for label in TQDM(labels, desc="predict"):
        found = model.predict(label["im_file"], conf=LEAST, verbose=False, **options)[0].cpu().numpy()
        image = np.full(len(found), truth.find([label["im_file"]])[0])
        rows.append(
            (image, found.boxes.conf, found.keypoints.data.reshape(len(found), truth.keypoints.shape[1], 3), found.boxes.xyxy)
        )
    image, score, keypoints, box = (np.concatenate(column) for column in zip(*rows))
    box = np.concatenate((box[:, :2], box[:, 2:] - box[:, :2]), 1).astype(np.float64)
    whole = Predictions(image, np.zeros(len(image), np.int64), score, keypoints.astype(np.float64), box[:, 2:].prod(1))
    return whole, box


def derived(found: Predictions, truth: GroundTruth, margins: Tensor) -> np.ndarray:
    """Boxes (M, 4), left, top, width, height, that these margins give to the keypoints, clipped to the images."""
    points = torch.from_numpy(found.keypoints).permute(1, 2, 0)[None]
    box = derive_boxes(points[:, :, :2], points[:, :, 2], margins.double())[0].T.numpy()
    most = np.array([(*size[::-1], *size[::-1]) for size in truth.sizes])[found.image]
    box = box.clip(0, most)
    return np.concatenate((box[:, :2], box[:, 2:] - box[:, :2]), 1)


def judge(found: Predictions, box: np.ndarray, truth: GroundTruth, sigmas: np.ndarray) -> dict[str, float]:
    """Box AP, and how many of the people found are inside their boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        wanted, given = COCO(), []
        wanted.dataset = {
            "images": [{"id": i} for i in range(len(truth.ids))],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": n + 1, "image_id": int(i), "category_id": 1, "bbox": b.tolist(), "area": float(b[2] * b[3]), "iscrowd": 0}
                for n, (i, b) in enumerate(zip(truth.image, truth.box))
            ],
        }
        wanted.createIndex()
        for i, b, s in zip(found.image.tolist(), box.tolist(), found.score.tolist()):
            given.append({"image_id": i, "category_id": 1, "bbox": b, "score": s})
        run = COCOeval(wanted, wanted.loadRes(given), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    shown = found.score >= SHOWN
    pairs = match(truth, found.select(shown), sigmas, np.array([MATCH_OKS]), max_dets=300)[0]
    hit = pairs.match[0, 0] >= 0
    ours, theirs = box[shown][pairs.prediction[hit]], pairs.person[pairs.match[0, 0][hit]]
    labelled = truth.seen[theirs] > 0
    ours, theirs = ours[labelled], truth.box[theirs[labelled]]
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, :2] + ours[:, 2:], theirs[:, :2] + theirs[:, 2:])
    both = np.maximum(high - low, 0).prod(1)
    inside, iou = both / theirs[:, 2:].prod(1), both / (ours[:, 2:].prod(1) + theirs[:, 2:].prod(1) - both)
    people = int((truth.seen > 0).sum())
    return {
        "AP": round(float(run.stats[0]), 4),
        "AP50": round(float(run.stats[1]), 4),
        "found": len(ours),
        "people": people,
        "inside": round(float((inside >= INSIDE).mean()), 4),
        "inside_of_all": round(float((inside >= INSIDE).sum() / people), 4),
        "iou": round(float(iou.mean()), 4),
    }


class Cells:
    """Forward hook that keeps the features of the cells which the people of an image are assigned to, one each."""

    def __init__(self, head: Any) -> None:
        sigmas = sigmas_for(head.kpt_shape[0])
        self.loss = ERPoseLoss(sigmas, head.stride.tolist())
        self.targets: Targets | None = None
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, head: Any, given: Any, output: Any) -> None:
        """Keep features (n, C), centres and strides in pixels, levels, and labelled boxes of the assigned cells."""
        if self.targets is None:  # a warm-up
            return
        raw = output[1]
        side = Side.of(raw.one2one, raw.one2one_scores)
        scene = self.loss._scene(side.offsets, self.targets, raw.shapes)
        features = torch.cat([tower(x).flatten(2) for tower, x in zip(head.one2one_pose.tower, given[0])], 2)[0].T
        level = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(raw.shapes)])
        pairs = self.loss.assign("one2one", side, scene, 1.0)
        of = pairs.cell
        self.kept.append((features[of], scene.centres.T[of], scene.strides.T[of], level[of], self.targets.box[pairs.person]))


def learned_boxes(weights: str, labels: list[dict[str, Any]], photos: int, steps: int, **options: Any) -> ERPose:
    """A model with the keypoints of ``weights`` and a box branch, trained on labelled images, or on so many of them."""
    source = ERPose(weights)
    cfg = {**source.model.yaml, "erpose": {**source.model.settings.to_dict(), "boxes": True}}
    network = ERPoseModel(cfg, nc=source.model.model[-1].nc, data_kpt_shape=source.model.kpt_shape, verbose=False)
    network.load(source.model, verbose=False)
    network.names, network.args, network.task = source.model.names, source.model.args, "pose"
    source.model = network.eval()
    some = random.Random(0).sample(labels, min(photos, len(labels)))
    fit(network.model[-1].one2one_pose.box, assigned_cells(source, some, **options), steps)
    source.predictor = None
    return source


def assigned_cells(model: ERPose, labels: list[dict[str, Any]], **options: Any) -> list[Tensor]:
    """What :class:`Cells` keeps of labelled images, in one tensor each."""
    cells = Cells(model.model.model[-1])
    model.predict(np.zeros((64, 64, 3), np.uint8), verbose=False, **options)
    predictor: Any = model.predictor
    handle = predictor.model.model.model[-1].register_forward_hook(cells)
    for label in TQDM(labels, desc="features"):
        cells.targets = _targets(label, predictor, options["imgsz"])
        model.predict(label["im_file"], verbose=False, **options)
    handle.remove()
    return [torch.cat(column).clone() for column in zip(*cells.kept)]


def fit(convs: Any, cells: list[Tensor], steps: int) -> None:
    """Train the box branch, a convolution for each level, on what :func:`assigned_cells` gives."""
    features, centres, strides, level, boxes = cells
    optimizer = torch.optim.Adam(convs.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pick = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(len(features), (1024,), generator=pick)
        raw = features.new_zeros(len(some), 4)
        for i, conv in enumerate(convs):
            of = level[some] == i
            raw[of] = conv(features[some][of, :, None, None])[:, :, 0, 0]
        decoded = decode_boxes(raw.T[None], centres[some].T, strides[some].T)[0].T
        loss = (1 - box_overlap(decoded, boxes[some])[1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"box branch: {len(features):,} cells, 1 - GIoU {loss.item():.3f}")


def _targets(label: dict[str, Any], predictor: Any, imgsz: int) -> Targets | None:
    """People of an image in pixels of the network input; None where nobody is labelled."""
    height, width = label["shape"]
    image = predictor.preprocess([np.zeros((height, width, 3), np.uint8)])
    gain = min(imgsz / height, imgsz / width)
    left, top = (round((side - round(full * gain)) / 2 - 0.1) for side, full in ((image.shape[3], width), (image.shape[2], height)))
    size, shift = np.array([width, height]) * gain, np.array([left, top])
    points = label["keypoints"].copy()
    points[..., :2] = points[..., :2] * size + shift
    centre, side = label["bboxes"][:, :2] * size + shift, label["bboxes"][:, 2:] * size
    boxes = torch.tensor(np.concatenate((centre - side / 2, centre + side / 2), 1), dtype=torch.float32)
    known = torch.from_numpy((points[..., 2] > 0).any(1))
    if not known.any():
        return None
    zeros = torch.zeros(len(boxes), dtype=torch.long)
    keypoints = torch.tensor(points, dtype=torch.float32)[known]
    of_known = (zeros[known], keypoints, boxes[known], object_area(boxes[known]), zeros[known])
    return Targets(*of_known, ignore_image=zeros[~known], ignore_box=boxes[~known])


def table(record: common.Record) -> str:
    """One row per kind of box."""
    rows = [
        [name, f"{r['AP'] * 100:.1f}", f"{r['AP50'] * 100:.1f}", f"{r['inside'] * 100:.0f}", f"{r['iou']:.2f}", r["found"]]
        for name, r in record["rows"].items()
    ]
    return common.markdown(["boxes", "AP", "AP50", "inside, %", "IoU", "people found"], rows)


def summary(record: common.Record) -> str:
    """What the page of all benchmarks says."""
    return "box AP, and people found who are inside their box: " + "; ".join(
        f"{name} {r['AP'] * 100:.1f}, {r['inside'] * 100:.0f} %" for name, r in record["rows"].items()
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--peer", required=True, help="YOLO26-pose checkpoint")
    parser.add_argument("--photos", type=int, default=10**6, help="at most, of the training split, for the learned branch")
    parser.add_argument("--steps", type=int, default=1500, help="of the learned branch")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    options = {"imgsz": args.imgsz, "device": args.device}
    labels, truth, sigmas = labels_of(args.data, "val")
    rows: dict[str, dict[str, float]] = {}

    def add(name: str, found: Predictions, box: np.ndarray) -> None:
        rows[name] = judge(found, box, truth, sigmas)
        print(name, rows[name], flush=True)

    model = ERPose(args.weights)
    found, box = predict(model, labels, truth, **options)
    add("derived", found, box)
    add("derived, no room", found, derived(found, truth, model.model.model[-1].margins.float()))
    # the conversion has the peer's scores and keypoints to the last bit, and default margins
    found, box = predict(YOLO(args.peer), labels, truth, nms=False, **options)
    margins = default_margins(truth.keypoints.shape[1])
    add("derived from the peer", found, derived(found, truth, with_room(margins)))
    add("derived from the peer, no room", found, derived(found, truth, margins))
    add("the peer's own", found, box)
    train, *_ = labels_of(args.data, "train")
    learned = learned_boxes(args.weights, train, args.photos, args.steps, **options)
    add("learned", *predict(learned, labels, truth, **options))
    about = {"weights": Path(args.weights).name, "peer": Path(args.peer).name, "imgsz": args.imgsz, "images": len(truth.ids)}
    common.save("derived-boxes", {"setup": about, "rows": rows}, table)


if __name__ == "__main__":
    main()

"""benchmarks/accuracy/gpu_cache.py: images cached on the device, and labels that follow them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg

from benchmarks.accuracy import gpu_cache
from erpose_yolo.data.dataset import build_dataset

SIZE = 96
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])  # of the keypoints, RGB
PLAIN = {"task": "pose", "imgsz": SIZE, "mosaic": 0.0, "close_mosaic": 0, "hsv_s": 0.0, "hsv_v": 0.0}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five wide images of one or two persons: three keypoints, squares of their own colours. The last two keypoints are a pair."""
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("marked")
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for i in range(5):
        image, rows = np.full((64, 128, 3), 40, np.uint8), []
        for left in (10, 74)[: 1 + i % 2]:
            keypoints = rng.integers(0, 40, (3, 2)) * [1, 1] + [left, 12]
            keypoints[1:, 0] = keypoints[0, 0] + [-8, 8]
            keypoints[1:, 1] = keypoints[0, 1] + 9
            for (x, y), colour in zip(keypoints, COLOURS):
                image[y - 3 : y + 3, x - 3 : x + 3] = colour[::-1]
            low, high = keypoints.min(0) - 4, keypoints.max(0) + 4
            box = np.concatenate(((low + high) / 2, high - low)) / [128, 64, 128, 64]
            points = [f"{x / 128} {y / 64} 2" for x, y in keypoints]
            rows.append(" ".join(["0", *map(str, box), *points]))
        cv2.imwrite(str(tmp_path / "images/train" / f"{i}.png"), image)
        (tmp_path / "labels/train" / f"{i}.txt").write_text("\n".join(rows))
    data = {"path": str(tmp_path), "train": "images/train", "val": "images/train", "kpt_shape": [3, 3], "names": {0: "person"}}
    data |= {"flip_idx": [0, 2, 1], "nc": 1, "channels": 3}
    return build_dataset(get_cfg(overrides=PLAIN), str(tmp_path / "images/train"), 5, data, "train", False, 32, 1.0)


def cached(dataset: Any, batch: int = 5, **args: Any) -> gpu_cache.CachedLoader:
    return gpu_cache.CachedLoader(dataset, batch, get_cfg(overrides={**PLAIN, **args}), torch.device("cpu"))


@pytest.mark.parametrize(
    "change",
    [{}, {"fliplr": 1.0}, {"translate": 0.3}, {"scale": 0.5}, {"fliplr": 0.5, "translate": 0.2, "scale": 0.3}],
    ids=["still", "mirrored", "moved", "scaled", "all"],
)
def test_keypoints_and_boxes_stay_on_what_they_mark(marked: Any, change: dict[str, float]) -> None:
    loader = cached(marked, **{"fliplr": 0.0, "translate": 0.0, "scale": 0.0, **change})
    compared = 0
    for _ in range(6):
        for batch in loader:
            assert batch["img"].shape == (5, 3, SIZE, SIZE) and batch["img"].min() >= 0 and batch["img"].max() <= 255
            for image, box, keypoints in zip(batch["batch_idx"].long(), batch["bboxes"] * SIZE, batch["keypoints"]):
                seen = keypoints[:, 2] > 0
                places = keypoints[:, :2] * SIZE
                for name, (x, y) in zip(range(3), places.tolist()):
                    if not seen[name] or not (2 < x < SIZE - 2 and 2 < y < SIZE - 2):
                        continue
                    # a mirrored person's left is on the other side: keypoints 1 and 2 change colours
                    colour = batch["img"][image, :, int(y), int(x)]
                    wanted = {0: (0,), 1: (1, 2), 2: (1, 2)}[name] if change.get("fliplr") else (name,)
                    assert int(colour.argmax()) in wanted and colour.max() > 150, (name, colour)
                    compared += 1
                inside = ((places >= box[:2] - box[2:] / 2) & (places <= box[:2] + box[2:] / 2)).all(1)
                assert inside[seen].all() and (keypoints[~seen] == 0).all()
    assert compared > 20


def test_a_mirrored_person_has_its_left_on_the_other_side(marked: Any) -> None:
    """In the images keypoint 1 is left of keypoint 2; mirrored, keypoint 1 is where keypoint 2 was, and so it still is."""
    for fliplr in (0.0, 1.0):
        (batch,) = cached(marked, fliplr=fliplr, translate=0.0, scale=0.0)
        assert (batch["keypoints"][:, 1, 0] < batch["keypoints"][:, 2, 0]).all()


def test_all_images_come_once_an_epoch_in_an_order_of_seed_and_epoch(marked: Any) -> None:
    orders = []
    for seed in (0, 0, 1):
        loader = cached(marked, batch=2, seed=seed, fliplr=0.0, translate=0.0, scale=0.0)
        assert len(loader) == 3
        for _ in range(2):
            seen = [image for batch in loader for image in batch["img"]]
            kept = [int((loader.images - image).abs().flatten(1).sum(1).argmin()) for image in seen]
            assert sorted(kept) == list(range(5))
            orders.append(kept)
    assert orders[:2] == orders[2:4] and orders[:2] != orders[4:] and orders[0] != orders[1]


def test_recolouring_is_that_of_hsv() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    for saturation, value in ((1.0, 1.0), (0.3, 1.0), (1.7, 1.0), (1.0, 0.6), (1.4, 1.3)):
        wanted = np.stack((hsv[..., 0], (hsv[..., 1] * saturation).clip(0, 1), (hsv[..., 2] * value).clip(0, 1)), -1)
        wanted = cv2.cvtColor(wanted.astype(np.float32), cv2.COLOR_HSV2RGB) * 255
        images = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).float()
        got = gpu_cache.recolour(images, torch.tensor([saturation]), torch.tensor([value]))[0].numpy().transpose(1, 2, 0)
        assert np.abs(got - wanted).max() < 0.1


def test_what_is_not_done_here_is_refused(marked: Any) -> None:
    with pytest.raises(ValueError, match="mosaic, degrees"):
        cached(marked, mosaic=1.0, degrees=5.0)

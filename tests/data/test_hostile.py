"""Hostile input: thousands of broken label files, hundreds of damaged images, random tensors. Nothing crashes, nothing is NaN.

Everything is drawn from seeds, so a failure comes back; the counts that a user may rely on are asserted.
"""

from __future__ import annotations

import io
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from layouts import split_levels
from PIL import Image
from torch import Tensor
from ultralytics.utils.patches import imread

from erpose_yolo import ERPose
from erpose_yolo.data.check import check
from erpose_yolo.data.labels import SLACK, ColumnError, LabelError, parse_labels
from erpose_yolo.method.assigner import NO_CELL, Candidates, find_candidates, one_to_many, one_to_one
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs
from erpose_yolo.method.losses import ERPoseLoss, Targets
from erpose_yolo.method.oks import object_area, sigmas_for

K = 5
Rng = np.random.Generator
SMALL = {"imgsz": 32, "device": "cpu", "workers": 0, "verbose": False, "plots": False}


# --- label files ----------------------------------------------------------------------------------------------------


def good_row(rng: Rng, k: int, d: int) -> list[str]:
    """A row of one person, with or without its box; numbers in one of the ways that tools write them."""
    keypoints = rng.uniform(0, 1, (k, d))
    if d == 3:
        keypoints[:, 2] = rng.integers(0, 3, k)
    box = [*rng.uniform(0.2, 0.8, 2), *rng.uniform(0, 0.4, 2)] if rng.random() < 0.5 else []
    style = rng.choice(["{:.6f}", "{:g}", "{:.3e}", "{!r}"])
    return ["0", *(style.format(float(v)) for v in [*box, *keypoints.ravel()])]


def column(rng: Rng, row: list[str], of: str, k: int, d: int) -> int:
    """Index of a random column of a kind in a row."""
    keypoints = len(row) - k * d
    if of == "keypoint":
        return keypoints + d * int(rng.integers(k)) + int(rng.integers(2))
    return int(rng.integers(len(row)))


NUMBERS = ["nan", "NaN", "inf", "-inf", "1e999", "-1e999", "infinity"]
WORDS = ["x", "0,5", "0x1p3", "--1", "1.2.3", "null", "½", "1e", "𝟙/𝟚", "\x00", "'0.5'", "#0.5", "0.5;"]


def bad_row(rng: Rng, k: int, d: int) -> list[str]:
    """A row that must be refused."""
    row = good_row(rng, k, d)
    kind = rng.choice(["columns", "number", "word", "class", "far", "box", "visibility", "binary"])
    if kind == "columns":
        wrong = [n for n in range(1, 3 * len(row)) if n not in (1 + k * d, 5 + k * d)]
        return (row * 3)[: int(rng.choice(wrong))]
    if kind == "number":
        row[column(rng, row, "any", k, d)] = str(rng.choice(NUMBERS))
    elif kind == "word":
        row[column(rng, row, "any", k, d)] = str(rng.choice(WORDS))
    elif kind == "class":
        row[0] = str(rng.choice(["-1", "1", "0.5", "1e30", "-0.001", "80"]))
    elif kind == "far":
        at = column(rng, row, "keypoint", k, d)
        row[at] = str(rng.choice(["320", "1.02", "1e308", "1e39", "65504"]))
        if d == 3:
            row[at - (at - (len(row) - k * d)) % d + 2] = "2"  # an unlabelled keypoint may lie anywhere
        else:
            row[at - (at - (len(row) - k * d)) % d : at - (at - (len(row) - k * d)) % d + 2] = ["0.5", row[at]]
    elif kind == "box":
        row = ["0", "0.5", "0.5", "0.2", "0.2", *row[len(row) - k * d :]]
        row[int(rng.integers(3, 5))] = str(rng.choice(["-0.2", "-1e-9", "-1e300", "1.5"]))
    elif kind == "visibility" and d == 3:
        row[len(row) - k * d + 2 + 3 * int(rng.integers(k))] = str(rng.choice(["3", "255", "1e300", "2.5"]))
    else:
        return [bytes(rng.integers(128, 256, 12, dtype=np.uint8)).decode("latin-1") + "\x01" for _ in row]
    return row


def label_file(rng: Rng, k: int, d: int) -> tuple[bytes, int]:
    """A label file, and the line of its first bad row (0: none)."""
    lines = [" ".join(good_row(rng, k, d)) for _ in range(int(rng.choice([0, 1, 2, 5, 60], p=[0.1, 0.3, 0.3, 0.25, 0.05])))]
    for _ in range(int(rng.integers(0, 3))):  # blank lines anywhere
        lines.insert(int(rng.integers(len(lines) + 1)), str(rng.choice(["", "   ", "\t"])))
    if lines and rng.random() < 0.2:
        lines.append(lines[0])  # a duplicate
    first = 0
    if rng.random() < 0.5:
        first = int(rng.integers(len(lines) + 1)) + 1
        lines.insert(first - 1, str(rng.choice([" ", "\t", "  "])).join(bad_row(rng, k, d)))
    if first == 0 and lines and rng.random() < 0.1:  # an empty box and a speck: to be fixed, not refused
        row = good_row(rng, k, d)
        lines.append(" ".join(["0", "0.5", "0.5", *rng.choice(["0", "1e-300", "1e-8"], 2), *row[len(row) - k * d :]]))
    text = str(rng.choice(["\n", "\r\n", "\r"])).join(lines) + str(rng.choice(["", "\n", "\r\n\r\n"]))
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode("utf-8"), first


def test_a_bad_row_is_named_whatever_it_holds(tmp_path: Path) -> None:
    """3,000 files: every good one is read to finite numbers in range, every bad one is refused with file, line and fix."""
    rng = np.random.default_rng(0)
    outcome: Counter[str] = Counter()
    file = tmp_path / "søme låbel 名.txt"
    for number in range(3000):
        k, d = (int(rng.choice([1, 2, 5, 17, 133], p=[0.2, 0.2, 0.4, 0.15, 0.05])), int(rng.integers(2, 4)))
        data, first = label_file(rng, k, d)
        file.write_bytes(data)
        size = tuple(int(10 ** rng.uniform(1, 4)) for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                classes, boxes, keypoints = parse_labels(file, (k, d), 1, size)
            except LabelError as error:
                outcome[type(error).__name__] += 1
                assert first and str(error).startswith(f"{file}:{first}: "), (number, first, str(error))
                assert re.search(r"Fix|fix", str(error)), str(error)
                continue
        outcome["read"] += 1
        assert not first, (number, data)
        assert classes.shape == (len(boxes), 1) and boxes.shape == (len(boxes), 4) and keypoints.shape == (len(boxes), k, 3)
        for part in (classes, boxes, keypoints):
            assert part.dtype == np.float32 and np.isfinite(part).all(), number
        assert (classes == 0).all() and ((keypoints[..., 2] >= 0) & (keypoints[..., 2] <= 2)).all()
        assert (boxes >= -SLACK).all() and (boxes <= 1 + SLACK).all() and (boxes[:, 2:] > 0).all(), (number, boxes)
        seen = keypoints[keypoints[..., 2] > 0][:, :2]
        assert (seen >= -SLACK).all() and (seen <= 1 + SLACK).all() and (keypoints[keypoints[..., 2] == 0] == 0).all()
    print(dict(outcome))
    assert outcome.total() == 3000 and outcome["read"] > 1000 and outcome["LabelError"] > 500 and outcome["ColumnError"] > 100


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """1,000 files of bytes that no tool wrote: damaged label files, other encodings, images, noise."""
    rng = np.random.default_rng(1)
    outcome: Counter[str] = Counter()
    file = tmp_path / "a.txt"
    for number in range(1000):
        data, first, kind = bytearray(), 1, number % 5
        while first:  # damage is done to good files
            text, first = label_file(rng, K, 3)
            data = bytearray(text)
        if kind == 0:
            data = bytearray(rng.integers(0, 256, int(rng.integers(0, 400)), dtype=np.uint8).tobytes())
        elif kind == 1:
            data = bytearray(data.decode().encode(str(rng.choice(["utf-16", "utf-16-le", "utf-32"]))))
        elif kind == 2:
            data = data[: int(rng.integers(len(data) + 1))]
        elif data:
            for at in rng.integers(0, len(data), int(rng.integers(1, 6))):
                data[at] = int(rng.integers(256)) if kind == 3 else int(rng.choice(list(b"0123456789. \n")))
        file.write_bytes(bytes(data))
        try:
            parts = parse_labels(file, (K, 3), 2, (64, 48))
        except LabelError as error:
            assert re.match(re.escape(str(file)) + r":\d+: ", str(error)), str(error)
            outcome["refused"] += 1
        else:
            assert all(np.isfinite(part).all() for part in parts)
            outcome["read"] += 1
    print(dict(outcome))
    assert outcome.total() == 1000 and outcome["refused"] > 400 and outcome["read"] > 50


# --- images ---------------------------------------------------------------------------------------------------------


def scene(rng: Rng, height: int = 40, width: int = 56) -> Image.Image:
    """A smooth image, so that it compresses."""
    noise = rng.integers(0, 255, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "JPEG2000": "jp2"}


def cut(rng: Rng) -> tuple[str, bytes]:
    kind = str(rng.choice(list(FORMATS)))
    data = encoded(scene(rng), kind)
    return FORMATS[kind], data[: int(len(data) * rng.uniform(0, 0.98))]


def flipped(rng: Rng) -> tuple[str, bytes]:
    """Bytes changed anywhere but in the end mark: the header may be whole and the pixels not."""
    kind = str(rng.choice(["JPEG", "JPEG", "WEBP", "BMP", "TIFF", "JPEG2000"]))
    data = bytearray(encoded(scene(rng), kind))
    for at in rng.integers(2, len(data) - 2, int(rng.integers(1, 12))):
        data[at] = int(rng.integers(256))
    return FORMATS[kind], bytes(data)


def tiny(rng: Rng) -> tuple[str, bytes]:
    return "png", encoded(scene(rng, *(int(s) for s in rng.choice([1, 2, 9, 10, 11], 2))), "PNG")


def deep(rng: Rng) -> tuple[str, bytes]:
    """16 bits, 32 bits and floats per channel."""
    grey = rng.random((40, 56)).astype(np.float32)
    which = int(rng.integers(4))
    if which == 0:
        return "png", cv2.imencode(".png", (grey * 65535).astype(np.uint16))[1].tobytes()
    if which == 1:
        return "png", cv2.imencode(".png", (np.dstack([grey] * 3) * 65535).astype(np.uint16))[1].tobytes()
    if which == 2:
        return "tif", encoded(Image.fromarray(grey), "TIFF")
    return "tif", encoded(Image.fromarray((grey * 2**31).astype(np.int32)), "TIFF")


def other_mode(rng: Rng) -> tuple[str, bytes]:
    """CMYK, alpha, grey, palette, one bit, luminance and alpha, progressive and several pages."""
    kind, mode, options = [
        ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("WEBP", "RGBA", {}), ("PNG", "L", {}), ("JPEG", "L", {}), ("PNG", "P", {}),
        ("PNG", "1", {}), ("PNG", "LA", {}), ("TIFF", "RGBA", {}), ("TIFF", "CMYK", {}), ("JPEG", "YCbCr", {}),
        ("JPEG", "RGB", {"progressive": True}), ("TIFF", "RGB", {"save_all": True, "append_images": [scene(rng)]}),
        ("TIFF", "LAB", {}),
    ][int(rng.integers(14))]  # fmt: skip
    image = scene(rng)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    return FORMATS[str(kind)], encoded(image.convert(str(mode)), str(kind), **options)  # type: ignore[arg-type]


def turned(rng: Rng) -> tuple[str, bytes]:
    """EXIF orientations, also ones that do not exist."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 11))
    kind = str(rng.choice(["JPEG", "PNG", "WEBP", "TIFF"]))
    return FORMATS[kind], encoded(scene(rng), kind, exif=exif)


def stretched(rng: Rng) -> tuple[str, bytes]:
    """12,000 px on one side, a few on the other."""
    sides = (12000, int(rng.choice([1, 10, 40])))
    return "png", encoded(scene(rng, *(sides if rng.random() < 0.5 else sides[::-1])), "PNG")


def misnamed(rng: Rng) -> tuple[str, bytes]:
    """A suffix that lies, and files that are no images at all."""
    which = int(rng.integers(6))
    if which < 3:
        kind = ["PNG", "GIF", "WEBP"][which]
        return "jpg", encoded(scene(rng), kind)
    return str(rng.choice(["jpg", "png", "tif", "bmp"])), [b"", b"<html>404</html>", rng.bytes(300)][which - 3]


def trailing(rng: Rng) -> tuple[str, bytes]:
    """What some cameras append to a JPEG."""
    return "jpg", encoded(scene(rng), "JPEG") + rng.bytes(int(rng.integers(1, 40)))


IMAGES: list[Callable[[Rng], tuple[str, bytes]]] = [
    cut, cut, flipped, flipped, tiny, deep, other_mode, turned, stretched, misnamed, trailing,
]  # fmt: skip
STEMS = ["plain", "with space", "ünïcödé 名前", "a.b.c", "[0]", "100%", "q'uote", "emoji 🙂", "-dash", "#1", "$HOME", "x" * 120]
SURE = {"other_mode", "turned"}  # kinds of which every image is whole


def write_images(root: Path, count: int) -> dict[Path, str]:
    """Images of all kinds with odd names below ``root``, and what they are."""
    rng = np.random.default_rng(2)
    made = {}
    for number in range(count):
        make = IMAGES[number % len(IMAGES)]
        suffix, data = make(rng)
        suffix = suffix.upper() if rng.random() < 0.1 else suffix
        file = root / f"{STEMS[number % len(STEMS)]} {number}.{suffix}"
        file.write_bytes(data)
        made[file] = make.__name__
    return made


ROW = "0 0.5 0.5 0.6 0.8 " + " ".join(f"{0.3 + 0.1 * i:.2f} {0.2 + 0.15 * i:.2f} 2" for i in range(K))


@pytest.fixture(scope="module")
def hostile_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int], dict[Path, str]]:
    """A data set of 2,000 hostile label files and 500 hostile images.

    Returns:
        The data YAML; label files with the line of their first bad row (0: none), wrong numbers of columns left out since
        these stop a run before it starts; and the images with their kinds.
    """
    root = tmp_path_factory.mktemp("hostile set ö")
    rng = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
        (root / kind / "val").mkdir(parents=True)
    good = [encoded(scene(rng), "JPEG") for _ in range(8)]
    labels: dict[Path, int] = {}
    while len(labels) < 2000:
        stem = f"label {len(labels):04d}"
        file = root / "labels" / "train" / f"{stem}.txt"
        data, first = label_file(rng, K, 3)
        file.write_bytes(data)
        try:
            parse_labels(file, (K, 3), 1, (56, 40))
        except ColumnError:
            continue  # overwritten by the next
        except LabelError:
            pass
        labels[file] = first
        (root / "images" / "train" / f"{stem}.jpg").write_bytes(good[len(labels) % 8])
    images = write_images(root / "images" / "train", 500)
    for number, image in enumerate(images):
        (root / "labels" / "train" / image.name).with_suffix(".txt").write_text(ROW)
        if number % 5 == 0:
            shutil.copy(image, root / "images" / "val")
            (root / "labels" / "val" / image.name).with_suffix(".txt").write_text(ROW)
    cfg = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "person"}, "kpt_shape": [K, 3]}
    (root / "data.yaml").write_text(yaml.safe_dump({**cfg, "flip_idx": list(range(K))}))
    return root / "data.yaml", labels, images


@pytest.mark.slow
def test_a_run_on_hostile_files(
    hostile_set: tuple[Path, dict[Path, int], dict[Path, str]], tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 label files and 500 images: each is trained on or named with what is wrong; no crash, no NaN anywhere.

    And the linter, looking at the same files, has an error for every file that training leaves out.
    """
    data, labels, images = hostile_set
    linted = {f.file for f in check(data, ["train"], deep=True).findings if f.error}  # first: the stock check fixes JPEGs

    def no_pip(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a damaged file made ultralytics run pip")

    monkeypatch.setattr("ultralytics.utils.checks.check_requirements", no_pip)
    used: set[str] = set()
    losses: list[bool] = []

    def start(trainer: Any) -> None:
        used.update(trainer.train_loader.dataset.im_files)

    def batch_end(trainer: Any) -> None:  # before stock code swaps NaN weights for older ones
        losses.append(bool(trainer.loss.isfinite()) and all(bool(p.isfinite().all()) for p in trainer.model.parameters()))

    model = ERPose("erpose-n.yaml")
    model.add_callback("on_train_start", start)
    model.add_callback("on_train_batch_end", batch_end)
    model.train(data=str(data), epochs=1, batch=32, project=str(tmp_path), name="r", **SMALL)
    assert len(losses) > 40 and all(losses)

    left_out = {m.split(": left out. ")[0].rpartition("train: ")[2]: m for m in "\n".join(log).splitlines() if ": left out. " in m}
    for file, first in labels.items():
        image = str(data.parent / "images" / "train" / f"{file.stem}.jpg")
        assert (image in used) == (not first)
        if first:
            message = next(m for name, m in left_out.items() if name.endswith(image))
            assert f"{file}:{first}: " in message and re.search("[Ff]ix", message), message
            assert file in linted, message
    trained = Counter()
    for image, kind in images.items():
        message = next((m for name, m in left_out.items() if name.endswith(str(image))), None)
        assert (str(image) in used) == (message is None), (image, message)
        trained[kind, message is None] += 1
        if message is not None:
            assert "Fix: replace or remove the image" in message
            assert kind not in SURE, message
            assert image in linted, (kind, message)
    print(dict(trained))
    assert sum(trained.values()) == 500 and all(trained[kind, False] for kind in ("cut", "flipped", "tiny", "misnamed"))
    saved = torch.load(tmp_path / "r" / "weights" / "last.pt", weights_only=False)
    assert all(v.isfinite().all() for v in (saved["ema"] or saved["model"]).state_dict().values())


@pytest.mark.slow
def test_predict_on_hostile_images(tmp_path: Path, log: list[str]) -> None:
    """A folder with damaged images: the readable ones are predicted on, the others are named, none ends the run."""
    images = write_images(tmp_path, 500)
    for image in list(images):
        try:
            imread(image)
        except cv2.error:  # a damaged header with sides beyond OpenCV's limit: the stock loader does not catch it
            image.unlink()
            del images[image]
    assert len(images) > 490
    done = {r.path for r in ERPose("erpose-n.yaml").predict(tmp_path, stream=True, imgsz=32, device="cpu", verbose=False)}
    named = {m.rpartition("Image Read Error ")[2] for m in log if "Image Read Error" in m}
    assert done | named == set(map(str, images)) and not done & named
    assert all(str(p) in done for p, kind in images.items() if kind in SURE) and len(named) > 100


# --- assigner -----------------------------------------------------------------------------------------------------------

STRIDES = [8.0, 16.0, 32.0]


def levels(height: int, width: int) -> list[tuple[int, int]]:
    return [(height // int(s), width // int(s)) for s in STRIDES]


def random_people(g: torch.Generator, n: int, k: int, size: int, far: float) -> Tensor:
    """(N, K, 3) persons of every size, some on one point, some ``far`` images away; at least one labelled keypoint each."""
    scale = size * 10 ** (torch.rand(n, 1, 1, generator=g) * 4 - 3)
    centre = torch.rand(n, 1, 2, generator=g) * size * 2 - size / 2
    centre = torch.where(torch.rand(n, 1, 1, generator=g) < 0.05, centre * far, centre)
    xy = centre + scale * torch.randn(n, k, 2, generator=g) * (torch.rand(n, 1, 1, generator=g) > 0.1)
    seen = torch.randint(0, 3, (n, k, 1), generator=g).float()
    seen[torch.arange(n), torch.randint(0, k, (n,), generator=g)] = 2
    return torch.cat((xy, seen), 2)


def distinct(g: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Random positive numbers of a type, no two alike where it has enough of them: random bit patterns, denormals included."""
    count = shape[0] * shape[1]
    last = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}[dtype]
    if dtype == torch.float32:
        bits = (torch.randperm(1 << 20, generator=g)[:count] * (last >> 20)).int()
    else:
        bits = torch.randperm(last, generator=g)[:count].to(torch.int16)
    return bits.view(dtype).view(shape)


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.slow
def test_assignment_of_random_tensors() -> None:
    """1,500 crowds of 0 to 500 persons with 1 to 133 keypoints, ranks in three float types.

    Exactly one cell per person and one person per cell; nobody is left out while a candidate is free; the order of persons,
    other images, and columns without a cell change nothing.
    """
    persons = assigned = 0
    for seed in range(1500):
        g = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, g: torch.Generator = g) -> int:
            return int(torch.randint(low, high, (1,), generator=g))

        k = (1, 2, 5, 17, 133)[seed % 5]
        dtype = DTYPES[seed % 3]
        window = (1, 3, 7)[draw(0, 3)]
        n = min(draw(0, 12) if seed % 4 else draw(0, 501), 30000 // (3 * window**2))
        n = min(500, 100000 // (3 * window**2)) if seed % 300 == 299 else n  # more than a half type has numbers for: ties
        shapes = levels(32 * draw(1, 5), 32 * draw(1, 5))
        cells = sum(h * w for h, w in shapes)
        keypoints = random_people(g, n, k, 96, 1e4).to(dtype)
        area = (10 ** (torch.rand(n, generator=g) * 4)).to(dtype)
        found = find_candidates(keypoints, area, shapes, STRIDES, center_sampling_window=window)
        assert found.cell.shape == (n, 3 * window**2) and found.centre.isfinite().all()
        assert found.cell.max(initial := torch.tensor(-1)).lt(cells).all() if n else initial < 0
        assert (found.valid.any(1)).all(), seed  # nobody goes without a candidate
        image = torch.randint(0, 4, (n,), generator=g)
        ties = n * found.cell.shape[1] > 30000
        rank = torch.rand(n, found.cell.shape[1], generator=g).to(dtype) if ties else distinct(g, found.cell.shape, dtype)

        column = one_to_one(rank, found, image, cells)
        got = column != NO_CELL
        cell = found.cell.gather(1, column.clamp(min=0)[:, None])[:, 0]
        where = image * cells + cell
        assert (cell[got] >= 0).all() and len(where[got].unique()) == int(got.sum()), seed
        taken = torch.zeros(4 * cells, dtype=torch.bool)
        taken[where[got]] = True
        open_to = found.valid & ~taken[(image[:, None] * cells + found.cell).clamp(min=0)]
        assert not open_to[~got].any(), seed
        chosen = one_to_many(rank, found, image, cells, 1 + seed % 13)
        claims = (image[:, None] * cells + found.cell)[chosen]
        assert not (chosen & ~found.valid).any() and len(claims.unique()) == len(claims)
        assert (chosen.sum(1) <= 1 + seed % 13).all()
        persons, assigned = persons + n, assigned + int(got.sum())
        if ties:
            continue

        order = torch.randperm(n, generator=g)
        moved = Candidates(found.cell[order], found.centre[order], found.stride[order])
        assert torch.equal(one_to_one(rank[order], moved, image[order], cells), column[order]), seed
        assert torch.equal(one_to_many(rank[order], moved, image[order], cells, 1 + seed % 13), chosen[order]), seed
        pad = draw(0, 5)
        wide = Candidates(
            torch.cat((found.cell, torch.full((n, pad), NO_CELL)), 1),
            torch.cat((found.centre, torch.zeros(n, pad, 2)), 1),
            torch.cat((found.stride, torch.ones(n, pad)), 1),
        )
        padding = torch.tensor([0.0, 1.0, float("inf"), float("nan"), 60000.0])[:pad].to(dtype).expand(n, pad)
        padded, away = torch.cat((rank, padding), 1), image * 3 + 2
        assert torch.equal(one_to_one(padded, wide, away, cells), column), seed
        assert torch.equal(one_to_many(padded, wide, away, cells, 1 + seed % 13)[:, : chosen.shape[1]], chosen), seed
    print(f"{persons} persons, {assigned} with a cell")
    assert persons > 50000 and 0.3 * persons < assigned < persons


# --- loss ---------------------------------------------------------------------------------------------------------------


def random_batch(
    g: torch.Generator, b: int, k: int, n: int, size: int, dtype: torch.dtype, wild: float
) -> tuple[dict[str, Tensor], Targets]:
    """Raw outputs of this spread, at most the largest that a half type takes, and targets with ignore regions."""
    shapes = levels(size, size)
    cells = sum(h * w for h, w in shapes)

    def draw(*shape: int) -> Tensor:
        value = (torch.randn(*shape, generator=g) * wild).clamp(-6e4, 6e4).to(dtype)
        # gradients of absurd outputs are finite, but can be more than a half type holds: a scaler skips such a step
        return (value if wild <= 1 else value.float()).requires_grad_()

    outputs = {"offsets": draw(b, k, 2, cells), "log_spread": draw(b, k, cells), "visibility": draw(b, k, cells)}
    if int(torch.randint(0, 2, (1,), generator=g)):
        outputs["refinement"] = draw(b, 3 * k, cells)
    outputs |= {"one2many": draw(b, 1, cells), "one2one": draw(b, 1, cells), "heatmaps": draw(b, k, shapes[0][0] * shapes[0][1])}
    keypoints = random_people(g, n, k, size, 100.0)
    low = torch.where(keypoints[..., 2:] > 0, keypoints[..., :2], torch.inf).amin(1)
    high = torch.where(keypoints[..., 2:] > 0, keypoints[..., :2], -torch.inf).amax(1)
    box = torch.cat((low, high), 1)
    regions = int(torch.randint(0, 3, (1,), generator=g))
    return outputs, Targets(
        image=torch.randint(0, b, (n,), generator=g),
        keypoints=keypoints,
        box=box,
        area=object_area(box),
        category=torch.zeros(n, dtype=torch.long),
        ignore_image=torch.randint(0, b, (regions,), generator=g),
        ignore_box=torch.tensor([[5.0, 5.0, 30.0, 40.0], [0.0, 0.0, 1e4, 1e4]])[:regions],
    )


def packed(leaves: dict[str, Tensor], size: int) -> HeadOutputs:
    """What a head of one pose branch returns, made of leaves."""
    shapes, maps = levels(size, size), leaves.get("refinement")
    parts = [leaves[name] for name in ("offsets", "visibility", "log_spread")]
    pose = PoseOutputs(*parts, None if maps is None else split_levels(maps, shapes))
    return HeadOutputs(pose, pose, leaves.get("one2many"), leaves.get("one2one"), leaves["heatmaps"], shapes)


@pytest.mark.slow
def test_loss_of_random_tensors() -> None:
    """1,000 batches of 0 to 500 persons with 1 to 133 keypoints, outputs in three float types and up to 60,000.

    Loss and every gradient are finite. The order of the persons changes nothing; empty images and unlabelled keypoints that pad a
    batch do not change the loss of poses.
    """
    persons = compared = 0
    for seed in range(1000):
        g = torch.Generator().manual_seed(seed)
        k, dtype, size = (1, 2, 5, 17, 133)[seed % 5], DTYPES[seed % 3], (32, 64)[seed % 2]
        n = int(torch.randint(0, 501 if seed % 50 == 0 else 9, (1,), generator=g))
        n = min(n, 100) if k == 133 else n
        n = 500 if seed % 500 == 1 else n
        missing, weight = ((None, (0.8, 0.1)), ("one2many", (0.0, 0.0)), ("one2one", (1.0, 1.0)))[seed % 7 % 3]
        mild = seed % 4 < 2  # no rank underflows, so there are no ties for the order of persons to break
        wild = 1.0 if mild else 10 ** float(torch.rand(1, generator=g) * 5 - 1)
        outputs, targets = random_batch(g, 2, k, n, size, dtype, wild)
        outputs.pop(missing, None)
        progress = 0.0 if mild else float(torch.rand(1, generator=g))
        criterion = ERPoseLoss(sigmas_for(k), STRIDES, one2many_weight=weight)
        total, items = criterion(packed(outputs, size), targets, progress)
        total.backward()
        assert total.isfinite() and all(v.isfinite() for v in items.values()), seed
        assert all(v.grad is not None and v.grad.isfinite().all() for v in outputs.values()), seed
        persons += n
        if n > 60 or not mild:
            continue
        compared += 1

        with torch.no_grad():
            order = torch.randperm(n, generator=g)
            fields = {f: getattr(targets, f)[order] for f in ("image", "keypoints", "box", "area", "category")}
            shuffled = Targets(**fields, ignore_image=targets.ignore_image, ignore_box=targets.ignore_box)
            _, again = criterion(packed(outputs, size), shuffled, progress)
            for name, value in items.items():
                torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6, msg=f"{seed} {name}")

            empty = {name: torch.cat((v, torch.randn(1, *v.shape[1:], generator=g).to(dtype))) for name, v in outputs.items()}
            _, more = criterion(packed(empty, size), targets, progress)
            pad = 1 + seed % 3
            taller = {
                name: torch.cat((v, torch.randn(2, pad * (v.shape[1] // k), *v.shape[2:], generator=g).to(dtype)), 1)
                if name in ("offsets", "log_spread", "visibility", "refinement", "heatmaps")
                else v
                for name, v in outputs.items()
            }
            keypoints = torch.cat((targets.keypoints, torch.zeros(n, pad, 3)), 1)
            unseen = Targets(**{**vars(targets), "keypoints": keypoints})
            sigmas = torch.cat((sigmas_for(k), torch.full((pad,), 0.1)))
            _, padded = ERPoseLoss(sigmas, STRIDES, one2many_weight=weight)(packed(taller, size), unseen, progress)
            for other in (more, padded):
                torch.testing.assert_close(other["pose_loss"], items["pose_loss"], rtol=1e-4, atol=1e-6, msg=str(seed))
            for name in ("cls_loss", "o2o_loss"):
                torch.testing.assert_close(padded[name], items[name], rtol=1e-4, atol=1e-6, msg=f"{seed} {name}")
    print(f"{persons} persons, {compared} batches compared")
    assert persons > 4000 and compared > 450

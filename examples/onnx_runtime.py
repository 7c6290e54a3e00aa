"""ER-Pose with numpy, onnxruntime and an image reader: no torch, no ultralytics, and no NMS, as there is none to do.

pip install numpy onnxruntime opencv-python
yolo export model=best.pt format=onnx imgsz=640            # once, where ultralytics is installed
python examples/onnx_runtime.py best.onnx street.jpg --out street-pose.png
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

COCO_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
COCO_NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
COLOURS = ((255, 111, 56), (49, 210, 255), (151, 157, 255), (61, 219, 134), (187, 212, 0), (255, 115, 200), (89, 105, 255))


class Model:
    """An exported ER-Pose model: float32 or float16, top-k or dense rows, fixed or dynamic size.

    Attributes:
        size: (height, width) of the network input.
        keypoints, columns: K and D of ``kpt_shape``.
        classes, keypoint_names, limbs: names per class index, names per keypoint, pairs of keypoint indices.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes have no common base of their own
            raise ValueError(f"{path} is not an ONNX model that can be opened: {error}") from None
        info = {}
        for key, text in self.session.get_modelmeta().custom_metadata_map.items():
            try:
                info[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                info[key] = text  # plain words
        entry = self.session.get_inputs()[0]
        self.keypoints, self.columns = info.get("kpt_shape") or (0, 0)
        ours = info.get("task") == "pose" and info.get("head", "ERPoseHead") == "ERPoseHead"
        if not ours or not self.keypoints or len(entry.shape) != 4:
            raise ValueError(f"{path} is not an ER-Pose model (its metadata say: task {info.get('task')}, head {info.get('head')})")
        self.input, self.dtype = entry.name, np.float16 if "float16" in entry.type else np.float32
        self.batch = entry.shape[0] if isinstance(entry.shape[0], int) else 1
        fixed = all(isinstance(n, int) for n in entry.shape[2:])
        self.size = tuple(entry.shape[2:] if fixed else info["imgsz"])
        self.classes = info.get("names") or {}
        names = info.get("kpt_names") or (COCO_NAMES if self.keypoints == 17 else range(self.keypoints))
        self.keypoint_names = list(next(iter(names.values())) if isinstance(names, dict) else names)  # kept per class, or plain
        self.limbs = info.get("skeleton") or (COCO_LIMBS if self.keypoints == 17 else ())

    def letterbox(self, image: np.ndarray) -> tuple[np.ndarray, tuple[float, float, int, int]]:
        """Fit a BGR image into the input: (1, 3, H, W) and the scales and padding x, y that lead back."""
        (h, w), (height, width) = image.shape[:2], self.size
        ratio = min(height / h, width / w)
        new_h, new_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
        top, left = round((height - new_h) / 2 - 0.1), round((width - new_w) / 2 - 0.1)
        canvas = np.full((height, width, 3), 114, np.uint8)
        resized = image if (h, w) == (new_h, new_w) else cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
        canvas[top : top + new_h, left : left + new_w] = resized
        blob = np.ascontiguousarray(canvas[None, ..., ::-1].transpose(0, 3, 1, 2), dtype=self.dtype) / self.dtype(255)
        return blob, (new_w / w, new_h / h, left, top)

    def __call__(self, image: np.ndarray, conf: float = 0.25, max_det: int = 300) -> np.ndarray:
        """Persons of a BGR image, best first: (n, 6 + K*D) rows ``x1 y1 x2 y2 score class keypoints`` in its pixels."""
        blob, (scale_x, scale_y, left, top) = self.letterbox(image)
        rows = self.session.run(None, {self.input: blob.repeat(self.batch, 0)})[0][0].astype(np.float32)
        if rows.shape[1:] != (6 + self.keypoints * self.columns,):
            raise ValueError(f"rows of {rows.shape[-1]} numbers; {self.keypoints} keypoints of {self.columns} take another layout")
        rows = rows[rows[:, 4] > conf]  # all there is to do: one person has one row
        rows = rows[np.argsort(-rows[:, 4], kind="stable")][:max_det]
        h, w = image.shape[:2]
        keypoints = rows[:, 6:].reshape(len(rows), self.keypoints, self.columns)  # a view: changes rows
        for xy in (rows[:, 0:2], rows[:, 2:4], keypoints[..., :2]):
            xy[:] = ((xy - (left, top)) / (scale_x, scale_y)).clip(0, (w, h))
        return rows

    def draw(self, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A copy of the image with skeletons and scores; keypoints below one half visibility are left out."""
        out = image.copy()
        width = max(1, round(sum(image.shape[:2]) / 500))
        for index, row in enumerate(rows):
            colour, keypoints = COLOURS[index % len(COLOURS)], row[6:].reshape(self.keypoints, self.columns)
            seen = keypoints[:, 2] >= 0.5 if self.columns == 3 else np.ones(self.keypoints, bool)
            points = [(round(float(x)), round(float(y))) for x, y in keypoints[:, :2]]
            for a, b in self.limbs:
                if seen[a] and seen[b]:
                    cv2.line(out, points[a], points[b], colour, width, cv2.LINE_AA)
            for k in np.flatnonzero(seen):
                cv2.circle(out, points[k], width + 1, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(out, points[k], width, colour, -1, cv2.LINE_AA)
            corner = (int(row[0]), max(int(row[1]) - 4, 14))
            for ink, weight in (((0, 0, 0), 4), (colour, 1)):
                cv2.putText(out, f"{row[4]:.2f}", corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, weight, cv2.LINE_AA)
        return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Multi-person pose from an exported ER-Pose model, without torch.")
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument("image", type=Path, help="the image")
    parser.add_argument("--out", type=Path, default=Path("pose.png"), help="where the drawing goes (default: pose.png)")
    parser.add_argument("--conf", type=float, default=0.25, help="least score of a person (default: 0.25)")
    parser.add_argument("--rows", type=Path, help="also save the rows as .npy")
    args = parser.parse_args(argv)
    try:
        for path in (args.model, args.image):
            if not path.is_file():
                raise ValueError(f"there is no file {path}")
        model = Model(args.model)
        image = cv2.imdecode(np.fromfile(args.image, np.uint8), cv2.IMREAD_COLOR) if args.image.stat().st_size else None
        if image is None:
            raise ValueError(f"{args.image} is not an image that OpenCV can read")
        rows = model(image, args.conf)
        if not cv2.imwrite(str(args.out), model.draw(image, rows)):
            raise ValueError(f"{args.out} could not be written")
    except (ValueError, cv2.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.rows:
        np.save(args.rows, rows)
    for number, row in enumerate(rows, 1):
        keypoints = row[6:].reshape(model.keypoints, model.columns)
        named = zip(model.keypoint_names, keypoints)
        shown = [f"{name} {p[0]:.0f},{p[1]:.0f}" for name, p in named if model.columns == 2 or p[2] >= 0.5]
        who, what = model.classes.get(int(row[5]), "person"), "  ".join(shown) or "no visible keypoint"
        print(f"{who} {number}  score {row[4]:.2f}  {what}")
    print(f"{len(rows)} in {args.image}, drawn in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

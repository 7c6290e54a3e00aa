"""``supervision``, which nobody here wrote, reads and draws our results."""

from __future__ import annotations

import numpy as np
import pytest

supervision = pytest.importorskip("supervision", reason="test dependency: pip install supervision")


@pytest.fixture(scope="module")
def result():
    """Poses of a network with random weights: any score will do."""
    import torch

    from erpose_yolo import ERPose

    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    return ERPose("erpose-n.yaml").predict(image, conf=1e-6, max_det=5, imgsz=160, device="cpu", verbose=False)[0]


def test_key_points(result) -> None:
    points = supervision.KeyPoints.from_ultralytics(result)
    assert len(points) == len(result) == 5 and points.xy.shape == (5, 17, 2)
    assert np.array_equal(points.xy, result.keypoints.xy.numpy())
    confidence = getattr(points, "keypoint_confidence", None)
    confidence = points.confidence if confidence is None else confidence  # its name before 0.27
    assert np.array_equal(confidence, result.keypoints.conf.numpy())
    assert points.class_id.tolist() == [0] * 5
    assert points.data["class_name"].tolist() == [result.names[0]] * 5


def test_annotators_draw(result) -> None:
    points = supervision.KeyPoints.from_ultralytics(result)
    points.xy[:] = np.random.default_rng(1).uniform(10, 110, points.xy.shape)  # inside the image, apart
    blank = np.zeros((120, 160, 3), np.uint8)
    vertices = supervision.VertexAnnotator(radius=2).annotate(blank.copy(), points)
    edges = supervision.EdgeAnnotator(thickness=1).annotate(blank.copy(), points)  # finds COCO's skeleton by 17 keypoints
    assert vertices.any() and edges.any() and not np.array_equal(vertices, edges)
    x, y = points.xy[0, 0].astype(int)
    assert vertices[y, x].any()


def test_no_persons(result) -> None:
    assert len(supervision.KeyPoints.from_ultralytics(result[:0])) == 0


def test_covariances(result) -> None:
    """Error bars go where supervision's annotators look for them, as its own connector leaves them out."""
    if not hasattr(supervision, "VertexEllipseOutlineAnnotator"):
        pytest.skip("this supervision has no annotators of covariances; 0.31 has")
    points = supervision.KeyPoints.from_ultralytics(result)
    points.data["covariance"] = result.numpy().erpose.covariance
    points.xy[:] = np.random.default_rng(1).uniform(30, 90, points.xy.shape)
    blank = np.zeros((120, 160, 3), np.uint8)
    drawn = supervision.VertexEllipseOutlineAnnotator().annotate(blank.copy(), points)
    assert drawn.any()
    few = points[:2]
    assert np.array_equal(few.data["covariance"], result[:2].numpy().erpose.covariance)

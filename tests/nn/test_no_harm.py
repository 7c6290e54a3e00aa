"""Beside this package, stock models train, predict and export as without it: to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a stock user does in one process; prints what this package did to it, then hashes of what came out.
STOCK = """
import hashlib, json, sys
from pathlib import Path
import torch
from ultralytics import YOLO

data, folder = Path(sys.argv[1]), sys.argv[2]
small = {"imgsz": 64, "device": "cpu", "verbose": False}

def digest(tensors):
    return hashlib.sha256(b"".join(t.float().contiguous().numpy().tobytes() for t in tensors)).hexdigest()

model = YOLO("yolo26n-pose.yaml")
losses = []
model.add_callback("on_train_batch_end", lambda trainer: losses.append(trainer.loss.detach().clone()))
model.train(data=str(data), epochs=1, batch=4, plots=False, val=False, project=folder, name="run", **small)
trained = YOLO(f"{folder}/run/weights/last.pt")
results = trained.predict(data.parent / "images" / "val", conf=0.0001, **small)
extra = {"config.txt": ""}
torch.jit.load(trained.export(format="torchscript", **small), _extra_files=extra)
metadata = json.loads(extra["config.txt"])
metadata.pop("date")
print("package:", hasattr(YOLO.__init__, "__erpose__"), "erpose_yolo.model" in sys.modules)
print("losses:", digest(losses), [type(m).__module__ for m in (model, model.trainer, model.trainer.validator)])
print("weights:", digest(trained.model.state_dict().values()))
print("predictions:", digest([r.boxes.data for r in results] + [r.keypoints.data for r in results]), sum(map(len, results)))
print("metadata:", json.dumps(metadata, sort_keys=True).replace(folder, ""))
"""


@pytest.mark.slow
def test_stock_models_are_the_same_bit_for_bit(tiny_dataset: Path, tmp_path: Path, repo: Path) -> None:
    """A training of two steps, its predictions and its export, without the package, with the hook, and with all imported."""
    cases = {
        "without": ("0", ""),
        "hook": ("1", "import erpose_yolo\n"),
        "all": ("1", "import erpose_yolo.model\n"),
    }
    found = {}
    for name, (switch, first) in cases.items():
        done = subprocess.run(
            [sys.executable, "-c", first + STOCK, str(tiny_dataset), str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "ERPOSE_AUTOLOAD": switch, "PYTHONPATH": str(repo), "YOLO_VERBOSE": "false"},
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split(": ", 1) for line in done.stdout.splitlines()]
        found[name] = {line[0]: line[1] for line in lines if len(line) == 2}
    states = {name: out.pop("package") for name, out in found.items()}
    assert states == {"without": "False False", "hook": "True False", "all": "True True"}
    assert found["hook"] == found["without"] and found["all"] == found["without"]
    assert found["without"].keys() >= {"losses", "weights", "predictions", "metadata"}
    assert "erpose" not in str(found["without"]) and int(found["without"]["predictions"].split()[1]) > 0

"""ER-Pose's assigner, losses and decode on detectors of torchvision and effdet, against a head in the style of YOLOv8-pose.

    python -m benchmarks.accuracy.graft --grafts ssdlite --images-seen 48000

Each run is one of an example in examples/graft, in a process that never imports ultralytics: the same backbone and neck from
random weights, the same synthetic images, optimiser and number of images seen. AP and AP50 are pycocotools' on held-out
images. A finished run is not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from erpose_yolo.data.synth import SynthConfig, generate

EXAMPLES = Path(__file__).parents[2] / "examples" / "graft"
GRAFTS = {
    "ssdlite": "SSDLite320 MobileNetV3",
    "retinanet": "RetinaNet / FCOS, ResNet-18 FPN",
    "efficientdet": "EfficientDet-D0",
}
# the examples take the 6,000 and 200 whose persons are large
PEOPLE = SynthConfig(images=12000, val_images=500, size=96, people=(1, 2), empty=0.0, plain=True, activities=("stand", "walk"))
STYLES = {"erpose": "ER-Pose, no NMS", "stock": "boxes, IoU, 1 - exp(-e), NMS"}


def run(graft: str, style: str, seed: int, images_seen: int, batch: int, data: Path) -> list[dict[str, Any]]:
    """Train one model.

    Raises:
        subprocess.CalledProcessError: the example failed; its message stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "curve.json")
        options = {"style": style, "seed": seed, "images_seen": images_seen, "batch": batch, "data": data, "out": out}
        words = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([sys.executable, "-W", "ignore", str(EXAMPLES / f"{graft}.py"), *words], check=True)
        return [{"model": f"{graft} {style}", **json.loads(out.read_text())}]


def table(record: common.Record) -> str:
    """The longest run of each graft, style and seed; AP in per cent."""
    rows = []
    for r in {(r["graft"], r["style"], r["seed"]): r for r in record["runs"]}.values():  # the longest budget comes last
        curve = r["curve"]
        thirds = [f"{100 * curve[len(curve) * k // 3 - 1]['AP50']:.1f}" for k in (1, 2, 3)]
        core_minutes = f"{curve[-1]['core_seconds'] / 60:.1f}"
        size = f"{r['parameters'] / 1e6:.2f}"
        ap = f"{100 * curve[-1]['AP']:.1f}"
        rows.append([GRAFTS[r["graft"]], STYLES[r["style"]], size, f"{r['images_seen']:,}", core_minutes, *thirds, ap])
    header = ["backbone and neck", "style", "parameters, M", "images seen", "core min", "AP50 at 33%", "67%", "100%", "AP"]
    return common.markdown(header, rows)


def in_order(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By graft, budget, seed and style."""
    places = list(GRAFTS), list(STYLES)
    return sorted(runs, key=lambda r: (places[0].index(r["graft"]), r["images_seen"], r["seed"], places[1].index(r["style"])))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--grafts", nargs="+", choices=GRAFTS, default=list(GRAFTS))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--images-seen", type=int, default=24000, help="in the training of each model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    cached = Path(tempfile.gettempdir(), "erpose-graft-people")
    parser.add_argument("--data", type=Path, default=cached, help="folder of the images, which are made unless they are there")
    args = parser.parse_args()
    budget = {"images_seen": args.images_seen, "batch": args.batch}
    todo = [{"graft": g, "style": s, "seed": seed, **budget} for seed in args.seeds for g in args.grafts for s in args.styles]
    data = generate(args.data, PEOPLE)
    common.complete("graft", {}, todo, lambda **who: run(**who, data=data), table, in_order)


if __name__ == "__main__":
    main()

"""ER-Pose's assigner, losses and decode on trunks of torchvision and effdet, against a head in the style of YOLOv8-pose.

    python benchmarks/graft.py --grafts ssdlite --passes 48000
    python benchmarks/graft.py --grafts efficientdet

Each contestant is one run of an example in examples/graft, in a process of its own that never imports ultralytics: the
same trunk from random weights, the same synthetic pictures, optimiser and number of image passes. AP and AP50 are
pycocotools' on held-out pictures. A second call goes on where the first was stopped, contestant by contestant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

EXAMPLES = Path(__file__).parents[1] / "examples" / "graft"
GRAFTS = {
    "ssdlite": "SSDLite320 MobileNetV3",
    "retinanet": "RetinaNet / FCOS, ResNet-18 FPN",
    "efficientdet": "EfficientDet-D0",
}
STYLES = {"erpose": "ER-Pose, no NMS", "stock": "boxes, IoU, 1 - exp(-e), NMS"}


def run(graft: str, style: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one contestant.

    Raises:
        subprocess.CalledProcessError: the example failed; its message stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "curve.json")
        options = {"style": style, "seed": seed, "passes": args.passes, "batch": args.batch, "pictures": args.pictures, "out": out}
        if args.by_heart:
            options["by-heart"] = args.by_heart
        words = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([sys.executable, "-W", "ignore", str(EXAMPLES / f"{graft}.py"), *words], check=True)
        return dict(json.loads(out.read_text()))


def table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for r in runs:
        curve = r["curve"]
        thirds = [f"{curve[len(curve) * k // 3 - 1]['AP50']:.3f}" for k in (1, 2, 3)]
        cost = f"{curve[-1]['core_seconds'] / 60:.1f}"
        size = f"{r['parameters'] / 1e6:.2f}"
        rows.append([GRAFTS[r["graft"]], STYLES[r["style"]], size, f"{r['passes']:,}", cost, *thirds, f"{curve[-1]['AP']:.3f}"])
    header = ["trunk", "style", "parameters, M", "image passes", "core min", "AP50 at 33 %", "67 %", "100 %", "AP"]
    return common.markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grafts", nargs="+", choices=GRAFTS, default=list(GRAFTS))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--passes", type=int, default=24000, help="image passes of each contestant")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--by-heart", type=int, metavar="N", help="train and judge on the same N pictures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    kept = Path(tempfile.gettempdir(), "erpose-graft-plain.pkl")
    parser.add_argument("--pictures", type=Path, default=kept, help="kept here; another file for other pictures")
    args = parser.parse_args()

    name = "graft_by_heart" if args.by_heart else "graft"
    file = common.RESULTS / f"{name}.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    for seed in args.seeds:
        for graft in args.grafts:
            for style in args.styles:
                who = {"graft": graft, "style": style, "seed": seed}
                budget = {"passes": args.passes, "batch": args.batch, "by_heart": args.by_heart}
                if not any(all(r[k] == v for k, v in {**who, **budget}.items()) for r in runs):
                    runs.append({**who, **budget, **run(graft, style, seed, args)})
                    places = list(GRAFTS), list(STYLES)
                    runs.sort(key=lambda r: (places[0].index(r["graft"]), r["passes"], r["seed"], places[1].index(r["style"])))
                    common.write(name, {"runs": runs}, table(runs))


if __name__ == "__main__":
    main()

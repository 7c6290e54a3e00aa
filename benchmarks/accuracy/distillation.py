"""What a teacher gives: the same short training without one, with its features, with its poses, and with both.

    python -m benchmarks.accuracy.distillation --data coco-people.yaml --start yolo26n.pt --teacher yolo26n-pose.pt

erpose-n begins with backbone and neck of ``--start``, and ``erpose eval`` evaluates the last weights on the validation split.
"poses" is ``distill_model=``; "features" is what Ultralytics does with that argument, necks' outputs as targets through a
learned projection; it is implemented here, not in the package. The defaults are what two busy cores allow: too short to rank
the rows (all AP below 1). A finished run is not repeated; an interrupted one continues from its last epoch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import unwrap_model

from benchmarks import common
from benchmarks.accuracy.compare import SHORT, TRAIN, judge
from erpose_yolo import ERPose
from erpose_yolo.engine.distillation import DistillingCriterion, Teacher
from erpose_yolo.engine.trainer import ERPoseTrainer

LABELS = ("", "poses", "features", "features and poses")


class FeatureCriterion(DistillingCriterion):
    """The loss of labels, Ultralytics' loss of features, and that of poses where ``poses`` is set."""

    poses = False

    def __init__(self, model: Any, teacher: Teacher, updates: int) -> None:
        super().__init__(model, teacher, updates)
        self.projector, self.dis = model.projector, model.args.dis
        self.seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        for name, network in (("student", model), ("teacher", teacher.model)):
            network.model[-1].register_forward_pre_hook(lambda _, given, name=name: self.seen.update({name: list(given[0])}))

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, items = (super() if self.poses else super(DistillingCriterion, self)).__call__(preds, batch)
        scores = self.teacher(batch["img"]).scores.amax(1, keepdim=True)
        weights = scores.split([f.shape[2] * f.shape[3] for f in self.seen["teacher"]], 2)
        features = sum(
            DistillationModel.loss_sl2(None, to(mine), its, i, weights)  # type: ignore[arg-type]
            for i, (to, mine, its) in enumerate(zip(self.projector, self.seen["student"], self.seen["teacher"]))
        )
        items = {**items, "feature_loss": self.dis * features.detach()}
        return torch.cat((loss, self.dis * features[None] * len(batch["img"]))), items


class FeatureTrainer(ERPoseTrainer):
    """The stock projection of the student's features is trained with it, as a part of it that nothing calls."""

    poses = False

    def set_model_attributes(self) -> None:
        super().set_model_attributes()
        assert self.teacher is not None
        theirs = [tower[0].conv.in_channels for tower in self.teacher.model.model[-1].cv4]
        ours = [tower[0].conv.in_channels for tower in self.model.model[-1].one2one_pose.tower]
        self.model.projector = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1), nn.ReLU(inplace=True), nn.Conv2d(b, b, 1)) for a, b in zip(ours, theirs)
        )

    def _setup_train(self) -> None:
        super()._setup_train()
        network = unwrap_model(self.model)
        network.criterion = FeatureCriterion(network, self.teacher, network.criterion.updates)
        network.criterion.poses = self.poses


class BothTrainer(FeatureTrainer):
    poses = True


def run(model: str, label: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with what the label says, and evaluate the last weights."""
    folder = Path(args.out).absolute() / args.name / f"{label or 'none'}-{seed}".replace(" ", "-")
    last = folder / "weights" / "last.pt"
    before = torch_load(last, map_location="cpu") if last.exists() else None
    begin = time.perf_counter()
    if not before or before["epoch"] >= 0:  # else it came to its end, and was not evaluated
        trainer = {"features": FeatureTrainer, "features and poses": BothTrainer}.get(label, ERPoseTrainer)
        network = ERPose(str(last) if before else f"{model}.yaml")
        network.add_callback("on_train_start", lambda trainer: trainer.model.to(memory_format=torch.channels_last))
        network.train(
            trainer, data=args.data, epochs=args.epochs, imgsz=args.imgsz, batch=args.batch, nbs=args.batch, seed=seed, workers=0,
            fraction=args.fraction, cache="ram", val=False, plots=False, verbose=False, amp=False, device="cpu",
            pretrained=args.start, distill_model=args.teacher if label else None, resume=bool(before),
            project=str(folder.parent), name=folder.name, exist_ok=True, **TRAIN, **SHORT,
        )  # fmt: skip
    seconds = round(time.perf_counter() - begin)
    evaluated = argparse.Namespace(data=args.data, imgsz=args.eval_imgsz, device="cpu")
    return [{"seconds": seconds, **judge(last, evaluated.data, evaluated.imgsz, None, evaluated)[0]}]


def table(record: common.Record) -> str:
    """One row per kind of teaching; AP and rates in per cent."""
    columns = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AR": "AR", "AP_hard": "AP crowded"}
    columns |= {"duplicates": "duplicates / 100 persons", "misses": "misses / 100 persons"}
    rows = []
    for run in record["runs"]:
        figures = [f"{100 * run[key]:.2f}" if run.get(key, -1) >= 0 else "-" for key in columns]
        rows.append([run["label"] or "nothing: labels alone", run["seed"], *figures])
    return common.markdown(["learnt from the teacher", "seed", *columns.values()], rows)


def summary(record: common.Record) -> str:
    """One sentence: the table's AP and misses."""
    setup = record["setup"]
    rows = [f"{100 * r['AP']:.2f}, {100 * r['misses']:.1f} with {r['label'] or 'labels alone'}" for r in record["runs"]]
    budget = f"{setup['epochs']} epochs of {100 * setup['fraction']:.0f} % of {setup['data']}, {setup['imgsz']} px"
    return f"AP, misses per 100 persons: {'; '.join(rows)}; {budget}"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="data YAML")
    parser.add_argument("--start", required=True, help="weights whose backbone and neck erpose-n begins with")
    parser.add_argument("--teacher", required=True, help="pose model")
    parser.add_argument("--only", nargs="*", choices=LABELS, default=LABELS, help="some rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    for name, value in (("epochs", 2), ("imgsz", 192), ("batch", 8), ("eval-imgsz", 320)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--fraction", type=float, default=0.36, help="of the training images")
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"), help="folder for weights")
    parser.add_argument("--name", default="distillation", help="of the result file")
    args = parser.parse_args()
    setup = {"data": "/".join(Path(args.data).parts[-2:]), "start": Path(args.start).name, "teacher": Path(args.teacher).name}
    setup |= {k: getattr(args, k) for k in ("epochs", "imgsz", "batch", "fraction", "eval_imgsz")} | {
        "train": TRAIN,
        "augment": SHORT,
    }
    todo = [{"model": "erpose-n", "label": label, "seed": seed} for seed in args.seeds for label in args.only]
    common.complete(args.name, setup, todo, lambda **who: run(**who, args=args), table)


if __name__ == "__main__":
    main()

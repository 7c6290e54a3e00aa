"""ER-Pose as an Ultralytics model: stock backbone and neck, our head in place of its last row, and the loss for its batches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import PoseModel, yaml_model_load
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.torch_utils import initialize_weights

from erpose_yolo import catalog
from erpose_yolo.data.skeletons import match_names, names_of, read_kpt_shape
from erpose_yolo.method.decode import HeadOutputs
from erpose_yolo.method.losses import ERPoseLoss, Targets
from erpose_yolo.method.oks import lax_sigmas, object_area, sigmas_for
from erpose_yolo.method.settings import Settings
from erpose_yolo.nn import HEAD
from erpose_yolo.nn.head import ERPoseHead, PoseBranch


def load_model_yaml(name: str | Path) -> dict[str, Any]:
    """Read a model YAML of ours into the complete form that Ultralytics parses.

    Two forms are read: ``base: yolo26.yaml`` names a stock YAML whose last row gives way to our head; or the file lists
    ``backbone`` and ``head`` rows itself, the last of them ``[[levels], 1, ERPoseHead, [nc, kpt_shape]]``.

    Args:
        name: shipped name such as ``erpose-n.yaml``, or a path.

    Returns:
        Dictionary with backbone, head, scales, scale, nc, kpt_shape and erpose.

    Raises:
        ValueError: unknown scale, missing kpt_shape, or a YAML that does not end in our head.
        FileNotFoundError: no such YAML.
    """
    found = catalog.find_model(name)
    if found is None:
        raise FileNotFoundError(f"'{name}' is not a model YAML of erpose-yolo. Shipped: {', '.join(catalog.list_models())}.")
    path, scale = found
    cfg = YAML.load(path)
    cfg["kpt_shape"] = read_kpt_shape(cfg.get("kpt_shape"), path)
    if "base" in cfg:
        base = yaml_model_load(check_yaml(cfg.pop("base")))
        rows, (levels, *_) = base["head"][:-1], base["head"][-1]
        keep = {k: v for k, v in base.items() if k in ("backbone", "scales", "activation", "depth_multiple", "width_multiple")}
        cfg = {**keep, **cfg, "head": [*rows, [levels, 1, HEAD, ["nc", "kpt_shape"]]]}
    if not isinstance(cfg.get("head"), list) or cfg["head"][-1][2] != HEAD:
        raise ValueError(f"{path}: the last row of head must be [[levels], 1, {HEAD}, [nc, kpt_shape]], or give 'base:'.")
    if cfg.get("scales"):
        if scale and scale not in cfg["scales"]:
            raise ValueError(f"'{name}' has no scale '{scale}'. The scales of {path.name} are {', '.join(cfg['scales'])}.")
        cfg["scale"] = scale or next(iter(cfg["scales"]))
    cfg["yaml_file"] = str(name)
    Settings.from_dict(cfg.get("erpose"), str(path))  # bad keys are named now, with their file
    return cfg


class ERPoseModel(PoseModel):
    """Stock backbone and neck with an ER-Pose head.

    Args:
        cfg: model name, path, or the dictionary of :func:`load_model_yaml`.
        ch: input channels.
        nc: number of classes, None for the YAML's.
        data_kpt_shape: (K, D) of the data set, (None, None) for the YAML's.
        verbose: print the layers.

    Attributes:
        settings: the ``erpose:`` block, read here for the head and in Criterion for the loss.
        head_class, loss_class: what is built; subclasses may put their own here.
    """

    head_class = ERPoseHead
    loss_class = ERPoseLoss

    def __init__(
        self,
        cfg: str | Path | dict[str, Any] = "erpose-n.yaml",
        ch: int = 3,
        nc: int | None = None,
        data_kpt_shape: Sequence[int | None] = (None, None),
        verbose: bool = True,
    ) -> None:
        cfg = deepcopy(cfg) if isinstance(cfg, dict) else load_model_yaml(cfg)
        settings = Settings.from_dict(cfg.get("erpose"), str(cfg.get("yaml_file", "the model YAML")))
        # parse_model knows stock heads only: let it build the smallest one, read the widths off it, and take its place
        stock = deepcopy(cfg)
        stock["head"][-1] = [*stock["head"][-1][:2], "Pose", ["nc", "kpt_shape"]]
        stock["reg_max"] = 1
        read_kpt_shape(list(data_kpt_shape) if any(data_kpt_shape) else stock["kpt_shape"], "data or model YAML")
        super().__init__(stock, ch=ch, nc=nc, data_kpt_shape=data_kpt_shape, verbose=False)
        self.yaml["head"][-1][2] = HEAD
        self.kpt_shape: list[int] = list(self.yaml["kpt_shape"])

        placeholder = self.model[-1]
        widths = [tower[0].conv.in_channels for tower in placeholder.cv4]
        head = self.head_class(
            self.yaml["nc"],
            self.kpt_shape,
            widths,
            tower=settings.tower,
            width=settings.width,
            pose_channels=settings.tower_channels[0] or None,
            score_channels=settings.tower_channels[1] or None,
            refine=settings.refine,
            boxes=settings.boxes,
            heatmaps=settings.heatmap_gain > 0,
        )
        head.i, head.f, head.type, head.stride = placeholder.i, placeholder.f, HEAD, placeholder.stride
        head.np = sum(p.numel() for p in head.parameters())
        head.inplace = self.inplace
        initialize_weights(head)
        head.bias_init()
        self.model[-1] = head
        self.settings = settings
        self.kpt_oks_sigmas: Sequence[float] | None = None
        if verbose:
            for layer in self.model:
                LOGGER.info(f"{layer.i:>3}{layer.f!s:>20}{layer.np:12.0f}  {layer.type}")
            self.info()
            LOGGER.info("")

    def predict(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            x: (B, ch, H, W), H and W multiples of the largest stride.
            *args, **kwargs: as the stock model takes them.

        Raises:
            ValueError: a side that is not such a multiple, which would fail deep inside the neck.
        """
        if not torch.jit.is_tracing() and not torch.compiler.is_compiling():  # a graph cannot read tensors
            step = int(self.stride.max()) if hasattr(self, "stride") else 1
            if any(side % step for side in x.shape[-2:]):
                raise ValueError(
                    f"Input of {x.shape[-2]} x {x.shape[-1]} px: both sides must be a multiple of the largest stride, {step}. "
                    "Pad or resize it (ERPose.predict does so by itself)."
                )
        return super().predict(x, *args, **kwargs)

    def init_criterion(self) -> Criterion:
        """Criterion with the schedules at their start."""
        return Criterion(self)

    def load(self, weights: dict[str, Any] | nn.Module, verbose: bool = True) -> None:
        """Take over every tensor of the same name and shape: all of a model of ours, backbone and neck of a stock one.

        Scores of a model of ours follow the class names where both models have some (``cls_remap``).

        Args:
            weights: checkpoint dictionary or module.
            verbose: log how many tensors were taken.
        """
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        theirs = source.float().state_dict()
        ours = self.state_dict()
        last = f"model.{len(self.model) - 1}."
        same_head = isinstance(source, ERPoseModel)
        taken = {
            k: v for k, v in theirs.items() if k in ours and ours[k].shape == v.shape and (same_head or not k.startswith(last))
        }
        if same_head:
            taken |= self._scores_by_name(source, theirs, last)
        self.load_state_dict(taken, strict=False)
        if isinstance(source, ERPoseModel) and f"{last}one2one_pose.tower.0.0.conv.weight" in taken:
            # spreads are as well trained as theirs, or less
            mine, its = (cast("ERPoseHead", m.model[-1]) for m in (self, source))
            if "confidence" in vars(its):  # chosen for these weights, not by their class
                mine.confidence = its.confidence
        if isinstance(source, ERPoseModel) and source.kpt_shape[0] != self.kpt_shape[0]:
            self._take_keypoints(source)
        self.pt_path = getattr(source, "pt_path", None)
        body = sum(not k.startswith(last) for k in ours)
        got = sum(not k.startswith(last) for k in taken)
        if verbose:
            LOGGER.info(
                f"Transferred {len(taken)}/{len(ours)} tensors from pretrained weights: "
                f"backbone and neck {got}/{body}, head {len(taken) - got}/{len(ours) - body}"
            )
        if got == 0:
            LOGGER.warning(
                "None of the pretrained tensors fits this backbone and neck: training starts from random weights. "
                f"Take weights of the same family and scale as {self.yaml.get('yaml_file')}."
            )

    def _scores_by_name(self, source: nn.Module, theirs: dict[str, Tensor], last: str) -> dict[str, Tensor]:
        """Weights of the score layers with the rows of equally named classes, where order or number of classes differ.

        Args:
            source: model of ours.
            theirs: its tensors.
            last: prefix of the head's tensors.

        Returns:
            Tensors by name; a class that the source does not have keeps its row. Empty if nothing is to be moved.
        """
        names = [[str(name).strip().lower() for name in dict(getattr(m, "names", None) or {}).values()] for m in (source, self)]
        if any(name == [str(i) for i in range(len(name))] for name in names) or names[0] == names[1]:
            return {}  # placeholders, or nothing to move
        rows = [(row, names[0].index(name)) for row, name in enumerate(names[1]) if name in names[0]]
        moved = {}
        for name, tensor in self.state_dict().items():
            branch = name.removeprefix(last).split(".")
            if rows and branch[0] in ("one2many_score", "one2one_score") and branch[2:-1] == ["2"] and name in theirs:
                if theirs[name].shape[1:] == tensor.shape[1:]:
                    to, of = (list(side) for side in zip(*rows))
                    moved[name] = tensor.clone()
                    moved[name][to] = theirs[name][of].to(tensor)
        return moved

    def _take_keypoints(self, source: ERPoseModel) -> None:
        """Start the outputs for our keypoints from those of a model with others, by name where both have names."""
        ours, theirs = (names_of(getattr(model, "kpt_names", None), model.kpt_shape[0]) for model in (self, source))
        sources = match_names(ours, theirs)
        for name in ("pose", "one2one_pose"):
            mine, its = getattr(self.model[-1], name), getattr(source.model[-1], name)
            if mine is not None and its is not None:
                mine.take_keypoints(its, sources)


class Criterion:
    """Ultralytics batches in, ER-Pose losses out; keeps count of epochs for the schedules.

    Attributes:
        updates: epochs that are over; the trainer calls :meth:`update` after each and sets it on resume.
    """

    def __init__(self, model: ERPoseModel) -> None:
        s = model.settings
        self.sigmas = sigmas_for(model.kpt_shape[0], getattr(model, "kpt_oks_sigmas", None))
        self.loss = model.loss_class(
            self.sigmas,
            model.stride.tolist(),
            topk=s.topk,
            alpha=s.alpha,
            beta=s.beta,
            center_sampling_window=s.center_sampling_window,
            size_range=s.size_range,
            one2many_weight=s.one2many_weight,
            pose_gain=s.pose_gain,
            oks_gain=s.oks_gain,
            aux_loss_gain=s.aux_loss_gain,
            visibility_gain=s.visibility_gain,
            heatmap_gain=s.heatmap_gain,
            box_gain=s.box_gain,
        )
        self.args = model.args
        self.updates = 0

    @property
    def epochs(self) -> int:
        """Epochs of the run, read anew each time: the trainer estimates them after every epoch of a run with ``time=``."""
        return int(self.args["epochs"] if isinstance(self.args, dict) else self.args.epochs)

    @property
    def progress(self) -> float:
        """Share of the training that is over, in [0, 1]."""
        return min(self.updates / max(self.epochs - 1, 1), 1.0)

    def update(self) -> None:
        """An epoch is over."""
        self.updates += 1

    def __call__(self, preds: HeadOutputs | tuple[Tensor, HeadOutputs], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            preds: head outputs of training mode, or the (rows, outputs) of validation.
            batch: collated Ultralytics batch with img, batch_idx, cls, bboxes, keypoints (normalised).

        Returns:
            Loss times batch size, a vector of one entry (Ultralytics' convention), and the detached terms by name.
        """
        outputs = preds[1] if isinstance(preds, tuple) else preds
        assert outputs.one2one is not None
        images = outputs.one2one.offsets
        self.loss.sigmas = lax_sigmas(self.sigmas, self.progress)
        loss, items = self.loss(outputs, to_targets(batch, images.device), self.progress)
        return loss[None] * len(images), items


def to_targets(batch: dict[str, Any], device: torch.device) -> Targets:
    """Persons and ignore regions of a collated batch, in pixels of the network input.

    A person without any labelled keypoint trains no keypoints and is no background either: its box becomes an
    ignore region.
    """
    height, width = batch["img"].shape[2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=device)
    keypoints = batch["keypoints"].to(device).float().clone()
    keypoints[..., :2] *= size
    boxes = batch["bboxes"].to(device).float().view(-1, 4)
    centre, side = boxes[:, :2] * size, boxes[:, 2:] * size
    boxes = torch.cat((centre - side / 2, centre + side / 2), 1)
    image = batch["batch_idx"].to(device).long().view(-1)
    category = batch["cls"].to(device).long().view(-1)
    known = (keypoints[..., 2] > 0).any(1) if keypoints.numel() else torch.zeros(len(keypoints), dtype=torch.bool, device=device)
    return Targets(
        image=image[known],
        keypoints=keypoints[known],
        box=boxes[known],
        area=object_area(boxes[known]),
        category=category[known],
        ignore_image=image[~known],
        ignore_box=boxes[~known],
    )


# So that ULTRALYTICS_SAFE_LOAD=1 and torch.load(weights_only=True) read our checkpoints: all that one pickles by class.
torch.serialization.add_safe_globals([ERPoseModel, ERPoseHead, PoseBranch, Settings])

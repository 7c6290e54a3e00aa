"""The keypoint-centric head: per pyramid level a pose tower and score towers; no box branch, no DFL, no NMS.

    features -> pose branch  -> offsets, visibility, log spread, refinement, heatmaps  |  training only, with the
             -> score tower  -> one-to-many scores                                     |  one-to-many assignment
             -> pose branch  -> offsets, visibility, log spread, refinement  |  deployed, with the
             -> score tower  -> one-to-one scores                            |  one-to-one assignment

Shapes: B images, A cells of all levels (finest first), K keypoints, C classes. Rows are in pixels of the network input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv, DWConv, Pose

from erpose_yolo.method.boxes import default_margins, with_room
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs, make_cells
from erpose_yolo.method.maps import pose_channels
from erpose_yolo.method.refine import refine_best, refine_keypoints
from erpose_yolo.method.rows import make_rows

LOG_SPREAD_START = 1.0  # keypoints of an untrained head miss by about e tolerances


def depthwise(c1: int, c2: int, k: int) -> nn.Sequential:
    """Depth-wise k x k, then point-wise: a wide view for few operations."""
    return nn.Sequential(DWConv(c1, c1, k), Conv(c1, c2, 1))


def pose_tower(kind: str, c1: int, c2: int, finest: bool) -> nn.Sequential:
    """Two blocks from features of the neck to keypoint features.

    Plain 3 x 3 convolutions learn much faster than depth-wise ones, but the finest level holds three quarters of all
    cells, and two of them there cost as much as the rest of the head. ``mixed`` has one there and two elsewhere.
    """
    if kind == "plain" or not finest:
        return nn.Sequential(Conv(c1, c2, 3), Conv(c2, c2, 3))
    return nn.Sequential(Conv(c1, c2, 3), depthwise(c2, c2, 5))


def score_towers(ch: Sequence[int], c: int, classes: int) -> nn.ModuleList:
    """One tower per level from features of the neck to class logits."""
    return nn.ModuleList(nn.Sequential(depthwise(x, c, 3), depthwise(c, c, 3), nn.Conv2d(c, classes, 1)) for x in ch)


def tower_width(width: int, finest_channels: int) -> int:
    """Channels of the towers: ``width`` on a neck of 64 channels, growing with its square root, in steps of 8."""
    return max(16, round(width * math.sqrt(finest_channels / 64) / 8) * 8)


def _convs(layers: Iterable[nn.Module] | None) -> list[nn.Conv2d]:
    return [layer for layer in layers or () if isinstance(layer, nn.Conv2d)]


def _fill_bias(conv: nn.Conv2d, value: float) -> None:
    assert conv.bias is not None
    nn.init.constant_(conv.bias, value)


class PoseBranch(nn.Module):
    """Keypoint regression on every level.

    Args:
        num_keypoints: K.
        ch: channels per level, finest first.
        c: channels of the tower.
        tower: see :func:`pose_tower`.
        refine: refinement maps, see method.refine.refine_keypoints.
        boxes: a learned box beside each pose.
        heatmaps: keypoint heatmaps on the finest level.

    Attributes:
        merged: see :meth:`merge`.
    """

    merged: nn.ModuleList

    def __init__(
        self,
        num_keypoints: int,
        ch: Sequence[int],
        c: int,
        *,
        tower: str = "mixed",
        refine: bool = True,
        boxes: bool = False,
        heatmaps: bool = True,
    ) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.tower = nn.ModuleList(pose_tower(tower, x, c, i == 0) for i, x in enumerate(ch))
        self.keypoints = nn.ModuleList(nn.Conv2d(c, 3 * num_keypoints, 1) for _ in ch)
        self.box = nn.ModuleList(nn.Conv2d(c, 4, 1) for _ in ch) if boxes else None
        self.spread = nn.ModuleList(nn.Conv2d(c, num_keypoints, 1) for _ in ch)
        self.refinement = nn.ModuleList(nn.Conv2d(c, 3 * num_keypoints, 1) for _ in ch) if refine else None
        self.heatmap = nn.ModuleList([nn.Conv2d(c, num_keypoints, 1)]) if heatmaps else None

    @property
    def channels(self) -> dict[str, int]:
        """Channels of :meth:`maps`, as method.maps describes them."""
        return pose_channels(self.num_keypoints, self.refinement is not None, self.box is not None)

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """Raw outputs of :meth:`merge`'s convolutions, one (B, P, H, W) map per level, finest first."""
        return [conv(tower(level)) for conv, tower, level in zip(self.merged, self.tower, x)]

    @torch.no_grad()
    def merge(self) -> None:
        """Make one convolution of the output convolutions of each level, for exports of maps."""
        if self.refinement is not None and not any(p.any() for p in self.refinement.parameters()):
            self.refinement = None  # never trained (YOLO26-pose): it moves nothing
        merged = []
        for convs in zip(*(c for c in (self.keypoints, self.spread, self.refinement, self.box) if c is not None)):
            one = nn.Conv2d(convs[0].in_channels, sum(c.out_channels for c in convs), 1)
            one.weight.copy_(torch.cat([c.weight for c in convs]))
            one.bias = nn.Parameter(torch.cat([c.bias for c in convs]))
            merged.append(one.to(convs[0].weight))
        self.merged = nn.ModuleList(merged).requires_grad_(False)

    def forward(self, x: list[Tensor]) -> tuple[PoseOutputs, Tensor | None]:
        """Raw outputs of (B, channels, H, W) features, finest first, and heatmap logits (B, K, A_h) where there are any."""
        k = self.num_keypoints
        features = [tower(level) for tower, level in zip(self.tower, x)]
        keypoints = self._flat(self.keypoints, features)
        out = PoseOutputs(
            offsets=keypoints[:, : 2 * k].reshape(keypoints.shape[0], k, 2, -1),  # paddle has no unflatten
            visibility=keypoints[:, 2 * k :],
            box=None if self.box is None else self._flat(self.box, features),
            log_spread=self._flat(self.spread, features),
            refinement=None if self.refinement is None else [conv(f) for conv, f in zip(self.refinement, features)],
        )
        return out, None if self.heatmap is None else self._flat(self.heatmap, features)

    @staticmethod
    def _flat(convs: nn.ModuleList, features: list[Tensor]) -> Tensor:
        return torch.cat([conv(f).flatten(2) for conv, f in zip(convs, features)], 2)

    def bias_init(self) -> None:
        for conv in _convs(self.spread):
            nn.init.zeros_(conv.weight)
            _fill_bias(conv, LOG_SPREAD_START)
        for conv in _convs(self.refinement):
            nn.init.zeros_(conv.weight)  # at first keypoints stay where their cell puts them
            _fill_bias(conv, 0.0)
        for conv in _convs(self.heatmap):
            _fill_bias(conv, -math.log(99))  # one map cell in a hundred, as focal losses start

    @torch.no_grad()
    def take_keypoints(self, other: PoseBranch, sources: Sequence[int | None]) -> None:
        """Start the output convolutions from those of a branch with other keypoints.

        A keypoint that the other branch has, too, takes over all its rows. Any other starts at the mean of all keypoints,
        which is the middle of the person: far nearer than random weights. Its spread, refinement map and heatmap start as
        they do in a new branch, since those of the other keypoints would be sure of another place.

        Args:
            other: branch of the same widths.
            sources: for each of our K keypoints its index in the other branch, or None.
        """
        k, theirs = self.num_keypoints, other.num_keypoints
        for mine, its, first, rows, by_mean in (  # rows of each keypoint, and where they begin in units of K
            (self.keypoints, other.keypoints, 0, 2, True),
            (self.keypoints, other.keypoints, 2, 1, True),
            (self.spread, other.spread, 0, 1, False),
            (self.refinement, other.refinement, 0, 3, False),
            (self.heatmap, other.heatmap, 0, 1, False),
        ):
            for ours, old in zip(_convs(mine), _convs(its)):
                for name in ("weight", "bias"):
                    to, of = getattr(ours, name), getattr(old, name)
                    if to.shape[1:] != of.shape[1:]:
                        continue  # another width
                    to = to[first * k : (first + rows) * k].unflatten(0, (k, rows))
                    of = of[first * theirs : (first + rows) * theirs].unflatten(0, (theirs, rows)).to(to)
                    for i, source in enumerate(sources):
                        if source is not None:
                            to[i] = of[source]
                        elif by_mean:
                            to[i] = of.mean(0)

    def fuse(self) -> None:
        """Drop what only training uses."""
        self.heatmap = None


class ERPoseHead(Pose):
    """Pose head without boxes and NMS, a drop-in for the stock Pose head.

    Args:
        nc: number of classes C.
        kpt_shape: (K, D), D of 2 or 3.
        ch: channels per level, finest first.
        width: channels of the towers on 64-channel features, see :func:`tower_width`.
        pose_channels, score_channels: channels of pose and score towers as they are; None is what ``width`` gives.
        tower, refine, boxes, heatmaps: see :class:`PoseBranch`.

    Attributes:
        confidence: what persons are sorted by and thresholds are compared with: "expected_oks", the score and the OKS that the
            spreads let expect (decode.confidence), or "score" alone. Checkpoints keep it; training starts from that of the weights.
        margins: (4, 3 + K) buffer, fitted to the training labels (method.boxes.fit_margins).
        spread_factors: K factors of the error bars, fitted to labels (method.errorbars.fit_factors); None: as trained.
        oks_factor: of the OKS that spreads let expect, fitted with them (method.errorbars.fit_oks_factor); not in the scores.
        sigma_units: (K,) of method.errorbars.sigma_units; where they are set, rows end with the error bar of each keypoint.
        layout: "rows" of the best cells; "cells", a row per cell, for runtimes without TopK; "maps", the raw outputs that
            method.maps decodes on the host, of exports alone.
        per_keypoint_sampling: sample keypoints one after the other (runtimes without batches, method.refine.sample_maps).
        fused: what only training uses is gone.
        sizes: ``stride`` as numbers, once the head has run.
    """

    confidence = "expected_oks"
    layout = "rows"
    per_keypoint_sampling = False
    fused = False
    spread_factors: list[float] | None = None
    oks_factor = 1.0
    sigma_units: Tensor | None = None
    margins: Tensor
    sizes: list[float]

    def __init__(
        self,
        nc: int,
        kpt_shape: Sequence[int],
        ch: Sequence[int],
        *,
        tower: str = "mixed",
        width: int = 64,
        pose_channels: int | None = None,
        score_channels: int | None = None,
        refine: bool = True,
        boxes: bool = False,
        heatmaps: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # not the stock constructors: they would build the box branch
        self.nc, self.nl, self.reg_max = nc, len(ch), 1
        self.kpt_shape, self.nk = list(kpt_shape), kpt_shape[0] * kpt_shape[1]
        self.no = nc + 4 + self.nk
        self.stride = torch.zeros(self.nl)
        c = tower_width(width, ch[0])
        self.pose: PoseBranch | None = PoseBranch(
            kpt_shape[0], ch, pose_channels or c, tower=tower, refine=refine, boxes=boxes, heatmaps=heatmaps
        )
        self.one2many_score: nn.ModuleList | None = score_towers(ch, score_channels or c, nc)
        # The one-to-one side starts as a copy: at first both then rank the same cells, and learn poses at the same ones.
        self.one2one_pose: PoseBranch | None = deepcopy(self.pose)
        self.one2one_pose.heatmap = None  # those of the one-to-many side train the backbone
        self.one2one_score = deepcopy(self.one2many_score)
        self.register_buffer("margins", default_margins(kpt_shape[0]))

    # What stock code asks of a head. end2end is a fact here, not a mode: the deployed scores are one-to-one whatever
    # the nms argument says, so assignments to it are ignored.
    @property
    def end2end(self) -> bool:
        return True

    @end2end.setter
    def end2end(self, value: bool) -> None:
        pass

    @property
    def agnostic_nms(self) -> bool:
        """False whatever is assigned: a cell is one person of one class, and the other way to sort orders ties differently."""
        return False

    @agnostic_nms.setter
    def agnostic_nms(self, value: bool) -> None:
        pass

    @property
    def has_error_bars(self) -> bool:
        """The spreads mean something: they are trained, or what they must be multiplied by has been fitted."""
        return self.confidence == "expected_oks" or self.spread_factors is not None

    @property
    def deployed(self) -> PoseBranch:
        """The pose branch that inference reads."""
        branch = self.one2one_pose or self.pose
        assert branch is not None
        return branch

    @property
    def cv2(self) -> nn.ModuleList | None:
        """Stock code reads: not None until fused."""
        return None if self.fused else self.deployed.keypoints

    @property
    def one2one_cv2(self) -> nn.ModuleList | None:
        """Stock code reads: there is a one-to-one head, so resume its loss schedule."""
        return self.deployed.keypoints

    @property
    def cv3(self) -> nn.ModuleList | None:
        """Stock code reads: layers with the learning rate of classifiers (MuSGD)."""
        return self.one2many_score

    @property
    def one2one_cv3(self) -> nn.ModuleList | None:
        return self.one2one_score

    def bias_init(self) -> None:
        """Start scores at the share of cells that hold a person, spreads and heatmaps at their priors."""
        for towers in (self.one2many_score, self.one2one_score):
            for tower, stride in zip(towers or (), self.stride.tolist()):
                assert isinstance(tower, nn.Sequential)
                _fill_bias(_convs(tower)[-1], math.log(5 / self.nc / (640 / stride) ** 2))
        for branch in (self.pose, self.one2one_pose):
            if branch is not None:
                branch.bias_init()

    def poses(self, x: list[Tensor]) -> tuple[PoseOutputs | None, PoseOutputs, Tensor | None]:
        """Raw outputs of the one-to-many branch (None once fused), of the one-to-one branch, and heatmaps (None without)."""
        assert self.one2one_pose is not None
        one2many, heatmaps = (None, None) if self.pose is None else self.pose(x)
        return one2many, self.one2one_pose(x)[0], heatmaps

    def raw(self, x: list[Tensor]) -> HeadOutputs:
        """Raw outputs of every part that is there, as losses.ERPoseLoss takes them."""
        one2many, one2one, heatmaps = self.poses(x)
        many, one = (
            None if towers is None else torch.cat([tower(f).flatten(2) for tower, f in zip(towers, x)], 2)
            for towers in (self.one2many_score, self.one2one_score)
        )
        shapes = [(f.shape[2], f.shape[3]) for f in x]
        return HeadOutputs(one2many, one2one, many, one, heatmaps, shapes)

    def forward(self, x: list[Tensor]) -> Any:
        """Run the head.

        Args:
            x: feature maps, finest first, each (B, channels, H, W).

        Returns:
            In training the raw HeadOutputs; in export the rows, or with the layout "maps" two maps per level (method.maps);
            otherwise (rows, HeadOutputs). Rows are (B, max_det, 6 + K*D) sorted by score, or with the layout "cells"
            (B, A, 6 + K*D), one row per cell.
        """
        if self.layout == "maps" and self.export:
            assert self.one2one_score is not None
            scores = [tower(level) for tower, level in zip(self.one2one_score, x)]
            return tuple(m for pair in zip(scores, self.deployed.maps(x)) for m in pair)
        raw = self.raw(x)
        if self.training:
            return raw
        rows = self.rows(raw)
        return rows if self.export else (rows, raw)

    def rows(self, raw: HeadOutputs) -> Tensor:
        """Decode raw outputs to ``x1 y1 x2 y2 score class keypoints`` rows; error bars follow where ``sigma_units`` are set.

        Raises:
            ValueError: ``confidence`` is none of its two.
        """
        pose, scores, shapes = raw.one2one, raw.one2one_scores, raw.shapes
        assert pose is not None and scores is not None
        if not torch.compiler.is_compiling():  # torch.export cannot read a tensor, and takes what the call before it read
            self.sizes = [float(s) for s in self.stride]
        centres, strides = make_cells(shapes, self.sizes, scores)
        part = {"offsets": pose.offsets, "visibility": pose.visibility, "scores": scores.sigmoid()}
        if self.confidence == "expected_oks" or self.sigma_units is not None:
            part["log_spread"] = pose.log_spread
        if pose.box is not None:
            part["box"] = pose.box
        refine: partial[tuple[Tensor, Tensor]] | None = None
        if self.layout == "rows":
            part, centres, strides, level = self._pick(part, centres, strides, shapes)
            if pose.refinement is not None:
                refine = partial(refine_best, refinements=pose.refinement, strides=self.sizes, level=level)
        elif pose.refinement is not None:
            sampling = self.per_keypoint_sampling
            refine = partial(refine_keypoints, refinements=pose.refinement, strides=self.sizes, per_keypoint_sampling=sampling)
        margins, columns = with_room(self.margins), self.kpt_shape[1]
        table = make_rows(part, centres, strides, refine, margins, self.confidence, columns, self.sigma_units).transpose(1, 2)
        if self.layout != "rows":
            return table
        order = self.get_topk_index(table[..., 4:5], self.max_det)[2]
        return table.gather(1, order[..., None].expand(-1, -1, table.shape[2]))

    def _pick(
        self, part: dict[str, Tensor], centres: Tensor, strides: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """The ``max_det`` cells of the best scores, so that the rest is decoded for those alone.

        Args:
            part: outputs of all cells.
            centres: (2, A) pixels.
            strides: (1, A) pixels.
            shapes: (height, width) in cells of each level.

        Returns:
            Outputs, centres (B, 2, N) and strides (B, 1, N) of the picked cells, and their level as refine_best takes it.
        """
        best = part["scores"].amax(1)
        index = best.topk(min(self.max_det, best.shape[1]), 1).indices[:, None]  # (B, 1, N)
        counts = [h * w for h, w in shapes]
        ones = [[strides.new_full((1, n), float(i == j)) for j, n in enumerate(counts)] for i in range(len(counts))]
        level = torch.cat([torch.cat(row, 1) for row in ones])  # (L, A); LiteRT has no eye
        columns = {k: v.flatten(1, 2) if v.ndim == 4 else v for k, v in part.items()}
        columns |= {k: v.expand(best.shape[0], -1, -1) for k, v in (("centres", centres), ("strides", strides), ("level", level))}
        table = torch.cat(list(columns.values()), 1)
        picked = table.gather(2, index.expand(-1, table.shape[1], -1))
        found = dict(zip(columns, picked.split([v.shape[1] for v in columns.values()], 1)))
        found["offsets"] = found["offsets"].reshape(best.shape[0], self.kpt_shape[0], 2, -1)
        return found, found.pop("centres"), found.pop("strides"), found.pop("level")

    def fuse(self) -> None:
        """Drop what only training uses; rows stay as they are."""
        if self.one2one_pose is not None:
            self.pose = None
        self.one2many_score = None
        self.deployed.fuse()
        self.fused = True

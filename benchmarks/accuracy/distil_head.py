"""How erpose-n.pt was trained: on the frozen backbone of YOLO26n-pose, whose own neck and head are the teacher.

    python -m benchmarks.accuracy.distil_head --teacher yolo26n-pose.pt --data coco-people.yaml --images 100000 --out trained.pt

As long as backbone and neck are the teacher's, one forward pass serves both heads, and any crop of any photo is a sample. The
score towers are the teacher's, too. Where the teacher sees a person, the branch learns that person's labelled keypoints, and
the teacher's where nobody labelled any. With --neck a copy of the neck and of the score towers learns along; its scores
follow the teacher's on every cell, but for those that repeat a better one's pose. Convolutions run in bfloat16, which is
twice as fast on some CPUs and slower than float32 (--no-amp) on others. A training that was cut off goes on from --out's state
file beside it, with the same command.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.modules import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from erpose_yolo import ERPose, catalog
from erpose_yolo.data.images import images_of, label_of
from erpose_yolo.data.labels import read_rows
from erpose_yolo.method.boxes import default_margins, derive_boxes
from erpose_yolo.method.decode import OFFSET_CELLS, decode_keypoints, make_cells
from erpose_yolo.method.losses import ERPoseLoss
from erpose_yolo.method.oks import COCO_SIGMAS, kernel, mean_over_labelled, object_area, oks_error
from erpose_yolo.method.refine import refine_picked
from erpose_yolo.nn.head import PoseBranch

STRIDES = [8.0, 16.0, 32.0]
FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
CELLS, LEAST = 60, 0.02  # most cells of an image that learn, and the least score of the teacher there
SAME = 0.3  # OKS from which a teacher's pose and a label are the same person
REPEATED = 0.7  # OKS from which two of the teacher's poses are the same person, and the better score alone is learned
MEASURED = 160  # crops from which BatchNorm has its mean and variance in the end

AMP = {"enabled": True}  # --no-amp
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def precision() -> torch.autocast:
    """Of the convolutions inside the context: bfloat16 or float32."""
    return torch.autocast("cpu", torch.bfloat16, **AMP)


def read_labels(image: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labelled keypoints (N, 17, 3) and boxes (N, 4, corners) of an image, as shares of it; persons without keypoints left out."""
    file = label_of(image)
    if not file.exists():
        return np.zeros((0, 17, 3)), np.zeros((0, 4))
    rows = read_rows(file, 17, 3)
    some = (rows.keypoints[..., 2] > 0).any(1)
    centre, side = rows.boxes[some, :2], rows.boxes[some, 2:]
    return rows.keypoints[some], np.concatenate((centre - side / 2, centre + side / 2), 1)


def crop(photo: Path, size: int, sides: tuple[float, float]) -> Sample:
    """A random piece of a photo: scaled, turned a little, flipped, shifted, brighter or darker.

    Args:
        photo: file.
        size: side of the piece in pixels.
        sides: range of the photo's longer side in pixels after scaling, log-uniform.

    Returns:
        image (size, size, 3) RGB in 0 to 1, keypoints (N, 17, 3) in pixels of it, areas (N,).
    """
    image = cv2.imread(str(photo))
    height, width = image.shape[:2]
    keypoints, boxes = read_labels(photo)
    keypoints = keypoints * [width, height, 1]
    scale = math.exp(random.uniform(*map(math.log, sides))) / max(height, width)
    angle = math.radians(random.gauss(0, 4))
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    if random.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]])
        keypoints = keypoints[:, FLIP]
    middle = np.array([width / 2, height / 2])
    room = np.maximum(scale * np.array([width, height]) - size, 0.15 * size) / 2
    shift = np.random.uniform(-1, 1, 2) * room
    if len(boxes) and random.random() < 0.7:  # a piece that shows somebody
        x1, y1, x2, y2 = boxes[random.randrange(len(boxes))] * [width, height, width, height]
        middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
        shift = np.random.uniform(-0.4, 0.4, 2) * size
    matrix[:, 2] += size / 2 - matrix @ [*middle, 1] + shift
    areas = object_area(torch.tensor(boxes * [width, height, width, height])).numpy() * scale**2
    keypoints[..., :2] = keypoints[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] <= size)).all(2)
    keypoints[..., 2] *= inside
    kept = keypoints[..., 2].any(1)
    image = cv2.warpAffine(image, matrix, (size, size), borderValue=(114, 114, 114)).astype(np.float32)
    image = np.clip(image * random.uniform(0.7, 1.3) + random.uniform(-20, 20), 0, 255)[:, :, ::-1] / 255
    return image, keypoints[kept], areas[kept]


def teacher_targets(
    stock: nn.Module,
    features: list[Tensor],
    labels: list[tuple[Tensor, Tensor]],
    sigmas: Tensor,
    margins: Tensor,
    power: float = 0.5,
) -> dict[str, Tensor]:
    """Cells that learn, and what: M cells of the batch.

    Args:
        stock: the teacher's head.
        features: outputs of the neck, finest first.
        labels: keypoints (N, 17, 3) and areas (N,) of each image, pixels.
        sigmas: (17,).
        margins: of derived boxes.
        power: a cell weighs the teacher's score to this power.

    Returns:
        image (M,), cell (M,), weight (M,), place (M, 2) and stride (M, 1) in pixels, keypoints (M, 17, 2), labelled (M, 17),
        visible (M, 17) probabilities, area (M,); scores (B, A) of all cells, probabilities, see :func:`best_of_each`.
    """
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    centres, strides = make_cells(shapes, STRIDES, features[0])
    batch = len(features[0])
    with precision():
        scores = [c(f).flatten(2) for c, f in zip(stock.one2one_cv3, features)]
        towers = [c(f) for c, f in zip(stock.one2one_cv4, features)]
    score = torch.cat(scores, 2).float().sigmoid()[:, 0]
    raw = [conv(tower.float()).flatten(2) for conv, tower in zip(stock.one2one_cv4_kpts, towers)]
    keypoints = torch.cat(raw, 2).view(batch, 17, 3, -1)
    top = score.topk(CELLS, 1)
    sure, each = top.values > LEAST, torch.arange(batch)[:, None].expand(-1, CELLS)
    raw_top, stride = keypoints[each, :, :, top.indices], strides.T[top.indices][..., None]
    wanted = raw_top[..., :2] * stride + centres.T[top.indices][:, :, None]
    visible = raw_top[..., 2].sigmoid()
    targets = score.scatter(1, top.indices, best_of_each(top.values, wanted, visible, margins, sigmas))
    image, cell, wanted, visible = each[sure], top.indices[sure], wanted[sure], visible[sure]
    place, stride = centres.T[cell], strides.T[cell]
    box = derive_boxes(wanted.permute(1, 2, 0)[None], (visible > 0.5).float().T[None], margins)[0]
    area = object_area(box.T)
    labelled = visible > 0.3
    for i, (points, size) in enumerate(labels):
        mine = (image == i).nonzero()[:, 0]
        if not len(points) or not len(mine):
            continue
        alike = kernel(oks_error(wanted[mine, None], points[None], size[None].expand(len(mine), -1), sigmas))
        best, person = mean_over_labelled(alike, points[None, ..., 2] > 0).max(1)
        mine, person = mine[best >= SAME], person[best >= SAME]
        known = points[person, :, 2] > 0
        wanted[mine] = torch.where(known[..., None], points[person, :, :2], wanted[mine])
        labelled[mine] |= known
        area[mine] = size[person]
    keep = labelled.any(1)
    found: dict[str, Tensor] = {"image": image, "cell": cell, "weight": score[image, cell] ** power, "place": place}
    found |= {"stride": stride, "keypoints": wanted, "labelled": labelled, "visible": visible, "area": area}
    return {k: v[keep] for k, v in found.items()} | {"scores": targets}


def best_of_each(scores: Tensor, keypoints: Tensor, visible: Tensor, margins: Tensor, sigmas: Tensor) -> Tensor:
    """Scores without those of poses that repeat a better one: what NMS by OKS would leave, before any threshold.

    Args:
        scores: (B, N), falling.
        keypoints: (B, N, 17, 2) pixels.
        visible: (B, N, 17) probabilities.
        margins: of derived boxes.
        sigmas: (17,).

    Returns:
        (B, N), zero for poses whose OKS with a better one is REPEATED or more.
    """
    batch, number = scores.shape
    box = derive_boxes(keypoints.permute(0, 2, 3, 1), (visible > 0.5).float().transpose(1, 2), margins)
    area = object_area(box.transpose(1, 2)).view(batch, 1, number).expand(-1, number, -1)
    alike = kernel(oks_error(keypoints[:, :, None], keypoints[:, None], area, sigmas))  # of each with each, (B, N, N, 17)
    same = mean_over_labelled(alike, (visible > 0.3)[:, None].expand_as(alike)) >= REPEATED
    return scores.masked_fill(same.tril(-1).any(2), 0)


def pose_losses(branch: nn.Module, features: list[Tensor], target: dict[str, Tensor], loss: ERPoseLoss, sigmas: Tensor) -> Tensor:
    """Loss of the branch's poses at the cells that learn, before and after refinement, and of their visibility."""
    with precision():
        out, _ = branch(features)
    image, cell, stride = target["image"], target["cell"], target["stride"]
    counts = [f.shape[2] * f.shape[3] for f in features]
    first = torch.tensor([0, *np.cumsum(counts)[:-1]])
    level = (cell[:, None] >= first).sum(1) - 1
    where = torch.cat((first[level][:, None], torch.tensor([[f.shape[2], f.shape[3]] for f in features])[level]), 1)
    offsets = out.offsets.float()[image, :, :, cell].permute(1, 2, 0)[None]
    coarse = decode_keypoints(offsets, target["place"].T, stride.T)[0].permute(2, 0, 1)
    maps = torch.cat([m.flatten(2) for m in out.refinement], 2).float()
    refined, wider = refine_picked(coarse.detach(), maps, image, where, stride)
    spread = out.log_spread.float()[image, :, cell]
    weight = target["weight"] / target["weight"].sum().clamp(min=1e-6)
    total = torch.zeros(())
    for keypoints, log_spread, gain in ((coarse, spread, 0.5), (refined, spread + wider, 1.0)):
        error = oks_error(keypoints, target["keypoints"], target["area"], sigmas)
        total = total + gain * (loss.pose_loss(error, log_spread, target["labelled"]) * weight).sum()
    logits = out.visibility.float()[image, :, cell]
    each = F.binary_cross_entropy_with_logits(logits, target["visible"], reduction="none").mean(1)
    return total + 0.5 * (each * weight).sum()


@torch.no_grad()
def prune(stock: nn.Module, branch: PoseBranch) -> None:
    """Start the pose towers from the teacher's, of which the channels stay that weigh most in what comes after.

    Where the second block is depth-wise, each input channel's kernels for all outputs are reduced to the best one times a factor
    per output (their first singular vectors); a bias keeps the activation between the two in its linear part.
    """

    def copy_conv(to: Conv, of: Conv, outputs: Tensor, inputs: Tensor | slice = slice(None)) -> None:
        to.conv.weight.copy_(of.conv.weight[outputs][:, inputs])
        copy_norm(to.bn, of.bn, outputs)

    def copy_norm(to: nn.Module, of: nn.Module, outputs: Tensor) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(to, name).copy_(getattr(of, name)[outputs])

    k = branch.num_keypoints
    for level, tower in enumerate(branch.tower):
        (first, second), last = stock.one2one_cv4[level], stock.one2one_cv4_kpts[level]
        width = tower[0].conv.out_channels
        kept = (last.weight.flatten(1).norm(dim=0) * second.bn.weight.abs()).topk(width).indices.sort().values
        strength = second.conv.weight[kept].flatten(2).norm(dim=2).norm(dim=0) * first.bn.weight.abs()
        before = strength.topk(width).indices.sort().values
        copy_conv(tower[0], first, before)
        if isinstance(tower[1], Conv):
            copy_conv(tower[1], second, kept, before)
        else:
            wide, point = tower[1]
            kernels = second.conv.weight[kept][:, before].flatten(2).transpose(0, 1)  # (inputs, outputs, 9)
            u, s, v = torch.linalg.svd(kernels, full_matrices=False)
            wide.conv.weight.zero_()
            wide.conv.weight[:, 0, 1:4, 1:4] = v[:, 0].unflatten(1, (3, 3))
            wide.bn.bias.fill_(3.0)
            point.conv.weight.copy_((u[:, :, 0] * s[:, :1]).T[..., None, None])
            copy_norm(point.bn, second.bn, kept)
        conv = branch.keypoints[level]
        for to, of in ((conv.weight, last.weight[:, kept]), (conv.bias, last.bias)):
            each = of.unflatten(0, (k, 3))
            to.copy_(torch.cat(((each[:, :2] / OFFSET_CELLS).flatten(0, 1), each[:, 2])))


def score_loss(towers: nn.Module, features: list[Tensor], scores: Tensor) -> Tensor:
    """Cross entropy of the scores of all cells with the teacher's (B, A), over the number of persons that those amount to."""
    with precision():
        logits = torch.cat([tower(f).flatten(2)[:, 0] for tower, f in zip(towers, features)], 1)
    return F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="sum") / scores.sum().clamp(min=1)


class Photos(torch.utils.data.Dataset):
    """Endless random pieces of photos; index i is always the same one."""

    def __init__(self, photos: list[Path], size: int, sides: tuple[float, float], images: int, seed: int, labels: bool) -> None:
        self.photos, self.size, self.sides, self.images, self.seed, self.labels = photos, size, sides, images, seed, labels

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        random.seed((self.seed << 32) + index)
        np.random.seed(random.getrandbits(32))
        image, keypoints, areas = crop(random.choice(self.photos), self.size, self.sides)
        return (image, keypoints, areas) if self.labels else (image, keypoints[:0], areas[:0])


def collate(samples: list[Sample]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    images = torch.from_numpy(np.stack([s[0] for s in samples])).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return images, [(torch.from_numpy(s[1]).float(), torch.from_numpy(s[2]).float()) for s in samples]


def frozen(layers: nn.Module) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions, laid out for the CPU."""
    layers = copy.deepcopy(layers)
    for module in layers.modules():
        if isinstance(module, Conv) and hasattr(module, "bn"):
            module.conv = fuse_conv_and_bn(module.conv, module.bn)
            del module.bn
            module.forward = module.forward_fuse
    return layers.to(memory_format=torch.channels_last)


@torch.no_grad()
def unfold(layers: nn.Module, trained: nn.Module) -> None:
    """Write the folded convolutions of ``trained`` back into ``layers``, whose BatchNorm then only adds the bias."""
    others = dict(trained.named_modules())
    for name, module in layers.named_modules():
        other = others.get(name)  # None: a BatchNorm that was folded
        if isinstance(module, Conv):
            module.conv.weight.copy_(other.conv.weight)
            module.bn.bias.copy_(other.conv.bias)
            module.bn.weight.fill_(1)
            module.bn.running_mean.zero_()
            module.bn.running_var.fill_(1 - module.bn.eps)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:  # an output convolution
            module.load_state_dict(other.state_dict())


@torch.no_grad()
def measure_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give each BatchNorm the mean and variance of what reaches it; the network computes what it did when deployed.

    A fine-tuning normalises by its batches. From the 0 and 1 of :func:`unfold` it would begin with quite another network.

    Args:
        network: has outputs for training and, with BatchNorm in inference, for (B, 3, H, W) images.
        batches: (B, 3, H, W) images, shares of 1.
    """
    norms = [module for module in network.train().modules() if isinstance(module, nn.BatchNorm2d)]
    met: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}  # per batch: numbers, their sum, that of their squares

    def meet(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)
        met[norm].append(torch.stack((torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1))))

    hooks = [norm.eval().register_forward_pre_hook(meet) for norm in norms]
    for images in batches:
        network(images)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        if not met[norm]:  # of a part that does not take part
            continue
        count, total, squares = torch.stack(met[norm]).sum(0)
        mean = total / count
        var = (squares / count - mean**2).clamp(min=0)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_((mean - norm.running_mean) * factor)
        norm.weight.copy_(factor * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    network.eval()


def mean_of(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of the weights of several trainings: less of the noise of each than any of them has."""
    return {k: torch.stack([s[k] for s in states]).mean(0) if v.is_floating_point() else v for k, v in states[-1].items()}


def run(layers: nn.Module, x: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """Outputs of all layers so far: those of the layers before are given, and stay as they are."""
    outputs = list(outputs)
    for layer in layers:
        if layer.f != -1:
            x = outputs[layer.f] if isinstance(layer.f, int) else [x if j == -1 else outputs[j] for j in layer.f]
        x = layer(x)
        outputs.append(x)
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="checkpoint of YOLO26n-pose")
    parser.add_argument("--data", required=True, help="data YAML; its training photos are seen")
    parser.add_argument("--images", type=int, default=100_000, help="crops seen")
    parser.add_argument("--size", type=int, default=416, help="side of a crop in pixels")
    parser.add_argument("--sides", type=float, nargs=2, default=(288, 960), help="range of a photo's longer side in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-power", type=float, default=0.5, help="a cell weighs the teacher's score to this power")
    parser.add_argument("--no-amp", action="store_true", help="float32 throughout")
    parser.add_argument("--no-labels", action="store_true", help="learn the teacher's keypoints alone")
    parser.add_argument("--neck", action="store_true", help="neck and score towers learn along")
    parser.add_argument("--neck-share", type=float, default=0.02, help="their learning rate, as a share of --lr")
    parser.add_argument("--start", type=Path, nargs="+", default=(), help="state files of trainings to start from; their mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    AMP["enabled"] = not args.no_amp
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    folders = check_det_dataset(str(catalog.resolve_data(args.data)))["train"]
    photos = images_of(Path(p) for p in ([folders] if isinstance(folders, str) else folders))
    teacher = YOLO(args.teacher).model.float().eval()
    student = ERPose("erpose-n.yaml")
    student.model.load(teacher)
    head, stock = student.model.model[-1], teacher.model[-1]
    for towers in (head.one2one_score, head.one2many_score):
        towers.load_state_dict(stock.one2one_cv3.state_dict())
    for p in [*student.model.parameters(), *teacher.parameters()]:
        p.requires_grad_(False)
    first_of_neck = next(i for i, layer in enumerate(student.model.model) if isinstance(layer, nn.Upsample))
    backbone, neck = student.model.model[:first_of_neck], student.model.model[first_of_neck:-1]
    backbone, own_neck = frozen(backbone), frozen(neck)
    prune(stock, head.one2one_pose)
    stock = frozen(stock)
    learns = nn.ModuleDict({"branch": head.one2one_pose.train().to(memory_format=torch.channels_last)})
    if args.neck:
        learns.update({"neck": frozen(neck), "scores": frozen(head.one2one_score)})
    for p in learns.parameters():
        p.requires_grad_(True)
    branch = learns["branch"]
    average = copy.deepcopy(learns).eval()
    groups = []
    for name, part in learns.items():
        for many in (True, False):
            some = [p for p in part.parameters() if (p.ndim > 1) == many]
            groups.append({"params": some, "weight_decay": 0.01 * many, "share": 1.0 if name == "branch" else args.neck_share})
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    state_file = args.out.with_suffix(".state.pt")
    step = 0
    if state_file.exists():
        state = torch.load(state_file)
        learns.load_state_dict(state["learns"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"{state_file}: {step * args.batch:,} crops seen", flush=True)
    elif args.start:
        start = mean_of([torch.load(file)["average"] for file in args.start])
        for part in (learns, average):
            if extra := part.load_state_dict(start, strict=False).unexpected_keys:  # without --neck it has the branch alone
                raise ValueError(f"--start holds what does not train here, {extra[0]} ...: give --neck, too")
    sigmas, margins, loss = torch.tensor(COCO_SIGMAS), default_margins(17), ERPoseLoss(torch.tensor(COCO_SIGMAS), STRIDES)
    steps = args.images // args.batch
    pieces = Photos(photos, args.size, tuple(args.sides), args.images, args.seed, not args.no_labels)
    rest = torch.utils.data.Subset(pieces, range(step * args.batch, steps * args.batch))
    loader = torch.utils.data.DataLoader(rest, args.batch, collate_fn=collate, num_workers=1, prefetch_factor=8)
    print(f"{len(photos):,} photos, {steps:,} steps", flush=True)

    def save() -> None:
        state = {"learns": learns.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, state_file.with_suffix(".part"))
        state_file.with_suffix(".part").replace(state_file)

    start, first, shown = time.time(), step, []
    for images, labels in loader:
        rate = args.lr * min(1, (step + 1) / min(300, steps / 10)) * (0.505 + 0.495 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with torch.no_grad():
            with precision():
                below = run(backbone, images, [])
                outputs = run(own_neck, below[-1], below)
            features = [outputs[j].float() for j in head.f]
            target = teacher_targets(stock, features, labels, sigmas, margins, args.weight_power)
        step += 1
        if not len(target["cell"]):
            continue
        if args.neck:
            with precision():
                outputs = run(learns["neck"], below[-1], below)
            features = [outputs[j].float() for j in head.f]
        value = pose_losses(branch, features, target, loss, sigmas)
        parts = [value.item()]
        if args.neck:
            value = value + (scores := score_loss(learns["scores"], features, target["scores"]))
            parts.append(scores.item())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(learns.parameters(), 5.0)
        optimizer.step()
        share = 1 - min(0.999, (20 + step) / (40 + step))
        with torch.no_grad():
            for mean, now in zip(average.state_dict().values(), learns.state_dict().values()):
                mean.lerp_(now, share) if mean.dtype.is_floating_point else mean.copy_(now)
        shown.append(parts)
        if step % 50 == 0:
            speed = (step - first) * args.batch / (time.time() - start)
            print(f"{step * args.batch:,} crops, {speed:.1f}/s, loss {np.mean(shown[-50:], 0).round(3)}", flush=True)
        if step % 250 == 0:
            save()
    for to in (head.one2one_pose, head.pose):
        to.load_state_dict(average["branch"].state_dict(), strict=False)  # the one-to-many side has heatmaps besides
    if args.neck:
        unfold(neck, average["neck"])
        for towers in (head.one2one_score, head.one2many_score):
            unfold(towers, average["scores"])
        crops = Photos(photos, args.size, tuple(args.sides), MEASURED, args.seed, labels=False)
        seen = torch.utils.data.DataLoader(crops, args.batch, collate_fn=collate)
        measure_norms(student.model, (images for images, _ in seen))
    for p in student.model.parameters():
        p.requires_grad_(True)
    save()
    student.ckpt = {}
    student.save(args.out)


if __name__ == "__main__":
    main()

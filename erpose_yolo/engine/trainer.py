"""Training: the stock pose trainer with our model, validator, label check, fitted box margins and exact resume."""

from __future__ import annotations

import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, SETTINGS, WORLD_SIZE
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from erpose_yolo import catalog
from erpose_yolo.arguments import check_arguments
from erpose_yolo.data.dataset import ERPoseDataset, build_dataset
from erpose_yolo.data.drawing import plot_skeletons
from erpose_yolo.data.skeletons import limbs_of, read_kpt_shape
from erpose_yolo.engine import checkpoint
from erpose_yolo.engine.distillation import DistillingCriterion, Teacher
from erpose_yolo.engine.validator import ERPoseValidator
from erpose_yolo.files import atomic_replace
from erpose_yolo.method.boxes import fit_margins
from erpose_yolo.method.oks import describe_sigmas, sigmas_for
from erpose_yolo.metrics.crowding import DEPLOYED_SCORE
from erpose_yolo.nn import HEAD
from erpose_yolo.nn.network import ERPoseModel
from erpose_yolo.nn.yolo26 import from_yolo26_pose, is_yolo26_pose

MAIN = RANK in {-1, 0}  # the process that writes files

# Optimiser steps per epoch below which gradients of fewer batches are summed than nbs=64 asks for: of 40 images at batch 16,
# a stock run makes less than one step per epoch and learns next to nothing in a hundred. Sets from 512 images on (at batch
# 16) are trained as ever.
LEAST_STEPS = 8

# What a run that found nobody is told: below these, too little training and tight sigmas are likely causes.
FEW_STEPS = 1000
TIGHT_SIGMA = 0.04


class ERPoseTrainer(PoseTrainer):
    """Stock pose trainer for ER-Pose models.

    A run that was cut off, at whatever moment, resumes from its last finished epoch. What is random in an epoch follows
    from the run's seed and the epoch's number, so on the CPU (no loader processes) it ends with the same weights, bit for
    bit. With loader processes, augmentation is drawn anew.

    Attributes:
        model_class: what is built and trained.
        teacher: of ``distill_model=``.
        waiting: batches since the last optimiser step, whose gradients wait for the next one.
    """

    model_class = ERPoseModel
    callbacks: dict[str, list[Any]]
    world_size: int
    wdir: Path
    last: Path
    best: Path
    teacher: Teacher | None = None
    _teacher_file: str | Path | None = None
    waiting = 0
    _accumulate = 1
    _state: dict[str, Any] | None = None  # of the checkpoint, until the first epoch after a resume begins
    _carries = False  # from there to the first optimiser step: gradients of the run that was cut off are waiting

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = dict(overrides or {})
        if overrides.get("data"):
            overrides["data"] = catalog.resolve_data(overrides["data"])
        for key in ("pretrained", "distill_model"):
            if overrides.get(key):
                overrides[key] = catalog.resolve_weights(overrides[key], SETTINGS["weights_dir"])
        check_arguments("train", overrides)
        super().__init__(cfg, overrides, _callbacks)
        if RANK != -1 and self.world_size:  # the stock count is that of this machine's GPUs
            self.world_size = WORLD_SIZE

    def get_dataset(self) -> dict[str, Any]:
        """Data dictionary, after a check of what training relies on.

        Raises:
            KeyError: no kpt_shape in the data YAML.
            ValueError: kpt_shape that is none, or sigmas that do not fit it.
        """
        resolve = catalog.resolve_stored_data if self.resume else catalog.resolve_data  # a resumed run brings its checkpoint's
        self.args.data = resolve(self.args.data)
        data = super().get_dataset()
        data["kpt_shape"] = read_kpt_shape(data["kpt_shape"], self.args.data)
        sigmas_for(data["kpt_shape"][0], data.get("kpt_oks_sigmas"))
        return data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> ERPoseDataset:
        """Data set of a split, see data.dataset.build_dataset."""
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        fraction = get_split_fraction(self.args.fraction, "train" if mode == "train" else self.args.split)
        return build_dataset(self.args, img_path, batch, self.data, mode, mode == "val", stride, fraction)

    def get_model(
        self,
        cfg: str | Path | dict[str, Any] | None = None,
        weights: nn.Module | None = None,
        verbose: bool = True,
    ) -> ERPoseModel:
        """Build the model for this data set and take over what fits of the weights.

        Raises:
            ValueError: a run is resumed on data with other keypoints than those it was started with.
        """
        if isinstance(cfg, dict) and cfg["head"][-1][2] != HEAD and is_yolo26_pose(weights):  # read by a process of its own (DDP)
            weights = from_yolo26_pose(weights)
            cfg = weights.yaml
        wanted, theirs = list(self.data["kpt_shape"]), list(getattr(weights, "kpt_shape", self.data["kpt_shape"]))
        if isinstance(weights, ERPoseModel) and theirs != wanted:
            message = f"kpt_shape {wanted} of {self.args.data} differs from kpt_shape {theirs} of the checkpoint"
            if self.resume:
                raise ValueError(f"{message}. A run can be resumed on its own data only; start a new one from the weights.")
            LOGGER.warning(f"{message}: keypoints of the same name are taken over, others learnt anew from their mean.")
        model = self.model_class(
            cfg or "erpose-n.yaml",
            nc=self.data["nc"],
            ch=self.data["channels"],
            data_kpt_shape=wanted,
            verbose=verbose and RANK == -1,
        )
        self.set_model_names_for_load(model)
        model.kpt_names = self.data.get("kpt_names")  # keypoints of the same name are taken over
        if weights is not None:
            model.load(weights)
        return model

    def set_model_attributes(self) -> None:
        """Attach keypoint names, limbs and sigmas to the model, say which sigmas are used, and find the teacher."""
        super().set_model_attributes()
        shape, sigmas = list(self.data["kpt_shape"]), self.data.get("kpt_oks_sigmas")
        self.model.kpt_shape = shape
        self.model.skeleton = [list(limb) for limb in limbs_of(self.data, shape[0])]
        if self._teacher_file:
            self.teacher = Teacher(self._teacher_file, self.model)
        if MAIN:
            LOGGER.info(describe_sigmas(shape[0], sigmas))

    def _setup_train(self) -> None:
        """Stock set-up of the student alone, then its loss with the teacher's.

        The stock wrapper of student and teacher would be what is averaged and saved, and knows features alone.
        """
        self._teacher_file, self.args.distill_model = self.args.distill_model, None
        try:
            super()._setup_train()
        finally:
            self.args.distill_model = self._teacher_file
        if self.teacher:
            network = unwrap_model(self.model)
            updates = getattr(getattr(network, "criterion", None), "updates", 0)  # of a resumed run
            network.criterion = DistillingCriterion(network, self.teacher, updates)

    def _build_train_pipeline(self) -> None:
        """Stock loaders and optimiser, then what depends on them.

        At ``on_pretrain_routine_end`` it would be too late: the averaged model is copied in between, and a run out of memory
        builds all this again.
        """
        super()._build_train_pipeline()
        if self.args.nbs == DEFAULT_CFG.nbs:  # else somebody has chosen how many images a step takes
            self.accumulate = min(self.accumulate, max(1, len(self.train_loader) // LEAST_STEPS))
        self.fit_box_margins()

    def fit_box_margins(self) -> None:
        """Fit the margins of derived boxes to the training labels (closed form, before the first epoch)."""
        keypoints, boxes = [], []
        for label in self.train_loader.dataset.labels:
            size = np.array(label["shape"][::-1], np.float32)  # (width, height) in pixels
            box, points = label["bboxes"] * np.tile(size, 2), label["keypoints"].copy()
            points[..., :2] *= size
            boxes.append(np.concatenate((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1))
            keypoints.append(points)
        margins = fit_margins(torch.from_numpy(np.concatenate(keypoints)), torch.from_numpy(np.concatenate(boxes)))
        head = unwrap_model(self.model).model[-1]
        head.margins.copy_(margins)

    def get_validator(self) -> ERPoseValidator:
        """Validator for the epochs of this run."""
        return ERPoseValidator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

    def _begin_batch(self) -> None:
        self.waiting += 1

    def _begin_epoch(self) -> None:
        """Seed the epoch by its number alone, and take over the gradients that a resumed run brings along."""
        attempt = self.nan_recovery_attempts  # an epoch repeated after a NaN must not run into the same one
        entropy = np.random.SeedSequence((self.args.seed, self.epoch, max(RANK, 0), attempt))
        seed = int(entropy.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.train_loader.generator.manual_seed(seed)
        if not self.train_loader.num_workers:
            self.train_loader.reset()  # its iterator draws from the generator once: in every epoch or in none
        if self._state:
            self.waiting, self._carries = self._state["waiting"], True
            for name, parameter in unwrap_model(self.model).named_parameters():
                if name in self._state["gradients"]:
                    parameter.grad = self._state["gradients"][name].to(parameter.device)
            self._state = None

    @property
    def accumulate(self) -> int:
        """Batches per optimiser step.

        The stock loop counts them from the start of the process and would step at the first batch after a resume.
        """
        return sys.maxsize if self._carries and self.waiting < self._accumulate else self._accumulate

    @accumulate.setter
    def accumulate(self, batches: int) -> None:
        self._accumulate = batches

    def optimizer_step(self) -> None:
        """Stock step; nothing waits any longer."""
        super().optimizer_step()
        self.waiting, self._carries = 0, False

    @contextmanager
    def _aside(self, files: Sequence[Path] = ()) -> Iterator[None]:
        """Have the stock trainer write into a folder aside, and rename what it wrote when all of it is complete.

        Args:
            files: checkpoints to copy there first.
        """
        home = self.wdir
        aside = home / ".part"
        try:
            if MAIN:
                shutil.rmtree(aside, ignore_errors=True)  # of a run that was cut off
                aside.mkdir(parents=True)
                for file in files:
                    checkpoint.copy_without_state(file, aside / file.name)
            self.wdir, self.last, self.best = aside, aside / self.last.name, aside / self.best.name
            yield
            if MAIN:  # last.pt comes last: it knows the best score, so best.pt must not lag behind it
                for file in sorted(aside.iterdir(), key=lambda file: file == self.last):
                    atomic_replace(file, home / file.name)
        finally:
            self.wdir, self.last, self.best = home, home / self.last.name, home / self.best.name
            if MAIN:
                shutil.rmtree(aside, ignore_errors=True)

    def save_model(self) -> bool:
        """Save the checkpoints; an error (a full disk) leaves those of the epoch before as they were.

        Raises:
            OSError: a file could not be written.
        """
        with self._aside():
            saved = bool(super().save_model())
            if saved:
                checkpoint.add_state(self.last, self)
        return saved

    def final_eval(self) -> None:
        """Strip and validate copies of the checkpoints, which then take the names of the whole ones."""
        with ExitStack() as stack:
            with torch_distributed_zero_first(LOCAL_RANK):  # the copies must be there when another process looks
                stack.enter_context(self._aside([file for file in (self.last, self.best) if file.exists()]))
            super().final_eval()
        if MAIN:
            self._explain_nothing()

    def _explain_nothing(self) -> None:
        """Say why nobody may have been found, where no detection of the last validation reaches the default threshold."""
        if not hasattr(self.validator, "collected"):  # nothing was validated (val=False)
            return
        best = max((float(row[0].max(initial=0)) for row in self.validator.collected.rows.values()), default=0.0)
        found = self.validator.exact.get("AP", 0.0)  # -1 where there is nobody to be found
        if found < 0 or (found > 0 and best >= DEPLOYED_SCORE):
            return
        steps, shape = self.ema.updates, self.data["kpt_shape"]
        mean = float(sigmas_for(shape[0], self.data.get("kpt_oks_sigmas")).mean())
        causes = []
        if steps < FEW_STEPS:
            causes.append(f"{steps} optimizer steps are few (epochs={2 * self.epochs}, or start from model=erpose-n.pt)")
        if mean < TIGHT_SIGMA:
            causes.append(f"OKS sigmas of {mean:.3f} on average are tight (kpt_oks_sigmas; COCO's are 0.066)")
        causes.append(f"labels or kpt_shape {shape} do not fit the images (erpose check {self.args.data} --show sheet.jpg)")
        LOGGER.warning(
            f"Nothing was found: AP is {found:.3f}, and the best score {best:.2f}, where predict and track show "
            f"those from {DEPLOYED_SCORE} on. Likely causes: {'; '.join(causes)}."
        )

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Stock resume, then the exact state where the checkpoint has one.

        Our callbacks are added here, the last step before the first epoch, so that they come after the user's: what these
        draw at random does not change an epoch.
        """
        super().resume_training(ckpt)
        # a copy: older releases share the model's, and ours would go to its next trainer, too
        self.callbacks = defaultdict(list, {event: list(found) for event, found in self.callbacks.items()})
        self.add_callback("on_train_epoch_start", ERPoseTrainer._begin_epoch)
        self.add_callback("on_train_batch_start", ERPoseTrainer._begin_batch)
        if self.resume and ckpt and ckpt.get(checkpoint.STATE):
            self._state = ckpt[checkpoint.STATE]
            checkpoint.restore(self, self._state, write_results=MAIN)

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Draw a training batch as skeletons."""
        limbs = limbs_of(self.data, self.data["kpt_shape"][0])
        plot_skeletons(batch, batch["im_file"], self.save_dir / f"train_batch{ni}.jpg", limbs, on_plot=self.on_plot)

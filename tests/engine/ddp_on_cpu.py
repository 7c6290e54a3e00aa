"""What stands in for CUDA when two processes train on the CPU; all else is the stock launch, loop and validation.

Imported by the processes that the stock launcher starts, by the name of the class below.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed, nn
from ultralytics.engine import validator as stock_validator
from ultralytics.utils import LOCAL_RANK, RANK

from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.engine.validator import ERPoseValidator

WORLD = 2


class Oracle(ERPoseValidator):
    """Answers with the labels, moved by a different distance in each image: an AP between 0 and 1."""

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess(batch)
        height, width = batch["img"].shape[2:]
        self.answers = torch.zeros(len(batch["img"]), 300, 57)
        for i, rows in enumerate(self.answers):
            number = int(batch["im_file"][i].rsplit("/")[-1].split(".")[0])
            keypoints = batch["keypoints"][batch["batch_idx"] == i] * torch.tensor([width, height, 1.0])
            keypoints[..., 0] += 1.5 * number
            low, high = keypoints[..., :2].amin(1), keypoints[..., :2].amax(1)
            score, category = torch.full((len(keypoints), 1), 0.9 - 0.1 * number), torch.zeros(len(keypoints), 1)
            rows[: len(keypoints)] = torch.cat((low, high, score, category, keypoints.flatten(1)), 1)
        return batch

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        return super().postprocess(self.answers)


class CPUTrainer(ERPoseTrainer):
    """Our trainer in two processes on the CPU. Writes the figures of its final validation to final.json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = WORLD, LOCAL_RANK == -1

    def _setup_ddp(self) -> None:
        distributed.init_process_group("gloo", rank=RANK, world_size=WORLD)
        parallel, backend = nn.parallel.DistributedDataParallel, stock_validator.AutoBackend

        def on_cpu(model: nn.Module, device_ids: Any, find_unused_parameters: bool, **kwargs: Any) -> nn.Module:
            return parallel(model, find_unused_parameters=False, **kwargs)

        nn.parallel.DistributedDataParallel = on_cpu  # type: ignore[misc, assignment]
        stock_validator.get_torch_device_backend = lambda kind: SimpleNamespace(current_device=lambda: 0)
        stock_validator.AutoBackend = lambda device, **kwargs: backend(device=torch.device("cpu"), **kwargs)

    def get_validator(self) -> Oracle:
        return Oracle(self.test_loader, save_dir=self.save_dir, args=vars(self.args), _callbacks=self.callbacks)

    def final_eval(self) -> None:
        super().final_eval()
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        everyone = [torch.zeros_like(weights) for _ in range(WORLD)]
        distributed.all_gather(everyone, weights)
        if RANK == 0:
            stock = {name: float(value) for name, value in self.metrics.items()}
            images = len(self.validator.collected.rows)
            same = torch.equal(*everyone)
            record = {"exact": self.validator.exact, "stock": stock, "images": images, "same weights": same}
            (self.save_dir / "final.json").write_text(json.dumps(record))

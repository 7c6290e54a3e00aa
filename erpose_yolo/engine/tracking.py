"""Tracking: which tracker by default, and a word where every score stays below the one from which a tracker starts tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.checks import check_yaml

TRACKER = "botsort.yaml"  # starts tracks from 0.25 on, the threshold of predict
PATIENCE = 30  # frames with detections after which a stream that goes on is told


class TrackWatch:
    """Predictor callbacks that warn once in a run whose detections never reach its tracker's threshold.

    Callbacks, because the ``yolo`` command hands no results back.

    Attributes:
        persist: the frames of one run come in several calls, so neither does a call begin a run nor its end close one.
    """

    def __init__(self) -> None:
        self.persist = False
        self._begin()

    def _begin(self) -> None:
        self.frames, self.highest = 0, 0.0  # with detections, and the best score in them
        self.settled = False  # warned, or no reason to

    def register(self, model: Any) -> None:
        """Add the callbacks to a YOLO model."""
        model.add_callback("on_predict_start", self.on_start)
        model.add_callback("on_predict_batch_end", self.on_frames)  # the tracker works at on_predict_postprocess_end
        model.add_callback("on_predict_end", self.on_end)

    def on_start(self, predictor: Any) -> None:
        """Begin a run."""
        if not self.persist:
            self._begin()

    def on_frames(self, predictor: Any) -> None:
        """Look at tracked frames."""
        if self.settled or predictor.args.mode != "track":
            return
        for result in predictor.results:
            if result.boxes.is_track:
                self.settled = True
                return
            if len(result):
                self.frames += 1
                self.highest = max(self.highest, float(result.boxes.conf.max()))
        if self.frames >= PATIENCE:
            self._judge(predictor.args.tracker)

    def on_end(self, predictor: Any) -> None:
        """Judge a run that is over."""
        if self.frames and not (self.settled or self.persist) and predictor.args.mode == "track":
            self._judge(predictor.args.tracker)

    def _judge(self, tracker: str) -> None:
        self.settled = True
        file = check_yaml(tracker)
        settings = YAML.load(file)
        starts = {key: float(settings.get(key, 0)) for key in ("new_track_thresh", "track_high_thresh")}
        threshold = max(starts.values())  # a new track takes both
        if self.highest > threshold:
            return  # something else keeps tracks from starting
        keys = " and ".join(key for key, value in starts.items() if value >= self.highest)
        LOGGER.warning(
            f"No identities: the best detection in {self.frames} frames scores {self.highest:.2f}, but {Path(file).name} starts "
            f"tracks from {threshold:g} on. Lower {keys} in a copy of {file} and give it as tracker=COPY.yaml."
        )

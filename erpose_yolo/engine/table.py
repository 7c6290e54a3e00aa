"""Tracks as a table, one row per keypoint, as CSV, JSON or Parquet.

Columns (COLUMNS): ``source`` video or camera; ``frame`` of it, from 1; ``id`` of the person, its own in each source; ``keypoint``
name; ``x``, ``y`` pixels; ``sigma`` standard deviation in pixels, empty where nothing tells it; ``score`` the keypoint's own, 0
to 1; ``filled`` whether nobody saw it and the offline smoother put it there.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from erpose_yolo.data.skeletons import COCO_17, keypoint_names
from erpose_yolo.engine.offline import GAP, smooth_track
from erpose_yolo.engine.smoothing import check_pace, error_bars, frame_rate
from erpose_yolo.files import written_whole

COLUMNS = ("source", "frame", "id", "keypoint", "x", "y", "sigma", "score", "filled")
BATCH = 20_000  # rows that are written at once
LONGEST = 9000  # frames of a track that are smoothed at once


class TrackTable:
    """Writes tracks to a file as they come.

    The file is there, whole, when the ``with`` block ends, and not at all where an error ends it; Ctrl-C and a loop that is left
    early end it well. Memory holds BATCH rows, and with ``offline`` the tracks in sight, up to LONGEST frames of each.

    Args:
        file: ends in .csv, .json (a list of objects) or .parquet.
        offline: smooth each track once it is over (offline.py) and fill its gaps; rows then come track by track.

    Raises:
        ValueError: another ending.
        ModuleNotFoundError: Parquet without pyarrow.

    Example:
        >>> with TrackTable("people.csv") as table:
        ...     for result in model.track("street.mp4", stream=True):
        ...         table.add(result)
    """

    EVENT = "on_predict_postprocess_end"

    def __init__(self, file: str | Path, offline: bool = False) -> None:
        self.file, self.offline = Path(file), offline
        kind = _WRITERS.get(self.file.suffix.lower())
        if kind is None:
            raise ValueError(f"out={file}: the name of a table ends in {', '.join(_WRITERS)}.")
        if kind is _Parquet:
            try:
                import pyarrow.parquet  # noqa: F401
            except ImportError:
                fix = "pip install pyarrow, or give out=NAME.csv"
                raise ModuleNotFoundError(f"out={file}: Parquet needs pyarrow: {fix}.") from None
        self._kind: type[_Text] | type[_Parquet] = kind
        self._frames: dict[str, int] = defaultdict(int)  # source: frames seen
        self._open: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}  # tracks that wait for the smoother
        self._rates: dict[str, float] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._names: list[str] | None = None

    def __enter__(self) -> TrackTable:
        self._stack = ExitStack()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._kind(self._stack.enter_context(written_whole(self.file)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, (KeyboardInterrupt, GeneratorExit)):
            kind = error = trace = None  # who stops a camera wants what was seen
        try:
            if kind is None:
                for key in list(self._open):
                    self._end(key)
                self._flush()
            self._writer.close()
        finally:
            self._stack.__exit__(kind, error, trace)

    @contextmanager
    def behind(self, model: Any) -> Iterator[None]:
        """Collect what a model tracks in the block, behind its tracker and smoother."""
        model.add_callback(self.EVENT, self)
        try:
            with self:
                yield
        finally:
            model.callbacks[self.EVENT].remove(self)

    def __call__(self, predictor: Any) -> None:
        """Callback of a predictor: add what its tracker has just identified."""
        if predictor.args.mode != "track":
            return
        mode = predictor.dataset.mode
        if self.offline:
            check_pace(predictor)
        for i, result in enumerate(predictor.results):
            if self._names is None and result.keypoints is not None:
                given = getattr(getattr(predictor.model, "model", None), "kpt_names", None)
                self._names = keypoint_names(given, result.keypoints.data.shape[1])
            source = str(predictor.dataset.sources[i] if mode == "stream" else result.path)
            source = str(Path(source).parent) if mode == "image" else source
            self.add(result, source, frame_rate(predictor, i) if self.offline else 0)

    def add(self, result: Any, source: str | None = None, fps: float = 0) -> None:
        """Add the next frame of a source.

        Args:
            result: Results; people without an identity are left out.
            source: None: the path of the result.
            fps: frames per second, read where the table is ``offline``.

        Raises:
            ValueError: offline, and fps is not positive.
        """
        if self.offline and not 0 < fps < float("inf"):
            raise ValueError(f"A table that smooths offline needs frames per second, got fps={fps}.")
        source = str(result.path) if source is None else source
        self._frames[source] += 1
        self._rates[source] = fps
        frame, ids = self._frames[source], None if result.boxes is None else result.boxes.id
        if ids is not None and result.keypoints is not None:
            found = result.keypoints.data.detach().cpu().double().numpy()
            sigma = error_bars(result)
            rows = np.full((*found.shape[:2], 4), np.nan)  # x, y, sigma, score
            rows[..., :2], rows[..., 3] = found[..., :2], found[..., 2] if found.shape[2] > 2 else 1
            if sigma is not None:
                rows[..., 2] = sigma
            for track, person in zip(ids.int().tolist(), rows):
                if self.offline:
                    self._open.setdefault((source, track), []).append((frame, person))
                else:
                    self._write(source, track, np.array([frame]), person[None], np.zeros((1, len(person)), bool))
        for key, seen in list(self._open.items()):
            if key[0] == source and (frame - seen[-1][0] > GAP * fps or len(seen) >= LONGEST):
                self._end(key)

    def _end(self, key: tuple[str, int]) -> None:
        """Smooth and write a track that is over."""
        seen = self._open.pop(key)
        frames = np.arange(seen[0][0], seen[-1][0] + 1)
        rows = np.full((len(frames), *seen[0][1].shape), np.nan)
        for frame, person in seen:
            rows[frame - frames[0]] = person
        filled = np.isnan(rows[..., 0])
        rows[..., :2], rows[..., 2] = smooth_track(rows[..., :2], self._rates[key[0]], rows[..., 2])
        rows[filled, 3] = 0
        self._write(*key, frames, rows, filled)

    def _write(self, source: str, track: int, frames: np.ndarray, rows: np.ndarray, filled: np.ndarray) -> None:
        names = self._names or (COCO_17.names if rows.shape[1] == len(COCO_17.names) else [str(k) for k in range(rows.shape[1])])
        for frame, people, marks in zip(frames.tolist(), rows.round(3).tolist(), filled.tolist()):
            for name, (x, y, sigma, score), mark in zip(names, people, marks):
                self._rows.append((source, frame, track, name, x, y, None if sigma != sigma else sigma, score, mark))
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._rows)
        self._rows = []


class _Text:
    """CSV, or JSON as a list of objects, one a line."""

    def __init__(self, file: Path) -> None:
        self.handle = open(file, "w", encoding="utf-8", newline="")
        self.begin()

    def begin(self) -> None:
        csv.writer(self.handle).writerow(COLUMNS)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        csv.writer(self.handle).writerows(rows)

    def close(self) -> None:
        self.handle.close()


class _Json(_Text):
    def begin(self) -> None:
        self.before = "[\n"

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            self.handle.write(self.before + json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=False))
            self.before = ",\n"

    def close(self) -> None:
        self.handle.write("[]\n" if self.before == "[\n" else "\n]\n")
        super().close()


class _Parquet:
    def __init__(self, file: Path) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        types = (pa.string(), pa.int64(), pa.int64(), pa.string(), *[pa.float32()] * 4, pa.bool_())
        self.schema, self.batch = pa.schema(list(zip(COLUMNS, types))), pa.RecordBatch
        self.writer = ParquetWriter(file, self.schema)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        columns = zip(*rows) if rows else [[]] * len(COLUMNS)
        self.writer.write_batch(self.batch.from_pydict(dict(zip(COLUMNS, map(list, columns))), self.schema))

    def close(self) -> None:
        self.writer.close()


_WRITERS: dict[str, type[_Text] | type[_Parquet]] = {".csv": _Text, ".json": _Json, ".parquet": _Parquet}


def smooth_table(file: str | Path, out: str | Path, fps: float) -> None:
    """Smooth the tracks of a saved table and fill their gaps (offline.py); tracks with longer gaps become pieces.

    Args:
        file: table of :class:`TrackTable`.
        out: table to write.
        fps: frames per second of the video.

    Raises:
        ValueError, ModuleNotFoundError: see :class:`TrackTable`.
    """
    tracks: dict[tuple[str, int], dict[int, dict[str, tuple[float, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_table(file):
        values = tuple(float("nan") if row[k] in (None, "") else float(row[k]) for k in ("x", "y", "sigma", "score"))
        if str(row["filled"]) != "True":
            tracks[row["source"], int(row["id"])][int(row["frame"])][row["keypoint"]] = values
    with TrackTable(out, offline=True) as table:
        for (source, track), frames in tracks.items():
            table._names = list(dict.fromkeys(name for person in frames.values() for name in person))
            table._rates[source] = fps
            missing = (float("nan"),) * 4
            for frame in sorted(frames):
                seen = table._open.setdefault((source, track), [])
                if seen and frame - seen[-1][0] > GAP * fps:
                    table._end((source, track))
                    seen = table._open.setdefault((source, track), [])
                seen.append((frame, np.array([frames[frame].get(name, missing) for name in table._names])))
            table._end((source, track))


def read_table(file: str | Path) -> list[dict[str, Any]]:
    """Rows of a table of :class:`TrackTable`.

    Raises:
        ValueError: the file has another ending or other columns.
    """
    suffix = Path(file).suffix.lower()
    if suffix == ".parquet":
        from pyarrow.parquet import read_table as read

        rows = read(file).to_pylist()
    elif suffix in _WRITERS:
        with open(file, encoding="utf-8", newline="") as handle:
            rows = json.load(handle) if suffix == ".json" else list(csv.DictReader(handle))
    else:
        raise ValueError(f"{file}: the name of a table ends in {', '.join(_WRITERS)}.")
    if rows and not set(COLUMNS) <= set(rows[0]):
        raise ValueError(f"{file}: a table of tracks has the columns {', '.join(COLUMNS)}; this one has {', '.join(rows[0])}.")
    return list(rows)

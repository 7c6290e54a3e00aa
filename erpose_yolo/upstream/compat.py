"""Every touch of what ultralytics does not promise to keep: the supported range, the one patch, and why.

No other module of this package may use a private name of ultralytics (``tests/test_imports.py`` keeps it so), so a new
release of ultralytics is checked here first. Nothing heavy is imported at the top: :func:`install` runs at the end of
the import of ``ultralytics.models.yolo.model``, while the packages around that module are still being imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, cast

from erpose_yolo.nn import HEAD

# From the oldest that the smoke tests pass on to the first that is not to be trusted; equal to pyproject's. Before 8.4.130
# there is no get_split_fraction, before 8.4.127 no BaseBackend.read_metadata; before 2.4 torch has no add_safe_globals.
SUPPORTED = {"ultralytics": (">=8.4.130", "<8.5"), "torch": (">=2.4",)}


class UpstreamContract(NamedTuple):
    """A name of ultralytics that it does not promise to keep.

    Attributes:
        name: "module:attribute.attribute".
        shape: what must be so. "(a, b, /, c=1)": parameters by name and default, those before the slash in these places;
            what else it takes must be optional. "= 300": a value. "uses x y": identifiers or strings in its code. Empty:
            that it exists.
        breaks: what we use it for, and so what fails when it moves.
    """

    name: str
    shape: str
    breaks: str


# By module: name, shape and what breaks. The first one is the patch.
TOUCHED: dict[str, tuple[tuple[str, str, str], ...]] = {
    "ultralytics.models.yolo.model": (
        (
            "YOLO.__init__",
            "(self, model, /, task=None, verbose=False)",
            "replaced, see install(): stock commands and YOLO(...) offer no way to register a model family",
        ),
        (
            "YOLO.__init__",
            "uses __class__ __dict__",
            "it changes the class of what it makes, for RT-DETR; if not, do its callers still expect that of us?",
        ),
    ),
    "ultralytics.cfg": (
        ("entrypoint", "", "the erpose command runs stock commands with it"),
        ("merge_equals_args", "(args, /)", "the erpose command looks at each word"),
        ("check_dict_alignment", "(base, custom, /)", "unknown arguments are refused in one sentence"),
        ("get_save_dir", "(args, /)", "folder of erpose eval"),
        ("parse_key_value_pair", "(pair, /)", "arguments of erpose eval and erpose label"),
    ),
    "ultralytics.data.base": (
        ("BaseDataset.load_image", "uses buffer", "exact resume: the images that mosaic draws from"),
        ("BaseDataset.__init__", "uses cv2_flag", "our reader decodes images as training will"),
        ("BaseDataset.set_rectangle", "uses labels shape", "rect=: labels keep their shape for the margins"),
        (
            "BaseDataset.__init__",
            "(self, img_path, imgsz, cache, augment, hyp, prefix, rect, batch_size, stride, pad, single_cls, classes, fraction)",
            "build_dataset passes these",
        ),
    ),
    "ultralytics.data.build": (("InfiniteDataLoader.reset", "(self, /)", "each epoch draws its order from its own seed"),),
    "ultralytics.data.dataset": (
        ("YOLODataset.cache_labels", "uses verify_args", "our reader of box-free rows comes in there"),
        ("YOLODataset.get_labels", "uses get_cache_hash", "keeps stock label caches and ours apart"),
    ),
    "ultralytics.data.loaders": (
        ("LoadStreams.__init__", "uses sources fps", "tables name streams; their frame rates"),
        ("LoadImagesAndVideos._new_video", "uses fps", "smooth=True and smooth=offline"),
    ),
    "ultralytics.data.utils": (
        ("check_image", "(im_file, /)", "our reader checks images with it"),
        ("get_hash", "(paths, /)", "hash of our label caches"),
        ("get_split_fraction", "(fraction, split, /)", "honours fraction="),
        ("check_det_dataset", "(dataset, /, split='')", "erpose eval reads data YAMLs"),
    ),
    "ultralytics.engine.exporter": (
        (
            "Exporter.__call__",
            "uses on_export_start model im metadata output_shape imgsz file quantize end2end",
            "exporter.prepare fits model, input and metadata to the format at that callback",
        ),
    ),
    "ultralytics.engine.model": (
        (
            "Model._new",
            "(self, cfg, /, task=None, verbose=False)",
            "ERPose._new builds our model from a YAML; without it parse_model fails on ERPoseHead",
        ),
        ("Model._load", "(self, weights, /, task=None)", "ERPose._load refuses files of other models with a reason"),
        ("Model.__init__", "uses _new _load", "see these two"),
        ("Model._smart_load", "uses task_map", "our trainer, validator and predictor are found by it"),
        ("Model.predict", "(self, source=None, stream=False, predictor=None)", "slices bring another"),
    ),
    "ultralytics.engine.predictor": (
        (
            "BasePredictor.stream_inference",
            "uses batch preprocess inference postprocess results write_results on_predict_postprocess_end",
            "sliced prediction replaces what lies between loading and saving; smoothing steps in behind the trackers",
        ),
        ("BasePredictor.write_results", "(self, i, p, im, s, /)", "counts views in the log"),
        ("BasePredictor.write_results", "uses plot save_txt", "error bars in what predict saves"),
        (
            "BasePredictor.stream_inference",
            "uses results run_callbacks on_predict_start on_predict_postprocess_end on_predict_batch_end on_predict_end",
            "tells of a run without identities: looks at results after the tracker, which works at the second of these",
        ),
    ),
    "ultralytics.engine.results": (
        (
            "Results.plot",
            "(self, /, kpt_line, show, save, filename, pil, line_width, color_mode)",
            "limbs of other skeletons than COCO's are drawn on what it returns",
        ),
        ("Results.new", "(self, /)", "results that are indexed or moved keep their limbs"),
        ("Results._apply", "uses _keys new", "results that are indexed or moved keep their error bars"),
        ("Results.save_txt", "(self, txt_file, save_conf=False, /)", "error bars follow what it writes"),
        ("Results.summary", "(self, normalize=False, decimals=5, /)", "error bars are added to it"),
        ("Results.to_df", "uses summary", "tables of results have error bars"),
    ),
    "ultralytics.engine.trainer": (
        ("BaseTrainer._do_train", "uses criterion update", "counts epochs for our loss schedules"),
        (
            "BaseTrainer.resume_training",
            "uses criterion init_criterion updates update",
            "sets the epoch of our loss schedules when a run is resumed",
        ),
        (
            "BaseTrainer.build_optimizer",
            "uses cv3 one2one_cv3",
            "our head answers to these names for the learning rate of its scores",
        ),
        (
            "BaseTrainer._setup_train",
            "uses _build_train_pipeline",
            "box margins are fitted when it has made the loaders; else derived boxes keep default margins",
        ),
        (
            "BaseTrainer._setup_train",
            "uses setup_model set_model_attributes distill_model",
            "a teacher is loaded in the second of these, and the stock wrapper of student and teacher kept off",
        ),
        ("BaseTrainer._build_train_pipeline", "uses train_loader test_loader", "labels for the margins"),
        (
            "BaseTrainer._do_train",
            "uses accumulate optimizer_step run_callbacks on_train_epoch_start on_train_batch_start save_model final_eval",
            "exact resume: seeds epochs, counts batches since the last step, keeps the state in checkpoints",
        ),
        ("BaseTrainer.save_model", "uses last best wdir", "checkpoints are written aside, then renamed"),
        ("BaseTrainer._handle_nan_recovery", "uses nan_recovery_attempts", "an epoch repeated after a NaN gets another seed"),
        ("BaseTrainer.__init__", "uses callbacks csv", "exact resume: its callbacks, results.csv"),
    ),
    "ultralytics.engine.validator": (
        (
            "BaseValidator.__call__",
            "uses end2end init_metrics preprocess postprocess update_metrics gather_stats get_stats print_results",
            "the steps that ERPoseValidator and ExactPose step into; end2end is set there, which our head ignores",
        ),
    ),
    "ultralytics.models.yolo.pose": (
        (
            "PoseTrainer.__init__",
            "(self, cfg, overrides=None, _callbacks=None, /)",
            "ERPoseTrainer resolves our data sets in overrides",
        ),
        ("PoseTrainer.set_model_names_for_load", "(self, model, /)", "class names of a new model"),
        ("PoseValidator.init_metrics", "uses sigma kpt_shape", "we set the sigmas after it"),
        ("PoseValidator.scale_preds", "(self, predn, pbatch, /)", "exact figures in image pixels"),
        ("PosePredictor.construct_result", "(self, pred, img, orig_img, img_path, /)", "tiles and limbs"),
        ("PosePredictor.construct_results", "(self, preds, img, orig_imgs, /)", "rows to Results"),
    ),
    "ultralytics.nn.backends.base": (
        ("BaseBackend.read_metadata", "(file, /)", "tells an export of ours from a stock one without its runtime"),
        (
            "BaseBackend.apply_metadata",
            "uses setattr",
            "what marks an export for predictor and validator (its units) becomes an attribute of the backend",
        ),
    ),
    "ultralytics.nn.backends.openvino": (
        (
            "OpenVINOBackend.load_model",
            "uses compile_model ov_compiled_model partial",
            "float32 exports are compiled anew, with the options of the first time, so that they compute in float32",
        ),
    ),
    "ultralytics.nn.modules": (
        ("Pose.__init__", "uses cv4", "the neck's widths are read off this branch of the placeholder"),
        ("Pose.get_topk_index", "(self, scores, max_det, /)", "sorts the rows of the picked cells"),
        ("Detect.max_det", "= 300", "rows of an export"),
        ("Detect.export", "= False", "the head returns rows alone where the exporter sets it"),
        ("Pose.kpts_decode", "(self, kpts, /)", "keypoints of a teacher, in the cells of its last call"),
        ("Pose.forward_head", "uses kpts", "raw keypoints of a teacher"),
        ("Detect.forward", "uses one2one one2many", "raw outputs of a teacher, by assignment"),
        ("Detect._inference", "uses scores", "raw scores of a teacher"),
    ),
    "ultralytics.nn.modules.head": (
        ("Pose26.__init__", "uses cv4 cv4_kpts one2one_cv4 one2one_cv4_kpts", "pose towers and keypoints are copied from these"),
        ("Detect.__init__", "uses cv3 one2one_cv3", "score towers are copied from these"),
    ),
    "ultralytics.nn.tasks": (
        ("torch_safe_load", "(weight, /, safe_only=None)", "restricted loading of our checkpoints"),
        (
            "PoseModel.__init__",
            "(self, cfg, ch=3, nc=None, data_kpt_shape=(None, None), verbose=True)",
            "ERPoseModel builds a stock model and changes its head",
        ),
        ("DetectionModel.__init__", "uses stride bias_init", "our head takes over the placeholder's strides"),
        ("BaseModel.fuse", "uses fuse", "our head drops there what only training uses"),
        ("BaseModel.loss", "uses criterion init_criterion", "our loss is made there"),
        ("load_checkpoint", "(weight, /, device=None)", "reads a teacher, and weights that erpose models counts"),
    ),
    "ultralytics.trackers": (("register_tracker", "(model, persist, /)", "smoothing and tables come behind it"),),
    "ultralytics.trackers.byte_tracker": (("BYTETracker.reset", "uses frame_id", "tells smoothing that identities begin again"),),
    "ultralytics.trackers.track": (("on_predict_postprocess_end", "uses trackers results mode", "smoothing reads these"),),
    "ultralytics.utils": (("SAFE_LOAD", "", "then our classes must be registered before any .pt is read"),),
    "ultralytics.utils.patches": (
        ("PIL_FALLBACK_SUFFIXES", "", "images that OpenCV does not read"),
        ("imread", "(filename, /, flags)", "our reader decodes images as training will"),
    ),
    "ultralytics.utils.plotting": (
        ("class_activation_map", "uses one2one scores", "visualize=: our head names its scores so"),
        ("Annotator.text", "(self, xy, text, txt_color, /)", "captions of batch images"),
    ),
}

CONTRACTS = tuple(
    UpstreamContract(f"{module}:{name}", shape, breaks) for module, names in TOUCHED.items() for name, shape, breaks in names
)

# Methods that ours replace and stock code calls: one that is renamed upstream is never called again, without any error.
REPLACED = {
    "ultralytics.models.yolo.model:YOLO": "__init__ _load _new benchmark calibrate export load predict save task_map track val",
    "ultralytics.nn.tasks:PoseModel": "__init__ init_criterion load predict",
    "ultralytics.nn.modules:Pose": "__init__ agnostic_nms bias_init end2end forward fuse",
    "ultralytics.models.yolo.pose:PoseTrainer": "__init__ _build_train_pipeline _setup_train build_dataset final_eval get_dataset "
    "get_model get_validator optimizer_step plot_training_samples resume_training save_model set_model_attributes",
    "ultralytics.models.yolo.pose:PoseValidator": "__init__ build_dataset gather_stats get_stats init_metrics plot_predictions "
    "plot_val_samples postprocess pred_to_json preprocess print_results update_metrics",
    "ultralytics.models.yolo.pose:PosePredictor": "construct_result inference postprocess setup_model",
    "ultralytics.engine.results:Results": "new plot save_txt summary to_csv to_df to_json",
    "ultralytics.utils.metrics:PoseMetrics": "fitness",
    "ultralytics.data.dataset:YOLODataset": "get_cache_hash set_rectangle verify_args",
}

MARK = "__erpose__"  # attribute of the function that replaces YOLO.__init__

_converting = False  # see converting()
_warned = False  # of an unsupported ultralytics: once per process


def install() -> None:
    """Make ``YOLO(...)`` hand over to :class:`erpose_yolo.model.ERPose` for a YAML, checkpoint or export of ours.

    The one patch point of this package. ``YOLO.__init__`` itself hands over to RTDETR and YOLOE by changing
    ``self``'s class and ``__dict__``; the replacement does the same for ER-Pose and runs the original for stock models.
    Subclasses of ``YOLO`` (YOLOWorld, YOLOE, ERPose, a user's own) have made their choice: they get the original.

    Idempotent, per class and not per process: a reloaded ``YOLO`` is patched again.
    """
    yolo = _yolo()
    if not hasattr(yolo.__init__, MARK):
        yolo.__init__ = _with_hand_over(yolo)
    warn_if_unsupported()

    from ultralytics.utils import SAFE_LOAD

    if SAFE_LOAD:  # this process unpickles registered classes only; importing network registers ours
        importlib.import_module("erpose_yolo.nn.network")


def uninstall() -> None:
    """Give ``YOLO`` its own ``__init__`` back (for tests)."""
    yolo = _yolo()
    if hasattr(yolo.__init__, MARK):
        yolo.__init__ = yolo.__init__.__wrapped__


def _yolo() -> Any:
    return importlib.import_module("ultralytics.models.yolo.model").YOLO


def _with_hand_over(yolo: Any) -> Any:
    """Return the replacement for ``yolo.__init__``."""
    original = yolo.__init__

    @functools.wraps(original)  # keeps signature and docstring, and the original as __wrapped__
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is not yolo:
            original(self, *args, **kwargs)
        elif is_ours_by_name(args[0] if args else kwargs.get("model")):
            _hand_over(self, *args, **kwargs)
        else:
            original(self, *args, **kwargs)
            if type(self) is yolo and (head_name(self) == HEAD or (_converting and is_convertible(self))):
                _hand_over(self, self)  # shares what is loaded, nothing is read twice

    setattr(__init__, MARK, True)
    return __init__


def _hand_over(self: Any, *args: Any, **kwargs: Any) -> None:
    """Turn a ``YOLO`` into the ``ERPose`` that these arguments make."""
    from erpose_yolo.model import ERPose

    new = ERPose(*args, **kwargs)
    self.__class__ = type(new)
    self.__dict__ = new.__dict__


@contextmanager
def converting() -> Iterator[None]:
    """While this lasts, ``YOLO(...)`` hands stock YOLO26-pose checkpoints over, too: what the erpose command runs is ER-Pose."""
    global _converting
    before, _converting = _converting, True
    try:
        yield
    finally:
        _converting = before


def is_convertible(model: Any) -> bool:
    """Tell whether a ``YOLO`` object holds a stock YOLO26-pose network; an export of one cannot be converted."""
    return not isinstance(model.model, (str, Path)) and head_name(model) == "Pose26"


def is_ours_by_name(model: object) -> bool:
    """Tell whether a model argument is ours by its name, with any folder before it.

    These are ``erpose*.yaml``; ``*.safetensors``, which stock ultralytics takes for an export and cannot open; and weights
    that ship with this package, which it would look for in the net.
    """
    from erpose_yolo import catalog

    if not isinstance(model, (str, Path)):
        return False
    path = Path(model)
    if path.suffix.lower() == ".safetensors" or catalog.is_weights_name(model):
        return True
    return path.stem.lower().startswith("erpose") and path.suffix.lower() in {".yaml", ".yml"}


def head_name(model: Any) -> str:
    """Return the class name of the head of a ``YOLO`` object's network or export; empty if it has none to tell."""
    network = model.model
    if isinstance(network, (str, Path)):  # an export is kept as its path
        from ultralytics.nn.backends.base import BaseBackend

        if Path(network).suffix.lower() == ".mnn":  # the one format that ultralytics leaves to the runtime
            from erpose_yolo.export.exporter import read_metadata

            return str(read_metadata(network).get("head", ""))
        return str(BaseBackend.read_metadata(network).get("head", ""))
    layers = getattr(network, "model", None)
    try:
        return type(layers[-1]).__name__ if layers is not None else ""
    except (TypeError, IndexError, KeyError):  # a foreign module whose `model` is no sequence of layers
        return ""


def is_argument(key: str) -> bool:
    """Tell whether Ultralytics takes a configuration argument of this name, be it one that it has deprecated."""
    from ultralytics.cfg import DEFAULT_CFG_DICT, check_dict_alignment
    from ultralytics.utils import LOGGER

    before, LOGGER.disabled = LOGGER.disabled, True  # it prints its whole help, or that the name is deprecated
    try:
        check_dict_alignment(DEFAULT_CFG_DICT, {key: None})
    except SyntaxError:
        return False
    finally:
        LOGGER.disabled = before
    return True


def complaints() -> Iterator[str]:
    """Yield a line for each name of :data:`CONTRACTS` and :data:`REPLACED` that is not as we rely upon it: name, what, and so what.

    Imports what it checks.
    """
    for touch in CONTRACTS:
        try:
            wrong = _mismatch(_resolve(touch.name), touch.shape)
        except (ImportError, AttributeError) as error:
            wrong = f"is gone ({error})"
        if wrong:
            yield f"{touch.name} {wrong}. Breaks: {touch.breaks}"
    for owner, methods in REPLACED.items():
        for method in methods.split():
            try:
                _resolve(f"{owner}.{method}")
            except (ImportError, AttributeError) as error:
                yield f"{owner}.{method} is gone ({error}). Breaks: ours, which replaces it, is never called"


def _resolve(name: str) -> Any:
    module, _, attributes = name.partition(":")
    return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))


def _mismatch(thing: Any, shape: str) -> str:
    """Say in what a thing differs from a :class:`UpstreamContract`'s shape; empty if in nothing."""
    if shape.startswith("= "):
        return "" if repr(thing) == shape[2:] else f"is {thing!r}, not {shape[2:]}"
    if shape.startswith("uses "):
        lacking = set(shape.split()[1:]) - set(_words(inspect.unwrap(thing).__code__))
        return f"does not use {', '.join(sorted(lacking))}" if lacking else ""
    if shape.startswith("("):
        return _signature_mismatch(inspect.signature(thing).parameters, shape)
    return ""


def _signature_mismatch(taken: Mapping[str, inspect.Parameter], shape: str) -> str:
    wanted = cast("ast.Lambda", ast.parse(f"lambda {shape[1:-1]}: 0", mode="eval").body).args
    placed, names = ([arg.arg for arg in args] for args in (wanted.posonlyargs, wanted.posonlyargs + wanted.args))
    if list(taken)[: len(placed)] != placed or not set(names) <= set(taken):
        return f"takes ({', '.join(taken)}), not {shape}"
    defaults = {name: ast.literal_eval(value) for name, value in zip(reversed(names), reversed(wanted.defaults))}
    wrong = [f"{name}={taken[name].default!r}" for name, value in defaults.items() if taken[name].default != value]
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wrong += [n for n, p in taken.items() if n not in names and p.default is p.empty and p.kind not in loose]
    return f"takes {', '.join(wrong)}, not {shape}" if wrong else ""


def _words(code: CodeType) -> Iterator[str]:
    """Yield the identifiers and strings of a function, nested ones included, its docstring left out."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)
        elif isinstance(constant, str):
            yield constant


def is_supported(version: str, package: str = "ultralytics") -> bool:
    """Tell whether a version of a package lies in :data:`SUPPORTED`; a suffix such as ``.dev0`` or ``+cpu`` is left out."""
    low, *high = (_numbers(bound) for bound in SUPPORTED[package])
    return low <= _numbers(version) and all(_numbers(version) < bound for bound in high)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.search(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def warn_if_unsupported() -> None:
    """Log one warning per process when ultralytics or torch is outside the supported range, and go on."""
    global _warned
    import ultralytics
    from ultralytics.utils import LOGGER

    if _warned:
        return
    loaded = {"ultralytics": ultralytics, "torch": sys.modules.get("torch")}  # ultralytics has imported torch
    for package, module in loaded.items():
        installed = str(getattr(module, "__version__", ""))
        if installed and not is_supported(installed, package):
            _warned = True
            wanted = f"{package}{','.join(SUPPORTED[package])}"
            LOGGER.warning(
                f"erpose-yolo supports {wanted}, but {installed} is installed. Going on. What it lacks: "
                f"python -m erpose_yolo.upstream.compat. If an ER-Pose model fails: pip install '{wanted}'"
            )


def main() -> int:
    """Print the supported ranges and what of :data:`CONTRACTS` the installed ultralytics lacks; return an exit code."""
    import torch
    import ultralytics

    wrong = list(complaints())
    for module in (ultralytics, torch):
        name, version = module.__name__, str(module.__version__)
        verdict = "supported" if is_supported(version, name) else "not supported"
        print(f"{name} {version}: {verdict} ({','.join(SUPPORTED[name])})")
    print("\n".join(wrong) or "Every name that erpose-yolo relies upon is as it was.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

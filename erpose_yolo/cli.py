"""The ``erpose`` command: our own commands, and Ultralytics' ``yolo`` command with this package attached.

    erpose check data.yaml              erpose train model=erpose-n.yaml data=synth-people.yaml
    erpose eval model=erpose-n.pt data=coco-pose.yaml
    erpose predict source=square.jpg slices=640 overlap=0.25

It explains, checks words and dispatches; the stock entrypoint runs the modes. An unknown word is answered with the nearest known
one before anything is loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from erpose_yolo import __version__, catalog
from erpose_yolo.errors import is_input_error, one_line, suggestion
from erpose_yolo.upstream import compat

MODEL = "erpose-n.pt"  # of a command that names none


class Command(NamedTuple):
    """A command of ours: a module with a ``main(arguments)`` that returns an exit code or None, and one line for the help."""

    module: str
    help: str


COMMANDS = {
    "check": Command("erpose_yolo.data.check", "find what is wrong with a YOLO-pose data set"),
    "convert": Command("erpose_yolo.data.convert", "turn COCO or CrowdPose annotations into YOLO-pose labels, and back"),
    "eval": Command("erpose_yolo.metrics.evaluate", "evaluate any pose model or a predictions file with exact COCO metrics"),
    "init": Command("erpose_yolo.data.init", "write a data YAML for keypoints of your own"),
    "label": Command("erpose_yolo.engine.labelling", "label images with a model, or find whom labels have left out"),
    "models": Command("erpose_yolo.nn.listing", "list the models and weights, with size, cost and accuracy"),
    "synth": Command("erpose_yolo.data.synth.__main__", "draw a synthetic data set"),
}
# Modes of the stock command, with what is ours in each
MODES = {
    "train": (
        "train a model",
        "erpose train model=erpose-n.yaml data=coco-pose.yaml epochs=100 imgsz=640",
        """  model      erpose-n.yaml (random weights), erpose-n.pt (fine-tune), yolo26n-pose.pt (converted to ER-Pose, as in all
             modes), or a YAML of your own, whose block 'erpose:' holds the settings of the method
  data       a data YAML, or by name: {datasets}""",
    ),
    "val": (
        "validate a model during development ('erpose eval' has more figures)",
        "erpose val model=best.pt data=coco-pose.yaml",
        """  data       a data YAML, or by name: {datasets}
  nms, iou   without effect: each person has one row""",
    ),
    "predict": (
        "find people in images and videos",
        "erpose predict source=street.jpg\n       erpose predict source=square.jpg slices=640,1600 overlap=0.25",
        """  slices     side of square tiles in pixels of the image, or several: slices=640 or slices=640,1600. For images much
             larger than imgsz: the tiles and the whole image are predicted and merged by OKS
  overlap    least share of a side that neighbouring tiles have in common (0.25): people smaller than that are whole in one
  batch      with slices: tiles at a time (8)
  show_sigma True: error bars in the images, circles of two standard deviations around keypoints
  save_sigma True: error bars at the end of the lines of save_txt=True, in pixels
  nms, iou   without effect: each person has one row""",
    ),
    "track": (
        "follow people in videos",
        "erpose track source=street.mp4 smooth=True",
        """  smooth     True, or frames per second: keypoints of each track go through a One-Euro filter; offline: the table of
             out= is smoothed without lag, gaps of up to half a second are filled
  out        people.csv, people.json or people.parquet: one row for each keypoint of each person in each frame
  slices, overlap, batch, show_sigma, save_sigma   as for predict""",
    ),
    "export": (
        "export a model, without NMS",
        "erpose export model=erpose-n.pt format=onnx",
        """  format     onnx, openvino, coreml, engine, litert, ncnn and more; ONNX needs pip install 'erpose-yolo[export]'
  layout     rows of the best persons (the default where the runtime has TopK), maps that the host decodes (the default where
             it has none), or cells, a row per cell of the grid: docs/export-layout.md
  sigma      True: rows end with the error bar of each keypoint
  nms        without effect: no graph of ours contains it""",
    ),
    "benchmark": (
        "speed and accuracy of the export formats",
        "erpose benchmark model=erpose-n.pt data=coco8-pose.yaml imgsz=640",
        "  data       a data YAML, or by name: {datasets}",
    ),
}
# Arguments unknown to the stock command
OURS = {
    "predict": {"slices", "overlap", "show_sigma", "save_sigma"},
    "track": {"slices", "overlap", "show_sigma", "save_sigma", "smooth", "out"},
    "export": {"layout", "sigma"},
}
OUR_WORDS = frozenset().union(*OURS.values())
SPECIAL = ("checks", "settings", "cfg", "login", "logout", "copy-cfg", "solutions")  # stock commands without a model
FLAGS = ("half", "int8", "end2end", "nms")  # the stock command takes these without a value, too
OUR_FLAGS = ("show_sigma", "save_sigma", "sigma")
HELP, VERSION = ("help", "--help", "-h"), ("version", "--version", "-V")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process where None.

    Returns:
        Exit code: 0; 1 with a sentence on what is wrong with the input; 2 with one on a word that is unknown or misplaced.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = arguments[0] if arguments else "help"
    if first in HELP:
        return _help(arguments[1:])
    if first in VERSION:
        print(
            ", ".join((f"erpose-yolo {__version__}", *(f"{p} {importlib.metadata.version(p)}" for p in ("ultralytics", "torch"))))
        )
        return 0
    if first in COMMANDS:
        return int(importlib.import_module(COMMANDS[first].module).main(arguments[1:]) or 0)
    mode = next((word for word in arguments if word in MODES), "")
    if mode and set(arguments) & set(HELP):
        return _help([mode])
    return _stock(arguments)


def _help(words: list[str]) -> int:
    """Print the help of everything, or of one command or mode."""
    if not words:
        print("Usage: erpose COMMAND ...          erpose MODE key=value ...\n\nCommands:")
        print("\n".join(f"  {name:<10} {command.help}" for name, command in COMMANDS.items()))
        print("\nModes, which the 'yolo' command runs:")
        print("\n".join(f"  {name:<10} {text}" for name, (text, _, _) in MODES.items()))
        print(
            f"\nmodel={MODEL} where none is given. Models: {', '.join(catalog.list_weights())} (trained), "
            "erpose-{n,s,m,l,x}.yaml and others (random weights).\n"
            "'erpose help NAME' explains a command or mode, 'erpose --version' prints versions."
        )
        return 0
    name = words[0]
    if name in COMMANDS:
        try:
            return int(importlib.import_module(COMMANDS[name].module).main(["--help"]) or 0)
        except SystemExit as stop:  # argparse has printed it
            return int(stop.code or 0)
    if name not in MODES:
        return _refuse(f"There is no help on '{name}'.{suggestion(name, [*COMMANDS, *MODES])}")
    text, example, ours = MODES[name]
    print(f"erpose {name}: {text}.\n\nUsage: {example}\n\nOf this package:")
    print(ours.format(datasets=", ".join(catalog.list_datasets())))
    print(f"\nAll else as in 'yolo {name}': https://docs.ultralytics.com/modes/{name}; 'erpose cfg' lists the arguments.")
    return 0


def _refuse(sentence: str) -> int:
    print(f"erpose: {sentence} 'erpose --help' says what there is.", file=sys.stderr)
    return 2


def _stock(arguments: list[str]) -> int:
    """Run a mode or a special command of the ``yolo`` command, after a look at each word."""
    from ultralytics import cfg
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    try:
        words = cfg.merge_equals_args(arguments)
        if words[0].lstrip("-") not in SPECIAL:
            complaint = next(filter(None, (_complaint(word, words) for word in words)), "")
            if complaint:
                return _refuse(complaint)
            words = [f"data={catalog.resolve_data(w[5:])}" if w.startswith("data=") else w for w in words]
            files = [YAML.load(check_yaml(word[4:])) for word in words if word.startswith("cfg=")]
            if not any(word.startswith("model=") for word in words) and not any(file.get("model") for file in files):
                words.append(f"model={MODEL}")
        # In place, as Ultralytics keeps this very list. By the command's name it decides to save images.
        sys.argv[:] = ["yolo", *words]
        compat.install()  # imports what it patches
        if any(word.partition("=")[0].removeprefix("--") in OUR_WORDS for word in words):
            _run_with_ours(words, files)
        else:
            with compat.converting():
                cfg.entrypoint()  # reads the arguments of the process itself
    except Exception as error:
        if not is_input_error(error):
            raise
        print(f"erpose: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, SyntaxError) else 1
    return 0


def _complaint(word: str, words: list[str]) -> str:
    """What is wrong with a word of the stock command; empty if nothing is."""
    from ultralytics.cfg import DEFAULT_CFG_DICT, TASKS

    word = word.removeprefix("--").rstrip(",")  # the stock command forgives these
    key, equals, value = word.partition("=")
    if not equals:
        bare = {*MODES, *TASKS, *FLAGS, *OUR_FLAGS, *(k for k, v in DEFAULT_CFG_DICT.items() if isinstance(v, bool))}
        if word in bare:
            return ""
        if word in DEFAULT_CFG_DICT or word in OUR_WORDS:
            return f"'{word}' needs a value: {word}={DEFAULT_CFG_DICT.get(word, 'cells' if word == 'layout' else 640)}."
        return f"'{word}' is not a word of this command.{suggestion(word, [*COMMANDS, *SPECIAL, *bare])}"
    if not value:
        return f"'{key}=' has no value."
    if key in OUR_WORDS:
        modes = [mode for mode, keys in OURS.items() if key in keys]
        given = next((w for w in words if w in MODES), "predict")
        return "" if given in modes else f"{key}= goes with {' and '.join(modes)}, not with {given}."
    if compat.is_argument(key):
        return ""
    mode = next((w for w in words if w in MODES), "predict")
    return f"'{key}' is not an argument.{suggestion(key, [*DEFAULT_CFG_DICT, *OURS.get(mode, ())])}"


def _run_with_ours(words: Iterable[str], files: list[dict[str, Any]]) -> None:
    """Run a mode with arguments that the stock parser refuses; saving is the stock method's, as for ``yolo``.

    Raises:
        TypeError: the model is not ours.
    """
    from ultralytics.cfg import parse_key_value_pair

    from erpose_yolo.model import ERPose

    options: dict[str, Any] = {}
    for file in files:
        options |= file
    plain = [word.removeprefix("--").rstrip(",") for word in words]
    options |= dict(parse_key_value_pair(word) if "=" in word else (word, True) for word in plain)
    mode = next((m for m in OURS if options.pop(m, False) or options.get("mode") == m), "predict")
    model = ERPose(options.pop("model"), task=options.pop("task", None))
    getattr(model, mode)(**{k: v for k, v in options.items() if k not in (*MODES, "pose", "mode", "cfg")})


if __name__ == "__main__":
    sys.exit(main())

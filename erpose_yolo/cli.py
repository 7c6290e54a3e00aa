"""The ``erpose`` command: our own commands, and Ultralytics' ``yolo`` command with this package attached.

erpose check data.yaml              erpose pose train model=erpose-n.yaml data=synth-people.yaml
erpose convert coco FILE.json ...   (anything else that yolo takes, whatever ERPOSE_AUTOLOAD says)
erpose eval model=erpose-n.pt data=coco-pose.yaml
erpose predict model=erpose-n.pt source=square.jpg slices=640 overlap=0.25       (large pictures, see slicing.py)
"""

from __future__ import annotations

import importlib
import sys

from erpose_yolo import catalog

COMMANDS = {  # name: module with a main(arguments) that returns an exit code or None
    "check": "erpose_yolo.data.check",
    "convert": "erpose_yolo.data.convert",
    "eval": "erpose_yolo.metrics.evaluate",
    "init": "erpose_yolo.data.init",
    "synth": "erpose_yolo.data.synth.__main__",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process where None.

    Returns:
        Exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:]) or 0)
    if any(argument.startswith("slices=") for argument in arguments):
        return predict_slices(arguments)

    # In place, as Ultralytics keeps this very list. By the command's name it decides to save pictures; the data sets of
    # this package become known to stock models, too.
    words = [f"data={catalog.resolve_data(a[5:])}" if a.startswith("data=") else a for a in arguments]
    sys.argv[:] = ["yolo", *words]

    from ultralytics import cfg

    from erpose_yolo import compat

    compat.install()  # imports what it patches
    cfg.entrypoint()  # reads the arguments of the process itself
    return 0


def predict_slices(arguments: list[str]) -> int:
    """Run ``erpose predict ... slices=``, which the ``yolo`` command has no argument for; pictures are saved as it does.

    Args:
        arguments: ``key=value`` pairs, and the words pose and predict.

    Returns:
        Exit code: 0, or 1 with a message on what is wrong with the input.
    """
    from ultralytics.cfg import parse_key_value_pair

    from erpose_yolo.model import ERPose

    try:
        words = [argument for argument in arguments if "=" not in argument]
        if "predict" not in words or set(words) - {"pose", "predict"}:
            raise ValueError(f"slices= goes with predict, not with '{' '.join(words)}'.")
        options = dict(parse_key_value_pair(argument) for argument in arguments if "=" in argument)
        if "model" not in options or "source" not in options:
            raise ValueError("Give model= and source=, for example: erpose predict model=best.pt source=square.jpg slices=640")
        for _ in ERPose(options.pop("model")).predict(stream=True, **{"save": True, **options}):
            pass
    except (FileNotFoundError, SyntaxError, TypeError, ValueError) as error:
        print(f"erpose predict: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

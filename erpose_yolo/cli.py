"""The ``erpose`` command: Ultralytics' ``yolo`` command with this package attached, whatever ERPOSE_AUTOLOAD says."""

from __future__ import annotations

from erpose_yolo import autoload


def main() -> None:
    """Run the command line, e.g. ``erpose pose train model=erpose-n.yaml data=synth-people.yaml``."""
    from ultralytics import YOLO  # noqa: F401  (imports what is to be patched)
    from ultralytics.cfg import entrypoint

    autoload.apply()
    entrypoint()


if __name__ == "__main__":
    main()

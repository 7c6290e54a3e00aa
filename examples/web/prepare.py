"""Make what the page shows at first, beside it: erpose-n.onnx of the weights that ship, and the two photos that ultralytics has.

pip install 'erpose-yolo[export]'
python prepare.py           # serve.mjs does it where they are missing
"""

import os
import shutil
from pathlib import Path

from ultralytics.utils import ASSETS

from erpose_yolo import ERPose

os.chdir(Path(__file__).parent)  # exports of the weights that ship go to the current folder
ERPose("erpose-n.pt").export(format="onnx", imgsz=640)
for photo in ("bus.jpg", "zidane.jpg"):
    shutil.copy(ASSETS / photo, photo)

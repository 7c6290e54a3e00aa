"""What the pages tell a reader to type is typed: each shell line and each Python block, from the top of a page to its end.

A page has one working directory, and what a line leaves there is there for the next one. The scripts of the running interpreter
come first on the path, as in an activated environment. A comment right before a block, which renders as nothing, says what differs:

    <!-- typed: epochs=1 imgsz=64 --images 8 -->   these numbers, each smaller than the page's, take the place of the page's
    <!-- typed: saved as mine.yaml -->             the block is the content of a file that later lines read
    <!-- typed: only shown: it needs two GPUs -->  nothing is run, for this reason

Shell lines (``bash``) and Python blocks (``python``) without such a comment run as they stand. Blocks in another language need one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 400  # seconds for one line or block; the longest took 51 s on two busy cores and 166 s on two very busy ones
TAIL = 25  # lines of its output that a failure shows

FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[^\s`]*)[^`]*")
COMMENT = re.compile(r"\s*<!--(?P<text>.*?)-->\s*")
PROGRAMS = "bash|erpose|node|npm|pip|python3?|torchrun|yolo"
INLINE = re.compile(rf"`((?:{PROGRAMS})\s[^`]*(?:=|--)[^`]*)`")
NUMBER = r"-?\d+(?:\.\d+)?"


def pages(root: Path) -> list[str]:
    """The pages that a reader types from, relative to ``root``, in reading order."""
    found = [root / "README.md", root / "examples" / "README.md", *sorted(root.glob("docs/**/*.md"))]
    return [page.relative_to(root).as_posix() for page in found if page.is_file()]


@dataclass(frozen=True)
class Step:
    """A shell line, a Python block or a file of a page.

    Args:
        where: page and line.
        kind: ``bash``, ``python`` or ``file``.
        shown: the text on the page.
        typed: the text that is run or saved: the same, but for smaller numbers.
        name: of the file, where it is one.
    """

    where: str
    kind: str
    shown: str
    typed: str
    name: str = ""


class PageError(ValueError):
    """A block that can neither be run nor left out as it is marked."""


def read_page(text: str, page: str) -> tuple[list[Step], list[str]]:
    """Read what a page tells to type.

    Args:
        text: Markdown.
        page: its name, for messages.

    Returns:
        The steps in the order of the page, and what is wrong with its blocks and comments.
    """
    steps: list[Step] = []
    wrong: list[str] = []
    prose: list[str] = []
    comment, comment_at = "", 0  # the last comment, while nothing but blank lines has followed it
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        fence = FENCE.fullmatch(line)
        if fence is None:
            found = COMMENT.fullmatch(line)
            if comment.startswith("typed:") and line.strip():
                wrong.append(f"{page}:{comment_at}: no block follows the comment <!-- {comment} -->")
            if found or line.strip():
                comment, comment_at = (found["text"].strip(), number) if found else ("", 0)
            prose.append(line)
            continue
        prose.append("")
        block = []
        for _, inner in lines:
            if inner.strip().startswith(fence["ticks"]):
                break
            block.append(inner)
        body = textwrap.dedent("\n".join(block))
        try:
            steps += _steps(body, fence["language"], comment, page, number + 1)
        except PageError as error:
            wrong.append(f"{page}:{number}: {error}")
        prose += [""] * (len(block) + 1)
        comment = ""
    if comment.startswith("typed:"):
        wrong.append(f"{page}:{comment_at}: no block follows the comment <!-- {comment} -->")
    joined = "\n".join(prose)
    for match in INLINE.finditer(joined):
        at = joined.count("\n", 0, match.start()) + 1
        wrong.append(f"{page}:{at}: put this command into a block, where it is run or marked: {' '.join(match[1].split())}")
    return steps, wrong


def _steps(body: str, language: str, comment: str, page: str, first: int) -> list[Step]:
    """The steps of one block, whose text begins at line ``first`` of the page."""
    verb, _, rest = comment.partition(":")
    order = rest.strip()
    if comment and verb != "typed":
        raise PageError(f"the comment before the block is none that is known here: <!-- {comment} -->")
    if comment and not order:
        raise PageError("the comment before the block says nothing after 'typed:'")
    if order.startswith("only shown"):
        if len(order.removeprefix("only shown").strip(": ").split()) < 2:
            raise PageError("say why the block is only shown: <!-- typed: only shown: REASON -->")
        return []
    if order.startswith("saved as "):
        name = order.removeprefix("saved as ").strip()
        if not re.fullmatch(r"[\w.-]+", name):
            raise PageError(f"'{name}' is no plain file name")
        return [Step(f"{page}:{first}", "file", body, body + "\n", name)]
    values = _values(order)
    if language == "bash":
        parts = [(first + offset, line, "bash") for offset, line in _shell_lines(body)]
    elif language == "python":
        parts = [(first, body, "python")]
    else:
        raise PageError(
            f"a block in '{language}' is neither bash nor python, so say what it is: <!-- typed: saved as FILE -->, "
            "or <!-- typed: only shown: REASON -->"
        )
    unused, steps = set(values), []
    for at, shown, kind in parts:
        typed = shown
        for key, value in values.items():
            typed, count = _replace(typed, key, value)
            if count:
                unused.discard(key)
        if kind == "bash" and re.match(r"\s*(cd|export|source|\.)\s[^&;|]*$", typed):
            raise PageError(
                f"'{shown.strip()}' changes the reader's shell, and each line has its own here: join lines with &&, or mark them"
            )
        steps.append(Step(f"{page}:{at}", kind, shown, typed))
    if unused:
        raise PageError(f"the block has no number {', '.join(sorted(unused))} for the comment <!-- {comment} --> to replace")
    return steps


def _values(order: str) -> dict[str, str]:
    """``key=1 --option 2`` as a dictionary."""
    values: dict[str, str] = {}
    words = iter(shlex.split(order))
    for word in words:
        key, _, value = (word, "", next(words, "")) if word.startswith("--") else word.partition("=")
        if not re.fullmatch(r"(--)?[a-z][\w-]*", key) or not re.fullmatch(NUMBER, value):
            raise PageError(
                f"'{word}' is neither 'only shown: REASON', 'saved as FILE' nor a number such as epochs=1 or --images 8"
            )
        values[key] = value
    return values


def _replace(text: str, key: str, value: str) -> tuple[str, int]:
    """Put a smaller number behind ``key=`` or behind the option ``--key``; also says how often."""
    name = rf"(?<!\S){key}[ =]" if key.startswith("--") else rf"(?<![\w.-]){key}="

    def smaller(match: re.Match[str]) -> str:
        if float(value) >= float(match[2]):
            raise PageError(f"{key} is {match[2]} on the page, and {value} is not smaller")
        return match[1] + value

    return re.subn(rf"({name})({NUMBER})(?=[\s,)]|$)", smaller, text)


def _shell_lines(body: str) -> Iterator[tuple[int, str]]:
    """Lines with their offsets in the block, those that end in a backslash joined with the next; no blank ones, no comments."""
    start, parts = 0, []
    for offset, line in enumerate(body.splitlines()):
        start = start if parts else offset
        parts.append(line)
        if line.endswith("\\"):
            continue
        whole, parts = "\n".join(parts), []
        if whole.strip() and not whole.lstrip().startswith("#"):
            yield start, whole
    if parts:
        yield start, "\n".join(parts)


def do(step: Step, folder: Path, environment: dict[str, str], timeout: float = TIMEOUT) -> None:
    """Run or save one step in the working directory of its page.

    Raises:
        AssertionError: it failed or took too long; the message holds the end of its output.
    """
    if step.kind == "file":
        (folder / step.name).write_text(step.typed, encoding="utf-8")
        return
    if step.kind == "python":
        script = folder / f"block-{step.where.rpartition(':')[2]}.py"
        script.write_text(step.typed, encoding="utf-8")
        command = [sys.executable, str(script)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", step.typed]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    end = ""
    try:
        output = process.communicate(timeout=timeout)[0]
        if process.returncode:
            end = f"ended with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        output = process.communicate()[0]
        end = f"was not done after {timeout:g} s; smaller numbers go into a comment such as <!-- typed: epochs=1 imgsz=64 -->"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if end:
        said = "\n".join(re.split(r"[\r\n]+", output.rstrip())[-TAIL:])
        pytest.fail(f"{step.where} {end}\n\n{step.typed}\n\nThe end of its output:\n{said}", pytrace=False)


# -- the files of a reader ---------------------------------------------------------------------------------------------


def furnish(folder: Path) -> None:
    """Put into a working directory what a reader brings along, small: a photo, a video, annotation files, own keypoints.

    And ``synth-people`` in place of the 2,200 images that the first training draws.
    """
    import cv2
    from ultralytics.utils import ASSETS

    from erpose_yolo.data.skeletons import COCO_17, CROWDPOSE_14
    from erpose_yolo.data.synth import SynthConfig, generate

    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    people = generate(folder / "datasets" / "synth-people", SynthConfig(images=8, val_images=4, size=128), workers=1)
    shutil.copy(ASSETS / "bus.jpg", folder / "street.jpg")
    photo = cv2.resize(cv2.imread(str(ASSETS / "bus.jpg")), (240, 320))
    video = cv2.VideoWriter(str(folder / "street.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (200, 320))
    for frame in range(8):
        video.write(photo[:, 4 * frame : 4 * frame + 200])
    video.release()
    write_hands(folder / "hands")
    for split in ("train", "val"):
        write_coco(people, split, folder / f"{split}2017", folder / f"person_keypoints_{split}2017.json", COCO_17.names)
    write_coco(people, "train", folder / "images", folder / "crowdpose_trainval.json", CROWDPOSE_14.names)
    shutil.copy(folder / "crowdpose_trainval.json", folder / "crowdpose_test.json")


def write_hands(root: Path, keypoints: int = 21) -> None:
    """Write images of 64 x 64 px with one ring of keypoints each, and labels: what a reader has for keypoints of their own."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 80, (64, 64, 3)).astype(np.uint8)
            angle = 2 * np.pi * np.arange(keypoints) / keypoints + rng.uniform(0, 6)
            points = rng.uniform(24, 40, 2) + rng.uniform(10, 20) * np.stack((np.cos(angle), np.sin(angle)), 1)
            for x, y in points:
                cv2.circle(image, (round(x), round(y)), 1, (255, 255, 255), -1)
            low, high = points.min(0) / 64, points.max(0) / 64
            numbers = [*(low + high) / 2, *high - low, *np.insert(points / 64, 2, 2, axis=1).ravel()]
            cv2.imwrite(str(images / f"{index}.png"), image)
            (labels / f"{index}.txt").write_text(" ".join(["0", *(f"{number:.5f}" for number in numbers)]) + "\n")


def write_coco(people: Path, split: str, images: Path, file: Path, names: Sequence[str]) -> None:
    """Write the images of a split of a drawn set, and COCO-format annotations with keypoints of these names in any places."""
    import cv2

    images.mkdir()
    document: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    document["categories"].append({"id": 1, "name": "person", "keypoints": list(names), "skeleton": [[1, 2]]})
    for index, source in enumerate(sorted((people / "images" / split).iterdir())):
        shutil.copy(source, images)
        height, width = cv2.imread(str(source)).shape[:2]
        document["images"].append({"id": index, "file_name": source.name, "height": height, "width": width, "crowdIndex": 0.1})
        for row in (people / "labels" / split / f"{source.stem}.txt").read_text().splitlines():
            _, cx, cy, w, h, *rest = map(float, row.split())
            keypoints = [v for x, y, seen in zip(rest[::3], rest[1::3], rest[2::3]) for v in (x * width, y * height, int(seen))]
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            person = {"id": len(document["annotations"]), "image_id": index, "category_id": 1, "iscrowd": 0}
            person |= {"bbox": box, "area": 0.5 * box[2] * box[3], "keypoints": keypoints[: 3 * len(names)]}
            document["annotations"].append({**person, "num_keypoints": sum(v > 0 for v in keypoints[2 : 3 * len(names) : 3])})
    file.write_text(json.dumps(document), encoding="utf-8")


def reader(config: Path, folder: Path) -> dict[str, str]:
    """The environment of a reader whose runs and data sets lie in the working directory, as they do in a fresh checkout."""
    settings = config / "Ultralytics" / "settings.json"
    settings.parent.mkdir(parents=True)
    places = {f"{name}_dir": str(folder / name) for name in ("datasets", "weights", "runs")}
    settings.write_text(json.dumps({"settings_version": "0.0.8", "sync": False, **places}), encoding="utf-8")
    # Under pytest and on GitHub ultralytics saves elsewhere and leaves its integrations out: a reader is neither.
    tested = re.compile("PYTEST_.*|GITHUB_ACTIONS|PYTHONPATH|VIRTUAL_ENV")
    inherited = {key: value for key, value in os.environ.items() if not tested.fullmatch(key)}
    path = os.pathsep.join([sysconfig.get_path("scripts"), inherited.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, "YOLO_CONFIG_DIR": str(config)}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, str]]]:
    """Gives the working directory and the environment of a page, made when it is first asked for."""
    made: dict[str, tuple[Path, dict[str, str]]] = {}

    def of(page: str) -> tuple[Path, dict[str, str]]:
        if page not in made:
            folder = tmp_path_factory.mktemp(re.sub(r"\W+", "-", page))
            furnish(folder)
            made[page] = folder, reader(tmp_path_factory.mktemp("config"), folder)
        return made[page]

    return of


READ = {page: read_page((ROOT / page).read_text(encoding="utf-8"), page) for page in pages(ROOT)}


@pytest.mark.parametrize("page", READ)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    assert READ[page][1] == []


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(s, id=s.where) for steps, _ in READ.values() for s in steps])
def test_what_the_page_says_works(step: Step, desk: Callable[[str], tuple[Path, dict[str, str]]]) -> None:
    """In the order of the page: a line alone (-k) lacks what the lines before it leave."""
    do(step, *desk(step.where.rpartition(":")[0]))


# -- the test itself can fail -------------------------------------------------------------------------------------------


def steps_of(text: str) -> list[Step]:
    steps, wrong = read_page(text, "page.md")
    assert wrong == []
    return steps


def test_pages_are_found(tmp_path: Path) -> None:
    for name in ("README.md", "docs/a/b.md", "docs/c.md", "examples/README.md", "other/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert pages(tmp_path) == ["README.md", "examples/README.md", "docs/a/b.md", "docs/c.md"]
    assert READ["README.md"][0], "nothing of the first page is run"


def test_lines_run_in_order_in_one_folder(tmp_path: Path) -> None:
    page = """\
    <!-- typed: saved as words.txt -->
    ```text
    one two
    ```

    1. A list.

       ```bash
       # a comment is no line

       cat words.txt \\
           > copy.txt   # and this one goes on
       wc -w < copy.txt > count.txt
       ```

    ```python
    from pathlib import Path

    assert Path("count.txt").read_text().split() == ["2"]
    ```
    """
    steps = steps_of(textwrap.dedent(page))
    assert [step.where for step in steps] == ["page.md:3", "page.md:11", "page.md:13", "page.md:17"]
    for step in steps:
        do(step, tmp_path, dict(os.environ))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```bash\ntrue\necho so it goes; exit 3\n```", r"page\.md:3 ended with exit code 3\n\necho so(.|\n)*output:\nso it goes"),
        ("```bash\nfalse | cat\n```", r"page\.md:2 ended with exit code 1"),
        ("```bash\nerpose-absent --help\n```", r"page\.md:2 ended with exit code 127(.|\n)*erpose-absent"),
        ("```bash\nseq 100 && false\n```", rf"output:\n{100 - TAIL + 1}\n(.|\n)*\n100$"),
        ("```python\nx = 1\nassert x == 2, 'not two'\n```", r"page\.md:2 ended with exit code 1(.|\n)*AssertionError: not two"),
        ("```bash\nsleep 60 & sleep 60\n```", r"page\.md:2 was not done after 1 s"),
        ("```python\nprint('begun', flush=True)\nwhile True: pass\n```", r"was not done after 1 s(.|\n)*output:\nbegun"),
    ],
)
def test_a_step_that_fails_is_shown(tmp_path: Path, block: str, says: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=says):
        for step in steps_of(block):
            do(step, tmp_path, dict(os.environ), timeout=1 if "sleep" in block or "while" in block else TIMEOUT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- typed: perhaps -->\n```bash\nfalse\n```", "page.md:2: 'perhaps' is neither"),
        ("<!-- typed: -->\n```bash\nfalse\n```", "says nothing"),
        ("<!-- typd: only shown: two GPUs -->\n```bash\nfalse\n```", "none that is known"),
        ("<!-- typed: only shown -->\n```bash\nfalse\n```", "say why"),
        ("<!-- typed: only shown: GPU -->\n```bash\nfalse\n```", "say why"),
        ("<!-- typed: epochs=1 -->\n```bash\nyolo train imgsz=640\n```", "has no number epochs"),
        ("<!-- typed: epochs=1 -->\n```bash\nyolo train my_epochs=3 epochs=many\n```", "has no number epochs"),
        ("<!-- typed: epochs=3 -->\n```bash\nyolo train epochs=3\n```", "not smaller"),
        ("<!-- typed: model=other.pt -->\n```bash\nyolo train model=a.pt\n```", "'model=other.pt' is neither"),
        ("<!-- typed: --images -->\n```bash\nerpose synth --images 9\n```", "'--images' is neither"),
        ("<!-- typed: saved as ../x -->\n```yaml\na: 1\n```", "no plain file name"),
        ("```yaml\na: 1\n```", "page.md:1: a block in 'yaml' is neither bash nor python"),
        ("```\nyolo train\n```", "a block in '' is neither"),
        ("~~~sh\nyolo train\n~~~", "a block in 'sh' is neither"),
        ("```bash\ncd examples\nls\n```", "changes the reader's shell"),
        ("<!-- typed: epochs=1 -->\n\nWords.\n", "page.md:1: no block follows"),
        ("Words.\n<!-- typed: epochs=1 -->", "page.md:2: no block follows"),
        (
            "Or type `yolo train\nmodel=a.pt` instead.",
            "page.md:1: put this command into a block, where it is run or marked: yolo train model",
        ),
    ],
)
def test_a_block_that_is_marked_wrongly_is_shown(text: str, says: str) -> None:
    steps, wrong = read_page(text, "page.md")
    assert len(wrong) == 1 and says in wrong[0], wrong
    assert steps == []


def test_nothing_but_numbers_differs_from_the_page() -> None:
    page = """\
<!-- typed: epochs=1 imgsz=64 --images 8 -->
```bash
yolo train model=a-100.pt epochs=100 imgsz=640 my.epochs=7   # epochs
erpose synth --out images-5000 --images 5000
yolo val
```

<!-- typed: epochs=1 -->
```python
train(data="epochs", epochs=3, imgsz=192)
```

<!-- typed: only shown: it needs a second machine -->
```bash
torchrun --nnodes 2
```

<!-- any comment, for example where a table will be -->
Names such as `yolo train`, `pip install 'a[b]'` and `epochs=3` are no commands to type.
"""
    assert [step.typed for step in steps_of(page)] == [
        "yolo train model=a-100.pt epochs=1 imgsz=64 my.epochs=7   # epochs",
        "erpose synth --out images-5000 --images 8",
        "yolo val",
        'train(data="epochs", epochs=1, imgsz=192)',
    ]

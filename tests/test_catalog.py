"""Names resolve from any folder, a user's file wins, and a name that does not exist says which ones do."""

from __future__ import annotations

from pathlib import Path

import pytest

from erpose_yolo import catalog


@pytest.fixture
def shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up cfg folder."""
    root = tmp_path_factory.mktemp("cfg")
    for name in ("erpose", "erpose11", "erpose-p2"):
        (root / "models").mkdir(exist_ok=True)
        (root / "models" / f"{name}.yaml").write_text("{}")
    (root / "datasets").mkdir()
    (root / "datasets" / "synth-people.yaml").write_text("{}")
    monkeypatch.setattr(catalog, "cfg_root", lambda: root)
    return root


@pytest.mark.parametrize(
    ("name", "family", "scale"),
    [
        ("erpose-n.yaml", "erpose", "n"),
        ("erpose11-s.yaml", "erpose11", "s"),
        ("erpose-x-p2.yaml", "erpose-p2", "x"),
        ("erpose-m.yml", "erpose", "m"),
        ("erpose.yaml", "erpose", "n"),
        ("erpose-p2.yaml", "erpose-p2", "n"),
    ],
)
def test_bare_names_are_the_shipped_files(shipped: Path, name: str, family: str, scale: str) -> None:
    assert catalog.find_model(name) == (shipped / "models" / f"{family}.yaml", scale)
    assert catalog.find_model(Path(name)) == catalog.find_model(name)


@pytest.mark.parametrize("name", ["erpose-q.yaml", "erpose11-t.yaml", "erpose-N.yaml", "erpose-q-p2.yaml"])
def test_unknown_scale_names_the_five(shipped: Path, name: str) -> None:
    with pytest.raises(ValueError, match="n, s, m, l, x"):
        catalog.find_model(name)


@pytest.mark.parametrize("name", ["erpose12-n.yaml", "erpose-hands.yaml", "erpose-n-p7.yaml", "a/b/erpose-n.yaml"])
def test_unknown_family_lists_what_there_is(shipped: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"erpose11-\{n,s,m,l,x\}\.yaml.*erpose-\{n,s,m,l,x\}-p2\.yaml"):
        catalog.find_model(name)


def test_the_users_file_wins(shipped: Path, tmp_path: Path) -> None:
    for name in ("erpose-n.yaml", "erpose-hands.yaml", "mine-s.yaml"):
        Path(name).write_text("{}")
    assert catalog.find_model("erpose-n.yaml") == (Path("erpose-n.yaml"), "n")
    assert catalog.find_model(tmp_path / "erpose-hands.yaml") == (tmp_path / "erpose-hands.yaml", "")
    assert catalog.find_model("mine-s.yaml") == (Path("mine-s.yaml"), "s")

    Path("folder").mkdir()
    Path("folder/erpose.yaml").write_text("{}")
    assert catalog.find_model("folder/erpose-l.yaml") == (Path("folder/erpose.yaml"), "l")
    with pytest.raises(ValueError, match="'q'"):
        catalog.find_model("folder/erpose-q.yaml")
    Path("erpose.yaml").write_text("{}")
    assert catalog.find_model("erpose-s.yaml") == (Path("erpose.yaml"), "s")


@pytest.mark.parametrize("name", ["yolo11n-pose.yaml", "erpose-n.pt", "erpose-n", "mine.yaml", "a/mine-n.yaml"])
def test_other_names_are_left_alone(shipped: Path, name: str) -> None:
    assert catalog.find_model(name) is None


def test_weights(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ship with erpose-yolo: none.*'erpose-n\.yaml'"):
        catalog.resolve_weights("erpose-n.pt")
    (shipped / "weights").mkdir()
    ours = shipped / "weights" / "erpose-n.pt"
    ours.write_bytes(b"")
    assert catalog.list_weights() == ["erpose-n.pt"]
    for name in ("erpose-n.pt", Path("erpose-n.pt")):
        assert catalog.resolve_weights(name) == str(ours)
    for other in ("yolo11n-pose.pt", "erpose-n.yaml", "./erpose-n.pt", "a/erpose-s.pt", "erpose-n.onnx", True, None, 3):
        assert catalog.resolve_weights(other) is other
    with pytest.raises(FileNotFoundError, match=r"'erpose-s\.pt' does not exist.*: erpose-n\.pt\..*'erpose-s\.yaml'"):
        catalog.resolve_weights("erpose-s.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "erpose-s.pt").write_bytes(b"")
    assert catalog.resolve_weights("erpose-s.pt", tmp_path / "mine") == "erpose-s.pt", "ultralytics finds it in its own folder"
    Path("erpose-n.pt").write_bytes(b"")
    assert catalog.resolve_weights("erpose-n.pt") == "erpose-n.pt", "the user's file wins"


def test_data_sets(shipped: Path) -> None:
    ours = shipped / "datasets" / "synth-people.yaml"
    for name in ("synth-people.yaml", "synth-people", "synth-people.yml", Path("synth-people.yaml")):
        assert catalog.find_dataset(name) == ours
    for name in ("coco-pose.yaml", "a/synth-people.yaml", "./synth-people.yaml", "synth-people.zip"):
        assert catalog.find_dataset(name) is None
    Path("synth-people").mkdir()  # a folder of images is not a data set's YAML
    assert catalog.find_dataset("synth-people") == ours
    Path("synth-people.yaml").write_text("{}")
    assert catalog.find_dataset("synth-people.yaml") is None


def test_a_mistyped_folder_is_not_the_shipped_set(shipped: Path, tmp_path: Path) -> None:
    """What a user types resolves by bare name alone; what a checkpoint stored, also as the shipped file of another place."""
    ours = str(shipped / "datasets" / "synth-people.yaml")
    for typed in ("my-typo/synth-people.yaml", "/gone/cfg/datasets/synth-people.yaml", "./synth-people.yaml", None, {"a": 1}):
        assert catalog.resolve_data(typed) == typed
    assert catalog.resolve_data("synth-people") == ours
    for stored in (
        "/gone/site-packages/erpose_yolo/cfg/datasets/synth-people.yaml",
        r"C:\gone\erpose_yolo\cfg\datasets\synth-people.yaml",
        "synth-people.yaml",
    ):
        assert catalog.resolve_stored_data(stored) == ours
    there = tmp_path / "cfg" / "datasets" / "synth-people.yaml"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    for other in (
        str(there),  # it is there
        "/home/me/synth-people.yaml",  # the user's own set, gone
        "cfg/datasets/synth-people.yaml",  # typed by hand in a checkout
        "/gone/cfg/datasets/mine.yaml",
        None,
    ):
        assert catalog.resolve_stored_data(other) == other


def test_lists(shipped: Path) -> None:
    assert catalog.list_datasets() == ["synth-people.yaml"]
    models = catalog.list_models()
    assert len(models) == 15 and models[0] == "erpose-n.yaml" and models[-1] == "erpose-x-p2.yaml"
    assert all(catalog.find_model(name) for name in models)


def test_what_really_ships() -> None:
    assert {"erpose-n.yaml", "erpose11-n.yaml", "erpose8-n.yaml", "erpose-n-p2.yaml", "erpose-n-p6.yaml"} <= set(
        catalog.list_models()
    )
    assert "synth-people.yaml" in catalog.list_datasets()


def test_damaged_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cfg" / "models").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "erpose_yolo" / "catalog.py"))
    with pytest.raises(FileNotFoundError, match="pip install --force-reinstall"):
        catalog.cfg_root()

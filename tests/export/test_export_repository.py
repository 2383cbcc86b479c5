import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import repository as repository_module
from export.errors import ExportError
from export.repository import check_name, share_files, staged


def build(repository: Path, text: str) -> None:
    with staged(repository, "model") as folder:
        (folder / "config.pbtxt").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    repository = tmp_path / "new" / "repository"
    with staged(repository, "model") as folder:
        (folder / "config.pbtxt").write_text("one")
        assert not (repository / "model").exists()
    build(repository, "two")
    assert (repository / "model" / "config.pbtxt").read_text() == "two"
    assert [path.name for path in repository.iterdir()] == ["model"]


@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, reason: type[BaseException]) -> None:
    build(tmp_path, "old")
    with pytest.raises(reason), staged(tmp_path, "model") as folder:
        (folder / "config.pbtxt").write_text("half")
        raise reason
    assert (tmp_path / "model" / "config.pbtxt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


HALF_AN_EXPORT = """
import sys, time
from pathlib import Path
from export.repository import check_name, share_files, staged
with staged(Path(sys.argv[1]), "model") as folder:
    (folder / "config.pbtxt").write_text("half")
    print("here", flush=True)
    time.sleep(600)
"""


def test_folders_of_dead_exports_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    build(tmp_path, "old")
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_AN_EXPORT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        build(tmp_path, "newer")
        assert len(list(tmp_path.glob(".model.*.export"))) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "model" / "config.pbtxt").read_text() == "newer"
    build(tmp_path, "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """Where folders cannot be exchanged there is a moment in which the place is empty."""
    build(tmp_path, "old")
    (tmp_path / "model").rename(tmp_path / ".model.0123abcd.old")
    with staged(tmp_path, "other"):
        assert (tmp_path / "model" / "config.pbtxt").read_text() == "old"


def test_a_file_system_that_cannot_exchange_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses an unknown flag just as it refuses an exchange on NFS."""
    monkeypatch.setattr(repository_module, "_RENAME_EXCHANGE", 1 << 20)
    build(tmp_path, "one")
    build(tmp_path, "two")
    assert (tmp_path / "model" / "config.pbtxt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    build(tmp_path / "elsewhere", "one")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere" / "model")
    with pytest.raises(ExportError, match="is a link"), staged(tmp_path, "model"):
        pass
    assert (tmp_path / "model").is_symlink()


def test_other_hidden_folders_stay(tmp_path: Path) -> None:
    names = [".git", ".model.old", ".notes.export"]
    for name in names:
        (tmp_path / name).mkdir()
    build(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.glob(".*")) == names


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").touch()
    with pytest.raises(ExportError, match="no model folder"), staged(tmp_path, "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "thesis.tex").exists()


def test_a_repository_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ExportError, match=r"cannot write to .*file"),
        staged(tmp_path / "file", "model"),
    ):
        pass


def test_variants_stay_when_their_model_is_replaced(tmp_path: Path) -> None:
    build(tmp_path, "one")
    build(tmp_path / "model" / "variants", "variant")
    build(tmp_path, "two")
    assert (tmp_path / "model" / "config.pbtxt").read_text() == "two"
    assert (tmp_path / "model" / "variants" / "model" / "config.pbtxt").read_text() == "variant"


def test_variants_stay_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    build(tmp_path, "old")
    build(tmp_path / "model" / "variants", "variant")
    build(tmp_path, "new")
    assert (tmp_path / "model" / "config.pbtxt").read_text() == "new"
    assert (tmp_path / "model" / "variants" / "model" / "config.pbtxt").read_text() == "variant"


def test_a_name_is_that_of_a_model_or_of_a_variant(tmp_path: Path) -> None:
    build(tmp_path, "whole")
    (tmp_path / "other" / "variants").mkdir(parents=True)
    check_name(tmp_path, "model", None)
    with pytest.raises(ExportError, match="has a model model already; choose another --name"):
        check_name(tmp_path, "model", "model")
    build(tmp_path / "other" / "variants", "variant")
    with pytest.raises(ExportError, match="has a variant model already; choose another --name"):
        check_name(tmp_path, "model", None)
    check_name(tmp_path, "variant", "other")
    shutil.rmtree(tmp_path / "model")
    check_name(tmp_path, "model", "other")  # the same again
    with pytest.raises(ExportError, match="has a variant model already"):
        check_name(tmp_path, "model", "third")


def test_the_same_graph_is_stored_once(tmp_path: Path) -> None:
    for name, graph in (("one", b"same"), ("two", b"other"), ("three", b"same")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "transformer.onnx").write_bytes(graph)
        (tmp_path / name / "1" / "model.py").write_text("")
        shared = share_files(tmp_path / name / "1", tmp_path)
        assert shared == (["transformer.onnx"] if name == "three" else [])
        (tmp_path / name / "1" / "export.json").touch()
    graphs = [tmp_path / name / "1" / "transformer.onnx" for name in ("one", "two", "three")]
    assert graphs[0].samefile(graphs[2])
    assert [graph.read_bytes() for graph in graphs] == [b"same", b"other", b"same"]
    assert not (tmp_path / "one" / "1" / "model.py").samefile(tmp_path / "three" / "1" / "model.py")

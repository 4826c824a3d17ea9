"""Files are written whole or not at all, and only where the user says."""

import os
import stat

import pytest

from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError


def write(path, text="new"):
    with files.atomic_write(path) as f:
        f.write(text)


def test_a_failing_block_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    write(path, "old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as f:
        f.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["a.txt"]


def test_links_stay_and_their_targets_are_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for text in ("first", "second"):  # the link dangles at first
        write(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert os.listdir(tmp_path / "elsewhere") == ["a.txt"]


def test_the_umask_counts_and_is_never_changed(tmp_path, monkeypatch):
    """Another thread would write its files with the changed one."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        write(tmp_path / "a.txt")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_long_names_up_to_the_limit_of_the_file_system(tmp_path):
    write(tmp_path / ("n" * 255))
    path = tmp_path / ("n" * 256)
    with pytest.raises(OSError, match="File name too long") as error:
        write(path)
    assert error.value.filename == str(path)


def test_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as error:
        write("/dev/full")
    assert error.value.filename == "/dev/full"
    assert not stat.S_ISREG(os.stat("/dev/full").st_mode), "devices are never replaced"


@pytest.mark.parametrize("path", ["gs://bucket/a", "s3://bucket/a", "hdfs://host:9000/a"])
def test_remote_paths_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{path}: only local paths"):
        write(path)
    with pytest.raises(UserError, match=f"^--run_dir={path}: only local paths"):
        files.refuse_remote(path, "run_dir")
    assert os.listdir(tmp_path) == []

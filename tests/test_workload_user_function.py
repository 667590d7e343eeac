"""What a file of the user says now is what is run."""

import os
from pathlib import Path

import pytest

from meshemu.errors import InputError
from meshemu.workload.user_function import load_function


def test_an_edit_of_equal_length_within_a_second_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python knows cached bytecode as that of a text by its length and the second it was written in."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for value in (1, 2):
        file.write_text(f"def value():\n    return {value}\n")
        os.utime(file, (1e9, 1e9))
        assert load_function(f"{file}:value")() == value
    assert list(tmp_path.iterdir()) == [file]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("def value(): ...")
    with pytest.raises(InputError, match=r"mine\.txt:value': .*mine\.txt is not a Python file"):
        load_function(f"{tmp_path}/mine.txt:value")
    (tmp_path / "mine.py").write_text("def value(:")
    with pytest.raises(InputError, match=r"mine\.py failed: SyntaxError: .*line 1"):
        load_function(f"{tmp_path}/mine.py:value")

"""Load a function that the user names as "path/to/file.py:function".

Models, data sets and losses of the user come in through this one door. The file is executed afresh at each call, with
its own folder importable, and every failure becomes one line that names the file.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from meshemu.errors import InputError, MeshemuError

__all__ = ["call_user_function", "is_file_reference", "load_function"]


def is_file_reference(name: str) -> bool:
    """Whether `name` has the form "file.py:function" rather than being the name of a built-in."""
    return ".py:" in name


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `reference`, "file.py:function", names; a relative path starts at the working directory.

    Raises:
        InputError: the reference is malformed, the file is missing or fails, or it has no such function.
    """
    path_text, separator, function_name = reference.rpartition(":")
    if not separator or not path_text or not function_name:
        raise InputError(f"'{reference}' is not of the form file.py:function")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"'{reference}': there is no file {path}")
    if path.suffix != ".py":
        raise InputError(f"'{reference}': {path} is not a Python file")
    namespace = _execute(path, reference)
    function = namespace.get(function_name)
    if not callable(function):
        valid = sorted(name for name, value in namespace.items() if callable(value) and not name.startswith("_"))
        problem = "is not callable" if function_name in namespace else "is not defined"
        raise InputError(f"'{reference}': {function_name} {problem} in {path}; it has: {', '.join(valid) or 'nothing'}")
    return function  # type: ignore[no-any-return]


def call_user_function(reference: str, args: Mapping[str, Any]) -> Any:
    """What `reference`, "file.py:function", returns for the keyword arguments `args`.

    Raises:
        InputError: as `load_function`, or the call fails.
    """
    function = load_function(reference)
    try:
        return function(**args)
    except MeshemuError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"'{reference}': calling it failed: {_one_line(error)}") from error


class _AsItStands(SourceFileLoader):
    """Compiles the text of a file. Python's cached bytecode is that of any text of this length and second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _execute(path: Path, reference: str) -> dict[str, Any]:
    """Run the file as a module and return its names."""
    # Files of equal name in different folders must not replace each other; dataclasses look their module up by name.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loader = _AsItStands(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None  # as the loader is given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"'{reference}': importing {path} failed: {_one_line(error)}") from error
    return vars(module)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` first on the import path meanwhile, as when its file is run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _one_line(error: BaseException) -> str:
    """The type and the message of an error on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__

"""Imports go one way, every third-party library has one home, and `import meshemu` stays light."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lower rows first. A part imports parts of lower rows only.
ROWS = (
    {"errors", "version"},
    {"units", "comm"},
    {"hardware"},
    {"config"},  # takes routers as hardware describes them
    {"mesh"},
    {"program"},
    {"collectives", "cost", "network"},
    {"workload", "runtime", "record"},
    {"execute"},  # interprets the layouts and values that the rules of workload define
    {"emulator"},
    {"analysis"},
    {"study"},  # asks for reports of the runs that it makes
    {"cli"},
    {"__main__", "__init__"},
)
ROW = {part: number for number, row in enumerate(ROWS) for part in row}

HOMES = {
    "mpi4py": ("runtime/mpi.py",),
    "h5py": ("record/",),
    "numba": ("network/", "workload/formats/"),
    "torch": ("workload/", "execute/"),
    "sklearn": ("workload/data/",),
    "matplotlib": ("analysis/", "study/"),
    "pandas": ("record/", "analysis/", "study/"),
    "optuna": ("study/",),
    "scipy": ("study/",),
    "pydantic": ("config/",),
    "pydantic_core": ("config/",),
    "tomli_w": ("config/",),
    "quantiphy": ("units.py",),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "tomli_w": "tomli-w", "pydantic_core": "pydantic"}


def imported_names(path: Path, package: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import in `path`, wherever it stands, `from a import b` as a.b."""
    inside = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(inside[: len(inside) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def part_of(relative: str) -> str:
    return relative.split("/")[0].removesuffix(".py")


def part_imported(name: str, package: Path) -> str:
    """The part of the package that `name` refers to; "__init__" for a name that the package itself defines."""
    second = name.split(".")[1] if "." in name else ""
    exists = (package / second).is_dir() or (package / f"{second}.py").is_file()
    return second if second and exists else "__init__"


def violations(package: Path) -> list[str]:
    """Every import in the tree `package` that breaks the rules, as "file:line: what"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package).as_posix()
        part = part_of(relative)
        if part not in ROW:
            found.append(f"{relative}: {part} has no row")
            continue
        for name, line in imported_names(path, package):
            library = name.split(".")[0]
            if library == package.name:
                target = part_imported(name, package)
                if target != part and not ROW.get(target, len(ROWS)) < ROW[part]:
                    found.append(f"{relative}:{line}: {part} imports {target}")
            elif library in HOMES and not relative.startswith(HOMES[library]):
                found.append(f"{relative}:{line}: {library} lives in {', '.join(HOMES[library])}")
    return found


def third_party(package: Path) -> set[str]:
    names = {name.split(".")[0] for path in package.rglob("*.py") for name, _ in imported_names(path, package)}
    return names - set(sys.stdlib_module_names) - {package.name}


def test_imports_go_one_way_and_libraries_stay_at_home():
    assert violations(ROOT / "meshemu") == []


def test_every_library_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["xarray"]
    declared = {requirement.split(">")[0] for requirement in requirements}
    used = {DISTRIBUTIONS.get(name, name) for name in third_party(ROOT / "meshemu")}
    assert used - declared == set()


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("network/a.py", "from meshemu.workload import plan", "network/a.py:1: network imports workload"),
        ("network/a.py", "from ..cost import work", "network/a.py:1: network imports cost"),
        ("mesh/a.py", "def f():\n    import meshemu.emulator", "mesh/a.py:2: mesh imports emulator"),
        ("mesh/a.py", "from meshemu import run", "mesh/a.py:1: mesh imports __init__"),
        ("program/a.py", "import torch.nn as nn", "program/a.py:1: torch lives in workload/, execute/"),
        ("runtime/local.py", "from mpi4py import MPI", "runtime/local.py:1: mpi4py lives in runtime/mpi.py"),
        ("strange/a.py", "", "strange/a.py: strange has no row"),
    ],
)
def test_a_wrong_import_is_found(file, line, said, tmp_path):
    package = tmp_path / "meshemu"
    for part in ("network", "workload", "cost", "mesh", "program", "runtime", "strange"):
        (package / part).mkdir(parents=True)
    (package / "emulator.py").write_text("from meshemu.network import results\nfrom .cost.work import op_work\n")
    assert violations(package) == []
    (package / file).write_text(line)
    [found] = violations(package)
    assert found.startswith(said)


HEAVY = "torch", "numba", "matplotlib", "mpi4py"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("meshemu", HEAVY),
        ("meshemu.cli", (*HEAVY, "numpy", "pydantic", "h5py")),
        ("meshemu.network", ("torch", "mpi4py")),
        ("meshemu.record", ("torch", "mpi4py", "numba")),
        ("meshemu.analysis", ("torch", "mpi4py", "numba")),
        ("meshemu.analysis.modes", ("torch", "mpi4py", "matplotlib")),
        ("meshemu.study.validate", ("torch", "mpi4py", "matplotlib")),
        ("meshemu.emulator.retiming", ("torch", "mpi4py")),
        ("meshemu.emulator.collective_times", ("torch", "mpi4py")),
    ],
)
def test_importing_stays_light(module, heavy):
    program = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr

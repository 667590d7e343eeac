"""The command line: what it calls, what it prints, how it ends."""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from meshemu import cli
from meshemu.errors import CheckError, InputError
from meshemu.version import __version__

ROOT = Path(__file__).resolve().parent.parent
GOOD = """
plan = "data"
[model]
name = "gpt"
[data]
name = "python_source"
batch_size = 50
[training]
steps = 3
optimizer = { name = "adamw", lr = 0.001 }
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(GOOD)
    (tmp_path / "wrong.toml").write_text("plan = = 3\n")
    return path


@pytest.fixture
def emulator(monkeypatch):
    """An emulator that notes how it is called."""
    calls = []

    def note(*args, **named):
        calls.append((args, named))

    fakes = {
        "running": types.SimpleNamespace(run=note, calls=calls),
        "retiming": types.SimpleNamespace(retime=note),
        "collective_times": types.SimpleNamespace(collectives_table=lambda *args, **_named: f"table of {args}"),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"meshemu.emulator.{name}", fake)
    return fakes["running"]


def test_run_passes_the_configuration_on(config, emulator):
    assert cli.main(["run", str(config), "--steps", "9", "--set", "plan=spatial", "timing.routing=yx"]) == 0
    [((settings, output), named)] = emulator.calls
    assert (settings.training.steps, settings.plan, settings.timing.routing) == (9, "spatial", "yx")
    assert output == Path("small.h5")
    assert named["execute"] is True
    assert (named["comm"].rank, named["comm"].size) == (0, 1)


def test_run_options(config, emulator):
    words = ["run", "--set", "training.seed=4", str(config), "--set", "output.path='x.h5'"]
    words += ["--no-execute", "--overwrite"]
    assert cli.main(words) == 0
    assert cli.main([*words, "-o", "y.h5"]) == 0
    [((settings, first), named), ((_, second), _)] = emulator.calls
    assert (settings.training.seed, settings.output.overwrite, named["execute"]) == (4, True, False)
    assert (first, second) == (Path("x.h5"), Path("y.h5"))


def test_retime_and_collectives(emulator, capsys):
    assert cli.main(["retime", "a/run.h5", "--set", "system.tile_edge.bandwidth=9 TB/s", "plan=data"]) == 0
    [((path, overrides, output), _)] = emulator.calls
    assert (path, output) == (Path("a/run.h5"), Path("a/run.retimed.h5"))
    assert overrides == ["system.tile_edge.bandwidth=9 TB/s", "plan=data"]
    assert cli.main(["collectives", "--system", "dojo-tray", "--size", "2 KiB"]) == 0
    assert capsys.readouterr().out == "table of ('dojo-tray', 2048)\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("plan: 26 > 25"), 2, "meshemu: error: plan: 26 > 25\n"),
        (CheckError("they differ"), 1, "meshemu: they differ\n"),
        (KeyboardInterrupt(), 130, "meshemu: interrupted\n"),
        (KeyError("x"), 3, "meshemu: internal error: KeyError: 'x' (MESHEMU_DEBUG=1 shows the traceback)\n"),
    ],
)
def test_failures_of_the_emulator_become_a_line_and_a_code(error, code, line, config, emulator, capsys):
    def fail(*_args, **_named):
        raise error

    emulator.run = fail
    assert cli.main(["run", str(config)]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND (see 'meshemu --help')"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "the following arguments are required: CONFIG.toml (see 'meshemu run --help')"),
        (["run", "a.toml", "--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["run", "no.toml"], "no.toml: cannot be read: No such file or directory"),
        (["run", "no.toml", "--stepz", "2"], "unrecognized arguments: --stepz 2 (see 'meshemu run --help')"),
        (["run", "small.toml", "--set"], "argument --set: expected one argument"),
        (["run", "small.toml", "--set", "a"], "--set a: give it as key=value"),
        (["run", "small.toml", "--steps", "0"], "training.steps = 0: should be greater than 0"),
        (["run", "small.toml", "--set", "model.dtypo=fp32"], "model.dtypo: unknown key, did you mean 'dtype'?"),
        (["run", "small.toml", "--set", "timing.packet_bytes=4 apples"], "packet_bytes = '4 apples' is not a size"),
        (["run", "wrong.toml"], "is not valid TOML"),
        (["collectives", "--size", "1 apple"], "--size = '1 apple' is not a size"),
        (["systems", "dojo-tyle"], "dojo-tile"),
        (["report", "no.h5"], "no.h5"),
        (["compare", "no.h5", "nope.h5"], "no.h5"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, said, config, emulator, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("meshemu: error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"meshemu {__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("run", "report", "compare", "systems", "models", "retime", "collectives"):
        assert command in text
        assert cli.main([command, "--help"]) == 0


def test_systems_and_models(capsys):
    assert cli.main(["systems"]) == 0
    assert "dojo-tile" in capsys.readouterr().out
    assert cli.main(["systems", "dojo-tile"]) == 0
    assert "tile_edge" in capsys.readouterr().out
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert {"regnet", "gpt"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 2 for line in lines)


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "meshemu", "systems", "dojo-tile"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("ranks", "name", "said"), [(1, "bad.toml", "did you mean 'steps'?"), (2, "no.toml", "cannot be read")]
)
def test_bad_input_under_mpirun_is_one_line_from_one_rank(ranks, name, said, mpirun, tmp_path):
    """Whatever is bad; which words it is told in does not depend on the launcher."""
    (tmp_path / "bad.toml").write_text(GOOD.replace("steps", "stepz"))
    start_s = time.monotonic()
    job = mpirun(ranks, "-m", "meshemu", "run", name, cwd=tmp_path, timeout_s=30)
    assert time.monotonic() - start_s < 15
    assert (job.returncode, job.stdout, job.stderr.count("\n")) == (2, "", 1)
    assert job.stderr.startswith("meshemu: error: ")
    assert said in job.stderr


def test_serial_commands_under_mpirun_answer_once(mpirun):
    job = mpirun(2, "-m", "meshemu", "--version")
    assert (job.returncode, job.stdout, job.stderr) == (0, f"meshemu {__version__}\n", "")
    job = mpirun(2, "-m", "meshemu", "compare", "no.h5", "nope.h5")
    assert (job.returncode, job.stdout, job.stderr.count("\n")) == (2, "", 1)

"""Whole runs: the same results file for any number of ranks, and a comparison that can tell."""

import shutil

import h5py
import pytest
from resealing import changed
from shared_captures import Captures
from test_run_bad_input import CONFIG

import meshemu
from meshemu import cli
from meshemu.config import parse
from meshemu.record.compare import compare

GPT = """
plan = "data"
[system]
preset = "dojo-tile"
tile_edge = { bandwidth = "3 TB/s" }
dies = [2, 3]
[model]
name = "gpt"
args = { vocab_size = 96, context = 8, width = 8, heads = 2, layers = 1 }
[data]
name = "random_tokens"
args = { context = 8, vocab_size = 96, n_samples = 64 }
batch_size = 8
[training]
steps = 3
optimizer = { name = "adamw", lr = 0.01 }
"""


CASES = {
    "spatial": (CONFIG, "spatial", (1, 3, 4)),
    "data": (CONFIG, "data", (1, 2, 4)),
    "gpt": (GPT, "data", (1, 4)),
}


@pytest.mark.mpi(min_size=4)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_number_of_ranks(case, comm, meet, collective_assert, mpi_tmp_path):
    """One launch, communicators of 1 to 4 of its ranks, one file each. Every process captures the step once."""
    text, plan, sizes = CASES[case]
    capture = Captures().capture
    config = parse(text, [f"plan={plan}"], origin=case, directory=mpi_tmp_path)
    for ranks in sizes:
        part = comm.Split(int(comm.rank >= ranks), comm.rank)
        if comm.rank < ranks:
            meshemu.run(config, mpi_tmp_path / f"{ranks}.h5", comm=part, capture=capture)
        meet()
        part.Free()
    others = sizes[1:] if comm.rank == 0 else ()
    differences = [compare(mpi_tmp_path / "1.h5", mpi_tmp_path / f"{ranks}.h5") for ranks in others]
    collective_assert(not any(differences), f"{differences}")
    with h5py.File(mpi_tmp_path / "1.h5") as first, h5py.File(mpi_tmp_path / "4.h5") as last:
        losses = first["/results/steps/loss"][:].tolist()
        collective_assert(len(set(losses)) == len(losses), "something must move from step to step")
        collective_assert((first["/run"].attrs["ranks"], last["/run"].attrs["ranks"]) == (1, 4), "another run")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The file of a one-rank run of CONFIG in this process."""
    path = tmp_path_factory.mktemp("recorded") / "a.h5"
    meshemu.run(parse(CONFIG, origin="CONFIG", directory=path.parent), path)
    return path


def test_the_command_gives_the_same_file_on_two_ranks(mpirun, recorded, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    job = mpirun(2, "-m", "meshemu", "run", "config.toml", "-o", "two.h5", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert compare(recorded, tmp_path / "two.h5") is None


def test_one_changed_bit_is_found(recorded, tmp_path, capsys):
    copy = str(shutil.copy(recorded, tmp_path / "b.h5"))
    assert cli.main(["compare", str(recorded), copy]) == 0
    with changed(copy) as file:
        losses = file["/results/steps/loss"]
        bits = losses[1:2].view("u8")
        losses[1] = (bits ^ 1).view("f8")[0]
    capsys.readouterr()
    assert cli.main(["compare", str(recorded), copy]) == 1
    said = capsys.readouterr().out
    assert "/results/steps/loss" in said
    assert "step 1" in said


def test_time_only_runs_need_no_maths(recorded, tmp_path):
    """The Program and its times are those of the executed run; losses are missing."""
    meshemu.run(parse(CONFIG, origin="CONFIG", directory=tmp_path), tmp_path / "b.h5", execute=False)
    with h5py.File(recorded) as executed, h5py.File(tmp_path / "b.h5") as timed:
        for path in ("/results/steps/time_ps", "/results/links/busy_ps", "/results/ops/end_ps"):
            assert (executed[path][:] == timed[path][:]).all(), path
        assert (timed["/results/steps/loss"][:] != timed["/results/steps/loss"][:]).all()


def test_retime_on_faster_links(mpirun, recorded, tmp_path):
    """Twice the bandwidth halves the time on links; the same hardware gives the same times."""
    words = ["-m", "meshemu", "retime", str(recorded), "-o", "same.h5"]
    job = mpirun(2, *words, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert compare(recorded, tmp_path / "same.h5") is None
    faster = ["retime", str(recorded), "-o", str(tmp_path / "fast.h5"), "--set", "system.link.bandwidth=100 GB/s"]
    assert cli.main(faster) == 0
    with h5py.File(recorded) as slow, h5py.File(tmp_path / "fast.h5") as fast:
        assert fast["/results/steps/time_ps"][0] < slow["/results/steps/time_ps"][0]
        busy, half = slow["/results/links/busy_ps"][0], fast["/results/links/busy_ps"][0]
        assert abs(half * 2 - busy).max() <= 2 * slow["/results/links/packets"][0].max()
        assert (slow["/results/steps/loss"][:] == fast["/results/steps/loss"][:]).all()
    assert cli.main(["retime", str(recorded), "-o", str(tmp_path / "c.h5"), "--set", "system.link.colour=red"]) == 2

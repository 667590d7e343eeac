"""Whole runs: the same results file for any number of ranks, and a comparison that can tell."""

import h5py
import pytest
from resealing import changed
from test_run_bad_input import CONFIG

import meshemu
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
    "spatial": (CONFIG, "spatial", (1, 2, 3, 4)),
    "data": (CONFIG, "data", (1, 2, 3, 4)),
    "gpt": (GPT, "data", (1, 4)),
}


@pytest.mark.mpi(min_size=4)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_number_of_ranks(case, comm, collective_assert, mpi_tmp_path):
    """One launch, communicators of 1, 2, 3 and 4 of its ranks, one file each."""
    text, plan, sizes = CASES[case]
    config = parse(text, [f"plan={plan}"], origin=case, directory=mpi_tmp_path)
    for ranks in sizes:
        part = comm.Split(int(comm.rank >= ranks), comm.rank)
        if comm.rank < ranks:
            meshemu.run(config, mpi_tmp_path / f"{ranks}.h5", comm=part)
        part.Free()
        comm.Barrier()
    differences = [compare(mpi_tmp_path / "1.h5", mpi_tmp_path / f"{ranks}.h5") for ranks in sizes[1:]]
    collective_assert(not any(differences), f"{differences}")
    with h5py.File(mpi_tmp_path / "1.h5") as first, h5py.File(mpi_tmp_path / "4.h5") as last:
        losses = first["/results/steps/loss"][:].tolist()
        collective_assert(len(set(losses)) == len(losses), "something must move from step to step")
        collective_assert((first["/run"].attrs["ranks"], last["/run"].attrs["ranks"]) == (1, 4), "another run")


def test_the_command_gives_the_same_file_on_two_ranks(mpirun, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    for ranks in (1, 2):
        job = mpirun(ranks, "-m", "meshemu", "run", "config.toml", "-o", f"{ranks}.h5", cwd=tmp_path)
        assert job.returncode == 0, job.stderr
    assert compare(tmp_path / "1.h5", tmp_path / "2.h5") is None


def run_here(folder, name, *, execute=True):
    """A one-rank run of CONFIG in this process."""
    meshemu.run(parse(CONFIG, origin="CONFIG", directory=folder), folder / name, execute=execute)


def test_one_changed_bit_is_found(mpirun, tmp_path):
    for name in ("a.h5", "b.h5"):
        run_here(tmp_path, name)
    with changed(tmp_path / "b.h5") as file:
        losses = file["/results/steps/loss"]
        bits = losses[1:2].view("u8")
        losses[1] = (bits ^ 1).view("f8")[0]
    job = mpirun(1, "-m", "meshemu", "compare", "a.h5", "b.h5", cwd=tmp_path)
    assert job.returncode == 1
    assert "/results/steps/loss" in job.stdout
    assert "step 1" in job.stdout


def test_time_only_runs_need_no_maths(tmp_path):
    """The Program and its times are those of the executed run; losses are missing."""
    run_here(tmp_path, "a.h5")
    run_here(tmp_path, "b.h5", execute=False)
    with h5py.File(tmp_path / "a.h5") as executed, h5py.File(tmp_path / "b.h5") as timed:
        for path in ("/results/steps/time_ps", "/results/links/busy_ps", "/results/ops/end_ps"):
            assert (executed[path][:] == timed[path][:]).all(), path
        assert (timed["/results/steps/loss"][:] != timed["/results/steps/loss"][:]).all()


def test_retime_on_faster_links(mpirun, tmp_path):
    """Twice the bandwidth halves the time on links; the same hardware gives the same times."""
    run_here(tmp_path, "a.h5")
    for name, words in (("same.h5", []), ("fast.h5", ["--set", "system.link.bandwidth=100 GB/s"])):
        job = mpirun(2, "-m", "meshemu", "retime", "a.h5", "-o", name, *words, cwd=tmp_path)
        assert job.returncode == 0, job.stderr
    assert compare(tmp_path / "a.h5", tmp_path / "same.h5") is None
    with h5py.File(tmp_path / "a.h5") as slow, h5py.File(tmp_path / "fast.h5") as fast:
        assert fast["/results/steps/time_ps"][0] < slow["/results/steps/time_ps"][0]
        busy, half = slow["/results/links/busy_ps"][0], fast["/results/links/busy_ps"][0]
        assert abs(half * 2 - busy).max() <= 2 * slow["/results/links/packets"][0].max()
        assert (slow["/results/steps/loss"][:] == fast["/results/steps/loss"][:]).all()
    job = mpirun(1, "-m", "meshemu", "retime", "a.h5", "-o", "c.h5", "--set", "system.link.colour=red", cwd=tmp_path)
    assert job.returncode == 2

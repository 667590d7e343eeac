"""Back-pressure mode from a configuration, from Python and by `retime`: one setting, one result, kept in the file."""

import tomllib

import numpy as np
import pytest
import torch
from test_run_bad_input import CONFIG
from torch.nn import functional

import meshemu
from meshemu.config import parse
from meshemu.emulator import flits
from meshemu.emulator.collective_times import collective, collectives_table
from meshemu.errors import InputError
from meshemu.mesh import flatten
from meshemu.program.traffic import TRAFFIC, message_classes, stage_label
from meshemu.record import compare, open_run
from meshemu.runtime.local import run_ranks

ROUTER = ["network.router={virtual_channels=2, buffer_flits=2, message_classes=3}"]
GRID = meshemu.System.grid(rows=2, cols=2, bandwidth="1 GB/s", latency="10 ns")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """fifo.h5 and router.h5: the same run, timed in either mode."""
    path = tmp_path_factory.mktemp("runs")
    for name, overrides in (("fifo", []), ("router", ROUTER)):
        config = parse(CONFIG, overrides, origin="CONFIG", directory=path)
        meshemu.run(config, path / f"{name}.h5", execute=False)
    return path


def test_both_ways_to_a_mode_give_the_same_file(folder, tmp_path):
    """Timed at once or again, on one rank or two; and back to FIFOs, bit for bit."""
    router, fifo = folder / "router.h5", folder / "fifo.h5"
    assert "time_ps" in str(compare(router, fifo))
    for n_ranks in (1, 2):
        again, back = tmp_path / f"router{n_ranks}.h5", tmp_path / f"fifo{n_ranks}.h5"
        run_ranks(n_ranks, lambda comm: meshemu.retime(fifo, ROUTER, again, comm=comm))  # noqa: B023
        run_ranks(n_ranks, lambda comm: meshemu.retime(again, ["network.router=false"], back, comm=comm))  # noqa: B023
        assert compare(again, router) is None
        assert compare(back, fifo) is None
        assert open_run(again).run_attributes["ranks"] == n_ranks


def test_a_run_with_routers_does_not_depend_on_ranks(folder, tmp_path):
    config = parse(CONFIG, ROUTER, origin="CONFIG", directory=tmp_path)
    run_ranks(2, lambda comm: meshemu.run(config, tmp_path / "two.h5", execute=False, comm=comm))
    assert compare(tmp_path / "two.h5", folder / "router.h5") is None


def test_the_file_says_which_mode_timed_it(folder, tmp_path):
    fifo, router = (open_run(folder / f"{name}.h5") for name in ("fifo", "router"))
    assert not any("back_pressure" in text for text in fifo.assumptions)
    assert tomllib.loads(fifo.config).get("network", {}) == {}
    (said,) = (text for text in router.assumptions if text.startswith("back_pressure: "))
    assert "buffers of 2 flits" in said
    assert all(f"{number} {what}" in said for number, what in enumerate(TRAFFIC))
    table = tomllib.loads(router.config)["network"]["router"]
    assert meshemu.Router(**table) == meshemu.Router(virtual_channels=2, buffer_flits=2, message_classes=3)
    meshemu.retime(folder / "router.h5", ["network.router.buffer_flits=8"], tmp_path / "more.h5")
    changed = open_run(tmp_path / "more.h5")
    assert tomllib.loads(changed.config)["network"]["router"] == table | {"buffer_flits": 8}
    assert len([text for text in changed.assumptions if text.startswith("back_pressure")]) == 1
    assert "buffers of 2 flits" not in "".join(changed.assumptions)


def test_what_is_changed_stays_changed(folder, tmp_path):
    """Timing a retimed file again without changes gives its times, and its configuration would run the same."""
    words = ["timing.routing=yx", "timing.packet_bytes=128 B", "system.link.bandwidth=2 GB/s", *ROUTER]
    meshemu.retime(folder / "fifo.h5", words, tmp_path / "a.h5")
    meshemu.retime(tmp_path / "a.h5", [], tmp_path / "b.h5")
    assert compare(tmp_path / "a.h5", tmp_path / "b.h5") is None
    config = parse(open_run(tmp_path / "a.h5").config, origin="a.h5", directory=tmp_path)
    assert (config.timing.routing, config.timing.packet_bytes) == ("yx", 128)
    assert config.system.overrides == {"link.bandwidth": "2 GB/s"}
    assert config.network.router == meshemu.Router(virtual_channels=2, buffer_flits=2, message_classes=3)
    assert config.model == parse(CONFIG, origin="CONFIG", directory=tmp_path).model


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.router.virtual_channels=0", "network.router.virtual_channels = 0 is not a whole number"),
        ("network.router.flits=1", "network.router.flits: unknown key"),
        ("network.routers=1", "network.routers: unknown key, did you mean 'router'?"),
        ("network=true", "give it as system.KEY=VALUE or timing.KEY=VALUE or network.KEY=VALUE"),
        ("network.router=maybe", "network.router = 'maybe': should be a table, true or false"),
        ("network.router.flit_bytes=8 KiB", "packet_bytes = 4096 < flit_bytes = 8192: a packet holds a flit"),
        ("timing.routing=diagonal", "timing.routing = 'diagonal': should be 'xy' or 'yx'"),
        ("timing.collective=tree", "timing.collective cannot be changed here; valid: packet_bytes, routing"),
        ("plan=data", "--set plan=data: give it as"),
        ("timing.packet_bytes", "give it as key=value"),
    ],
)
def test_bad_changes_are_one_line(folder, tmp_path, override, said):
    with pytest.raises(InputError) as caught:
        meshemu.retime(folder / "fifo.h5", [override], tmp_path / "no.h5")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "no.h5").exists()


def pipelined(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(4)])
    batch = torch.ones(8, 8), torch.zeros(8, dtype=torch.long)
    return meshemu.emulate(
        model, batch, functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), system=GRID,
        plan={"pipeline": 2, "data": 2, "micro_batches": 2}, execute=False, **options,
    )  # fmt: skip


def test_emulate_takes_a_router(tmp_path):
    router = meshemu.Router(message_classes=3, buffer_flits=1)
    result = pipelined(router=router, output=tmp_path / "run.h5")
    assert result.time_ps == meshemu.time(result.program, GRID, router=router).end_ps
    assert result.time_ps == pipelined(options=meshemu.TimingOptions(router=router)).time_ps
    assert result.time_ps > pipelined().time_ps
    meshemu.retime(tmp_path / "run.h5", [], tmp_path / "again.h5")
    assert compare(tmp_path / "run.h5", tmp_path / "again.h5") is None
    with pytest.raises(InputError, match="two routers"):
        pipelined(router=router, options=meshemu.TimingOptions(router=meshemu.Router()))
    with pytest.raises(InputError, match=r"timing.collective = 'in_network'.* set timing.collective to ring"):
        pipelined(options=meshemu.TimingOptions(router=router, collective="in_network"))
    with pytest.raises(InputError, match="packet_bytes = 32 < flit_bytes = 64"):
        meshemu.TimingOptions(router=router, packet_bytes=32)


def test_each_kind_of_traffic_has_its_class():
    program = pipelined().program
    label = np.array(program.labels)[program.label[program.send_op]]
    collective_ = program.collective[program.send_op] >= 0
    moves = np.array([" to stage " in text for text in label])
    assert collective_.any() and moves.any() and not (collective_ & moves).any()
    three = message_classes(program, 3)
    assert (three == np.where(collective_, 1, np.where(moves, 2, 0))).all()
    assert (message_classes(program, 5) == three).all()
    assert (message_classes(program, 2) == collective_).all()
    assert not message_classes(program, 1).any()
    labels = [stage_label("x", stages) for stages in ((), (3,), (0, 1))]
    assert labels == ["x to all stages", "x to stage 3", "x to stage 0, 1"]


def test_halos_stay_in_the_first_class(folder):
    program = open_run(folder / "fifo.h5").program()
    assert np.unique(message_classes(program, 3)).tolist() == [0, 1]


def test_collectives_with_routers():
    plain = collectives_table("dojo-tile", 2**12).splitlines()
    words = ["network.router.buffer_flits=1", "network.router.virtual_channels=1"]
    routers = collectives_table("dojo-tile", 2**12, overrides=words).splitlines()
    assert "buffers of 1 flit," in routers[0] and "routers" not in plain[0]
    assert [line[:46] for line in plain[1:]] == [line[:46] for line in routers[1:]], "the model knows no routers"
    assert plain[2:] != routers[2:]
    able = ["system.mesh.multicast=true", "system.mesh.reduction=true", "network.router=true"]
    lines = collectives_table("dojo-tile", 2**12, overrides=able).splitlines()
    refused = [line for line in lines if "in_network" in line]
    assert len(refused) == 5
    assert all("neither fork nor merge messages; choose another algorithm" in line for line in refused)
    with pytest.raises(InputError, match=r"--set timing.routing=yx: give it as system.KEY=VALUE or network.KEY=VALUE"):
        collectives_table("dojo-tile", 2**12, overrides=["timing.routing=yx"])


def test_trees_are_refused_by_name():
    system = meshemu.System.grid(rows=2, cols=3, bandwidth="1 GB/s", latency=0)
    system = system.override({"mesh.multicast": True, "mesh.reduction": True})
    for kind in ("all_reduce", "broadcast"):
        program = collective(kind, "in_network", system=system, size_bytes=600)
        with pytest.raises(InputError, match=f"{kind} '{kind} in_network' by in_network: routers with finite buffers"):
            meshemu.time(program, system, router=meshemu.Router())


def test_many_flits_are_announced(monkeypatch, capsys):
    program = collective("broadcast", "tree", system=GRID, size_bytes=6400)
    mesh = flatten(GRID)
    n = flits.flit_hops(program, mesh, meshemu.Router(flit_bytes=64))
    assert n == meshemu.time(program, GRID, router=meshemu.Router()).counters.packet_hops
    flits.announce_flits(program, mesh, meshemu.Router())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(flits, "MANY", n - 1)
    flits.announce_flits(program, mesh, meshemu.Router())
    assert capsys.readouterr().err.startswith(f"meshemu: {n} flits over links")

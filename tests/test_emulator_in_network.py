"""Collectives in the network, from the command line and the configuration to the results file."""

from pathlib import Path

import pytest

from meshemu.config import load
from meshemu.emulator.collective_times import collectives_table
from meshemu.emulator.running import run
from meshemu.errors import InputError
from meshemu.record.reader import open_run

FIRST_LIGHT = Path(__file__).resolve().parent.parent / "configs" / "first_light.toml"
ABLE = ["system.mesh.multicast=true", "system.mesh.reduction=true", "system.mesh.combine=10 ns"]
CHOSEN = ["training.steps=1", "training.evaluate_every=0", "timing.collective=in_network"]


def test_the_table_has_in_network_where_routers_can() -> None:
    table = collectives_table("dojo-tile", 4096, overrides=ABLE)
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in table.splitlines()[2:]}
    for kind in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"):
        assert (kind, "ring") in rows
        *model, value, unit, _ = rows[kind, "in_network"]
        assert [value, unit] == model, "formula and simulation agree"
    assert "in_network" not in collectives_table("dojo-tile", 4096)
    only_forks = collectives_table("dojo-tile", 4096, overrides=ABLE[:1])
    assert [line.split()[0] for line in only_forks.splitlines() if "in_network" in line] == ["all_gather", "broadcast"]


def test_the_table_takes_settings_of_the_system_only() -> None:
    with pytest.raises(InputError, match=r"--set timing.packet_bytes=64 B: give it as system.KEY=VALUE or network"):
        collectives_table("dojo-tile", 4096, overrides=["timing.packet_bytes=64 B"])
    with pytest.raises(InputError, match=r"mesh.multicats"):
        collectives_table("dojo-tile", 4096, overrides=["system.mesh.multicats=true"])


def test_a_step_whose_collectives_are_in_the_network(tmp_path: Path) -> None:
    run(load(FIRST_LIGHT, [*CHOSEN, *ABLE]), tmp_path / "a.h5", execute=False)
    stored = open_run(tmp_path / "a.h5")
    program = stored.program()
    assert {use.algorithm for use in program.collectives} == {"in_network"}
    assert len(set(program.send_op)) < program.n_messages > len(set(program.recv_op))
    with pytest.raises(InputError, match=r"all_reduce by in_network needs .*: mesh.reduction = false"):
        run(load(FIRST_LIGHT, CHOSEN), tmp_path / "b.h5", execute=False)

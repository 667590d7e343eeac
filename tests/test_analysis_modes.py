"""The same stored step in both modes: what the table says is what the engine finds, and the sentence follows it."""

import json
import re

import numpy as np
import pytest
from synthetic_run import make_case

import meshemu
from meshemu import cli
from meshemu.analysis.modes import both_modes, render
from meshemu.collectives import collective_program
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import flatten
from meshemu.network.results import OpTimes, Timeline
from meshemu.record import Head, RunWriter, open_run

TIGHT = ["network.router={flit_bytes=64, virtual_channels=1, buffer_flits=1}"]


def stored(path, **options):
    """All devices of a mesh send to the first; 64 B take 1 ns on a link."""
    case = make_case(bandwidth="64 GB/s", **options)
    return case, open_run(case.write(path / "run.h5"))


def test_modes_disagree_where_many_send_to_one(tmp_path):
    case, run = stored(tmp_path, message_bytes=64 * 200)
    both = both_modes(run, TIGHT)
    router = Router(virtual_channels=1, buffer_flits=1)
    for mode, chosen in (("fifo", None), ("router", router)):
        timing = meshemu.time(case.program, case.system, router=chosen)
        figures = both["step"][mode]
        assert (figures["time_ps"], figures["wait_ps"]) == (timing.end_ps, timing.links.wait_ps.sum())
        waited = {row["link"]: row["wait_ps"][mode] for row in both["links"]}
        assert waited == {link: timing.links.wait_ps[link] for link in waited}
        worst = np.argsort(-timing.links.wait_ps, kind="stable")[:3]
        assert set(worst[timing.links.wait_ps[worst] > 0]) <= set(waited)
    assert both["router"] == router.as_table()
    fifo, routers = (both["step"][mode]["time_ps"] for mode in ("fifo", "router"))
    assert both["disagreement"] == (routers - fifo) / fifo > 0.01
    longest = [max(row["wait_ps"].values()) for row in both["links"]]
    assert longest == sorted(longest, reverse=True) and longest[0] > 0
    share = f"{100 * both['disagreement']:.1f} %"
    assert both["meaning"].startswith(f"With routers the step is {share} longer: where buffers are full")
    assert "buffer_flits = 1 may be too few" in both["meaning"]
    text = render(both)
    assert re.search(rf"time of the step .* \+{re.escape(share)}$", text, flags=re.MULTILINE)
    assert f"{both['links'][0]['name']} " in text
    assert "1 virtual channel with buffers of 1 flit" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_modes_differ_by_the_delay_of_a_router_where_nothing_waits(tmp_path):
    """One message over one link: a cycle each to inject, to eject and in the second router."""
    _, run = stored(tmp_path, rows=1, cols=2, message_bytes=640)
    for cycles in (1, 4):
        both = both_modes(run, [f"network.router.pipeline_cycles={cycles}"])
        step = both["step"]
        assert (step["fifo"]["wait_ps"], step["router"]["wait_ps"], both["links"]) == (0, 0, [])
        assert step["router"]["time_ps"] - step["fifo"]["time_ps"] == 1000 * (2 * cycles + 1)
        assert both["meaning"].startswith("No packet waits in either mode")
        assert "Most contended" not in render(both)


def test_modes_agree_exactly_without_messages(tmp_path):
    _, run = stored(tmp_path, rows=1, cols=1)
    both = both_modes(run)
    assert both["disagreement"] == 0 and both["step"]["fifo"] == both["step"]["router"]
    assert both["router"] == Router().as_table()
    assert both["meaning"].startswith("Both modes agree exactly")


def test_modes_agree_where_delays_of_routers_are_small(tmp_path):
    _, run = stored(tmp_path, rows=1, cols=3, message_bytes=64 * 2000)
    both = both_modes(run)
    assert 0 < both["disagreement"] < 0.01
    assert both["step"]["fifo"]["wait_ps"] > 0
    assert both["meaning"].startswith("Both modes agree within 1%")


def test_the_router_of_the_run_is_compared(tmp_path):
    _, run = stored(tmp_path, message_bytes=64 * 200)
    meshemu.retime(run.path, TIGHT, tmp_path / "tight.h5")
    tight = open_run(tmp_path / "tight.h5")
    both = both_modes(tight)
    assert both == both_modes(run, TIGHT)
    assert both["step"]["router"]["time_ps"] == tight.steps["time_ps"][0]
    assert both_modes(tight, ["network.router=false"]) == both_modes(run)


def test_the_command(tmp_path, capsys):
    _, run = stored(tmp_path, message_bytes=64 * 200)
    words = ["report", str(run.path), "--no-png", "--both-modes"]
    assert cli.main([*words, "--set", *TIGHT]) == 0
    text = capsys.readouterr().out
    assert render(both_modes(run, TIGHT)) in text
    assert "Timed with unbounded FIFOs on links." in text
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["both_modes"] == both_modes(run)
    for wrong, said in (
        (["report", str(run.path), "--set", "network.router=true"], "give --both-modes, or use retime"),
        ([*words, "--set", "network.router.colour=1"], "network.router.colour: unknown key"),
        ([*words, "--set", "network.router.flit_bytes=1 MiB"], "a packet holds a flit"),
    ):
        assert cli.main(wrong) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith("meshemu: error: ") and said in captured.err


def test_the_report_names_the_routers(tmp_path, capsys):
    _, run = stored(tmp_path, message_bytes=64 * 200)
    meshemu.retime(run.path, TIGHT, tmp_path / "tight.h5")
    assert cli.main(["report", str(tmp_path / "tight.h5"), "--png", str(tmp_path / "tight.png")]) == 0
    text = capsys.readouterr().out
    assert "Timed with routers: flits of 64 B, 1 virtual channel with buffers of 1 flit, wormhole" in text
    assert "back_pressure: Timed with routers that have finite buffers" in text
    assert "in routers, waiting included" in text


def test_trees_are_refused_by_the_name_of_their_collective(tmp_path):
    system = System.grid(rows=2, cols=2, bandwidth="1 GB/s", latency=0)
    system = system.override({"mesh.multicast": True, "mesh.reduction": True})
    mesh = flatten(system)
    program = collective_program("all_reduce", "in_network", mesh, 64)
    config_text = '[timing]\ncollective = "in_network"\n'
    head = Head(system_json=system.to_json(), mesh=mesh, program=program, config_text=config_text, n_steps=1)
    with RunWriter.create(tmp_path / "run.h5", head) as writer:
        none = np.zeros(program.n_ops, np.int64)
        writer.write_ops(OpTimes(none, none))
        writer.write_timeline(Timeline(1, np.zeros((1, mesh.n_links), np.int64)))
        writer.write_peak_memory(np.zeros(4, np.int64))
        writer.finish({})
    with pytest.raises(InputError, match=r"^all_reduce '.*' by in_network.*timing.collective = ring, rows_"):
        both_modes(open_run(tmp_path / "run.h5"))

"""Where links go in the picture: between neighbours, or from devices to the bars of their switches."""

import numpy as np
import pytest

from meshemu.analysis.link_ends import BESIDE, Room, link_ends, room_beside, switch_bars
from meshemu.hardware import System
from meshemu.mesh import flatten


def test_neighbours_are_joined_middle_to_middle():
    mesh = flatten(System.grid(rows=1, cols=2, bandwidth=1, latency=0))
    assert link_ends(mesh, np.arange(2), 0.2).tolist() == [[[0, 0], [1, 0]], [[1, 0], [0, 0]]]
    assert switch_bars(mesh) == [] and room_beside(mesh) == Room()


def test_links_around_the_mesh_go_off_the_grid():
    grid = System.grid(rows=3, cols=3, bandwidth=1, latency=0)
    mesh = flatten(grid.override({"wrap": "rows"}))
    ends = link_ends(mesh, mesh.out_link[[0, 5], [3, 1]], 0.2)  # west of (0,0), east of (1,2)
    assert ends.tolist() == [[[0, 0], [-1, 0]], [[2, 1], [3, 1]]]
    both = room_beside(flatten(grid.override({"wrap": "both"})))
    room = room_beside(mesh)
    assert room.left == room.right > 0 == room.upper == room.lower < min(both)


def test_devices_meet_the_bar_of_their_switch():
    mesh = flatten(System.preset("a100-24").override({"gpus": [2, 1], "nodes": [1, 2]}))
    ends = link_ends(mesh, np.arange(mesh.n_links), 0.2)
    for link, (begin, end) in enumerate(ends):
        other = ends[(link + 6) % 12]
        assert (begin == other[1]).all() and (end == other[0]).all()  # there and back the same way
    assert ends[2].tolist() == [[0.2, 1], [BESIDE, 1]]
    assert ends[5].tolist() == [[1 + BESIDE, -0.2], [1 + BESIDE, -0.75]]
    bars = [bar.tolist() for bar in switch_bars(mesh)]
    assert bars[:2] == [[[node + BESIDE, 0], [node + BESIDE, 1]] for node in range(2)]
    assert bars[2] == [[BESIDE, -0.75], [1 + BESIDE, -0.75]]
    assert room_beside(mesh).upper > 0 and room_beside(mesh).right > 0


@pytest.mark.parametrize("name", ["a100-8", "a100-24", "dojo-tile"])
def test_pictures_are_drawn(name):
    from meshemu.analysis import heatmap

    mesh = flatten(System.preset(name))
    figure = heatmap._draw(mesh, np.linspace(0, 0.5, mesh.n_links), name, "gpu")
    [arrows] = [c for c in figure.axes[0].collections if len(c.get_paths()) == mesh.n_links]
    (left, right), (low, high) = figure.axes[0].get_xlim(), sorted(figure.axes[0].get_ylim())
    points = np.concatenate([path.vertices for path in arrows.get_paths()])
    assert (points >= (left, low)).all() and (points <= (right, high)).all()

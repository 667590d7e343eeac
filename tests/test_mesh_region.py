"""The split of a mesh over ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import cut_links, flatten, lookahead_ps, regions, split_bounds


@settings(max_examples=80, derandomize=True)
@given(st.integers(0, 200), st.integers(1, 60))
def test_split_covers_all_with_the_first_parts_longer(n, parts):
    bounds = split_bounds(n, parts)
    lengths = np.diff(bounds).tolist()
    assert bounds[0] == 0 and bounds[-1] == n and len(lengths) == parts
    assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1


def test_split_written_out_and_refused():
    assert split_bounds(7, 3) == (0, 3, 5, 7) and split_bounds(2, 4) == (0, 1, 2, 2, 2)
    for n, parts in ((-1, 2), (3, 0)):
        with pytest.raises(InputError, match=f"cannot split {n} into {parts} parts"):
            split_bounds(n, parts)


def test_regions_written_out():
    assert regions(5, 5, 4).reshape(5, 5).tolist() == [[0, 0, 0, 1, 1]] * 3 + [[2, 2, 2, 3, 3]] * 2
    assert regions(2, 6, 3).reshape(2, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert regions(4, 4, 2).reshape(4, 4).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    assert regions(5, 5, 7).tolist() == sorted([*range(7)] * 3 + [0, 1, 2, 3])


@settings(max_examples=80, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_rank_has_a_near_equal_share_and_the_cut_is_least(rows, cols, data):
    n_ranks = data.draw(st.integers(1, rows * cols))
    ranks = regions(rows, cols, n_ranks)
    assert ranks.dtype == np.int32 and ranks.shape == (rows * cols,)
    counts = np.bincount(ranks, minlength=n_ranks)
    assert len(counts) == n_ranks and counts.min() >= 1
    fits = [(a, n_ranks // a) for a in range(1, rows + 1) if n_ranks % a == 0 and n_ranks // a <= cols]
    if not fits:
        assert counts.max() - counts.min() <= 1 and (np.diff(ranks) >= 0).all()
    else:
        grid = ranks.reshape(rows, cols)
        cut = int((grid[1:] != grid[:-1]).sum() + (grid[:, 1:] != grid[:, :-1]).sum())
        assert cut == min((a - 1) * cols + (b - 1) * rows for a, b in fits)


def test_refusals_show_the_equation():
    with pytest.raises(InputError, match=r"^26 ranks > 5 x 5 = 25 devices$"):
        regions(5, 5, 26)
    with pytest.raises(InputError, match="0 ranks"):
        regions(5, 5, 0)


def test_cut_and_lookahead():
    tray = flatten(System.preset("dojo-tray"))
    whole = np.zeros(tray.n_devices, np.int32)
    assert cut_links(tray, whole).size == 0 and lookahead_ps(tray, whole) is None
    by_tile = tray.tile_row * 3 + tray.tile_col
    assert cut_links(tray, by_tile).tolist() == np.flatnonzero(tray.link_class == 1).tolist()
    assert lookahead_ps(tray, by_tile) == 200_000
    assert lookahead_ps(tray, regions(10, 15, 4)) == 100_000
    nodes = flatten(System.preset("dojo-die"))
    assert lookahead_ps(nodes, regions(18, 20, 2)) == 500

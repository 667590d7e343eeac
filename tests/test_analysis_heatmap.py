"""The picture shows each link where it is, in the colour of its utilisation."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from synthetic_run import make_case

from meshemu.analysis import heatmap
from meshemu.analysis.palette import UNUSED
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.record import open_run


def count(image: np.ndarray, colour: object) -> int:
    """Pixels of a colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(colour))) < 0.01).all(axis=-1).sum())


def test_png_of_a_run(tmp_path: Path) -> None:
    case = make_case(3, 4, dead=(5,))
    run = open_run(case.write(tmp_path / "run.h5"))
    heatmap.save(run, tmp_path / "run.png", step=0)
    image = imread(tmp_path / "run.png")
    assert image.shape[0] > 400 and image.shape[1] > 600
    unused = int((case.links.busy_ps == 0).sum())
    assert unused and count(image, UNUSED) > 500 * unused
    with pytest.raises(RecordError, match="no step 9"):
        heatmap.save(run, tmp_path / "run.png", step=9)
    with pytest.raises(RecordError, match="cannot write"):
        heatmap.save(run, tmp_path / "nowhere" / "run.png")


@pytest.mark.parametrize(("rows", "cols"), [(5, 5), (1, 7), (9, 1), (60, 50)])
def test_arrows_lie_on_the_right_hand_side_and_never_overlap(rows: int, cols: int) -> None:
    mesh = flatten(System.grid(rows=rows, cols=cols, bandwidth="1 GB/s", latency=0))
    arrows = heatmap.arrows(mesh, np.arange(mesh.n_links), 0.2)
    centre = arrows.mean(axis=1)
    src = np.column_stack([mesh.col, mesh.row])[mesh.link_src]
    along = np.column_stack([mesh.col, mesh.row])[mesh.link_dst] - src
    right = np.column_stack([-along[:, 1], along[:, 0]])
    assert (((arrows - src[:, None]) * right[:, None]).sum(axis=-1) > 0).all()
    assert (np.abs(((centre - src) * along).sum(axis=-1) - 0.5) < 0.05).all()
    assert len(np.unique(np.round(centre, 6), axis=0)) == mesh.n_links


def test_labels_vanish_and_links_stay_on_large_meshes() -> None:
    def texts(rows: int, cols: int) -> int:
        mesh = flatten(System.grid(rows=rows, cols=cols, bandwidth="1 GB/s", latency=0))
        figure = heatmap._draw(mesh, np.linspace(0, 1, mesh.n_links), "title", "device")
        return len(figure.axes[0].texts)

    assert texts(5, 5) == 25 and texts(60, 50) == 0


def test_tiles_are_framed_and_numbered() -> None:
    mesh = flatten(System.preset("dojo-tray"))
    figure = heatmap._draw(mesh, np.full(mesh.n_links, 0.25), "title", "die")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels[:5] == ["0", "1", "2", "0", "1"]  # three columns and two rows of tiles
    assert labels.count("4,4") == 6 and "5,5" not in labels
    assert figure.axes[1].get_ylim() == (0.0, 50.0)


@pytest.mark.parametrize(
    ("highest", "top"), [(0.0, 0.01), (0.004, 0.005), (0.00011, 0.0002), (0.3, 0.5), (0.51, 1.0), (1.0, 1.0)]
)
def test_scale_ends_at_a_round_number(highest: float, top: float) -> None:
    assert heatmap.round_up(highest) == top

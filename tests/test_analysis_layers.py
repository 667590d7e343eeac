"""Layers of a model: by hand on a Program of three ops, and what the report says of them."""

import numpy as np

from meshemu.analysis import findings_text
from meshemu.analysis.layers import layer_of, layers
from meshemu.hardware import DeviceSpec
from meshemu.program.builder import ProgramBuilder

CHIP = DeviceSpec("chip", 1, {"fp32": 10**12}, {"fp32": 10**12}, 10**9, 10**12, 10**12, 0, 0)


def test_the_layer_of_a_label() -> None:
    names = [layer_of(label) for label in ("blocks.0.attention.query:addmm", "blocks.0:add", "head:mm", "loss", ":x")]
    assert names == ["blocks.0", "blocks.0", "head", "", ""]


def test_time_and_bounds_of_layers_by_hand() -> None:
    """Layer a.0: 4,000 ps of loads and 1,000 of arithmetic; layer b: arithmetic; an op of no module; a reduction."""
    builder = ProgramBuilder(1)
    for label, name, flops, read in (
        ("a.0.x:add", "add", 10, 4000), ("b:tanh", "tanh", 3000, 100), ("a.0:tanh_1", "tanh", 1000, 10),
        ("loss", "sum", 7, 7),
    ):  # fmt: skip
        builder.compute(
            0, label=label, op_class=name, number_format="fp32", flops=flops, read_bytes=read, write_bytes=1
        )
    builder.reduce(0, label="b:r", op_class="add", number_format="fp32", flops=100, read_bytes=800, write_bytes=400)
    found = layers(builder.build(), CHIP, np.array([4000, 3000, 1000, 7, 800]))
    assert [(one.name, one.ops, one.device_ps, one.op_class, one.bound) for one in found] == [
        ("a.0", 2, 5000, "add", "load"), ("b", 1, 3000, "tanh", "vector"), ("", 1, 7, "sum", found[2].bound),
    ]  # fmt: skip
    assert [one.share for one in found[:2]] == [0.8, 1.0]
    content = {"layers": [vars(one) for one in found], "system": {"n_alive": 2}}
    text = findings_text.layers(content)
    assert "(no module)" in text and "load (80 %)" in text and "2.5 ns" in text and "62.4 %" in text
    assert findings_text.layers(content | {"layers": content["layers"][:1]}) == ""
    many = [content["layers"][0] | {"name": str(i), "device_ps": i} for i in range(30)]
    assert findings_text.layers(content | {"layers": many}).endswith("6 others take less")

"""The [formats] table of a configuration, and a run with it: written back, remarked upon, timed."""

from pathlib import Path

import pytest

import meshemu
from meshemu.config import load, parse, to_toml
from meshemu.errors import InputError
from meshemu.hardware.format_roles import Formats, formats_of

CONFIG = Path(__file__).parent.parent / "configs" / "first_light.toml"
TABLE = """
weights = "bf16"
activations = { format = "cfloat8_1_4_3", rounding = "stochastic", bias = 9 }
gradients = { format = "cfloat8_1_5_2", bias = "sliding" }
optimizer = "cfloat16_shp"
second_moments = "fp32"
"""


def test_a_table_is_read_and_written_back() -> None:
    config = parse(f"{CONFIG.read_text()}\n[formats]\n{TABLE}", origin="t", directory=CONFIG.parent)
    formats = config.formats
    assert formats.weights is not None and formats.weights.number_format.name == "bf16"
    assert formats.activations is not None and (formats.activations.stochastic, formats.activations.bias) == (True, 9)
    assert formats.gradients is not None and formats.gradients.sliding
    assert formats.second_moments is None and formats.communication is None
    assert parse(to_toml(config), origin="t", directory=CONFIG.parent) == config
    plain = load(CONFIG)
    assert plain.formats == Formats() and not plain.formats
    assert parse(to_toml(plain), origin="t", directory=CONFIG.parent) == plain


def test_second_moments_follow_the_optimizer_unless_told() -> None:
    both = formats_of({"optimizer": "bf16"})
    assert both.second_moments == both.optimizer
    apart = formats_of({"optimizer": "cfloat16_shp", "second_moments": "cfloat16_uhp"})
    assert apart.second_moments != apart.optimizer
    for formats in (both, apart, formats_of({"optimizer": "bf16", "second_moments": "fp32"})):
        assert formats_of(formats.as_table()) == formats


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("formats.weights=fp8", "formats.weights = 'fp8' is no number format; there are fp32, bf16, fp16"),
        ("formats.weigths=bf16", "formats.weigths: unknown role; valid are weights, activations"),
        ("formats=bf16", "formats = 'bf16': should be a table"),
        ('formats.weights={format="cfloat8_1_5_2",bias=64}', "formats.weights.bias = 64: of cfloat8_1_5_2, a bias is"),
        ("formats.activations=cfloat16_uhp", "formats.activations = 'cfloat16_uhp': it has no sign"),
    ],
)
def test_faults_are_one_line_that_names_the_key(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(CONFIG, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_has_the_formats_of_its_table(tmp_path: Path) -> None:
    overrides = ["plan={spatial=[2,2]}", "data.batch_size=4", "formats.activations=cfloat8_1_5_2"]
    result = meshemu.run(load(CONFIG, overrides), output=tmp_path / "run.h5", execute=False)
    assert {"cfloat8_1_5_2", "fp32"} <= set(result.program.number_formats)
    said = meshemu.open(tmp_path / "run.h5").assumptions
    assert any(text.startswith("formats: activations in cfloat8_1_5_2, rounded to nearest") for text in said)
    assert not any("lists no rate for cfloat8" in text for text in said)

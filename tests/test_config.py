"""The configuration: what it accepts, what it refuses and how it says so."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.config import Config, PlanShape, load, parse, to_toml
from meshemu.errors import InputError
from meshemu.hardware import Router

ROOT = Path(__file__).resolve().parent.parent
MINIMAL = """
plan = "spatial"
[model]
name = "regnet"
[data]
name = "digits"
batch_size = 50
[training]
steps = 3
optimizer = { name = "sgd", lr = 0.1 }
"""


def read(text: str = MINIMAL, *overrides: str) -> Config:
    return parse(text, overrides, origin="a.toml", directory=Path("/base"))


def fault(text: str = MINIMAL, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults():
    config = read()
    assert config.system.preset == "dojo-tile"
    assert config.system.overrides == {}
    assert (config.model.dtype, config.plan) == ("fp32", "spatial")
    assert (config.training.seed, config.training.loss, config.training.evaluate_every) == (0, "cross_entropy", 0)
    assert (config.timing.packet_bytes, config.timing.routing) == (4096, "xy")
    assert (config.timing.collective, config.timing.bucket_bytes) == ("auto", 25_000_000)
    assert (config.output.path, config.output.overwrite) == (None, False)


def test_units_are_parsed_to_base_units():
    grid = 'grid = { rows = 4, cols = 8, bandwidth = "50 GB/s", latency = "500 ns" }'
    config = read(MINIMAL + f'[system]\n{grid}\n[timing]\npacket_bytes = "1 KiB"\nbucket_bytes = 1000\n')
    assert config.system.preset is None
    assert config.system.grid is not None
    assert (config.system.grid.bandwidth, config.system.grid.latency) == (50 * 10**9, 500_000)
    assert (config.timing.packet_bytes, config.timing.bucket_bytes) == (1024, 1000)


def test_other_keys_of_the_system_are_overrides_of_figures():
    config = read(MINIMAL + '[system]\ntile_edge.bandwidth = "9 TB/s"\nop_launch = "1 us"\ntiles = [3, 40]\n')
    assert config.system.overrides == {"tile_edge.bandwidth": "9 TB/s", "op_launch": "1 us", "tiles": [3, 40]}


def test_set_takes_toml_or_text():
    config = read(
        MINIMAL,
        "plan={data=25}",
        "training.steps = 7",
        "system.tile_edge.bandwidth=9 TB/s",
        "system.dead=[[0, 1]]",
        'data.args={image_size=40, mode="near=est"}',
        "timing.routing=yx",
        "training.optimizer.momentum=0.9",
    )
    assert config.plan == PlanShape(data=25)
    assert config.training.steps == 7
    assert config.system.overrides == {"tile_edge.bandwidth": "9 TB/s", "dead": [[0, 1]]}
    assert config.data.args == {"image_size": 40, "mode": "near=est"}
    assert config.timing.routing == "yx"
    assert config.training.optimizer.options == {"lr": 0.1, "momentum": 0.9}


def test_a_later_set_wins_and_a_new_line_cannot_be_smuggled_in():
    assert read(MINIMAL, "training.steps=4", "training.steps=5").training.steps == 5
    assert read(MINIMAL, "model.name=a\nb = 1").model.name == "a\nb = 1"


def test_users_files_are_found_beside_the_configuration(tmp_path):
    text = MINIMAL.replace('name = "regnet"', 'build = "sub/m.py:make"\nload = "sub/state.pt"')
    (tmp_path / "c.toml").write_text(text)
    config = load(tmp_path / "c.toml", ["training.loss=loss.py:mine"])
    assert config.model.build == f"{tmp_path}/sub/m.py:make"
    assert config.model.load == f"{tmp_path}/sub/state.pt"
    assert config.training.loss == f"{tmp_path}/loss.py:mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stps=1", "training.stps: unknown key, did you mean 'steps'?"),
        ("modle.name=a", "modle: unknown key, did you mean 'model'?"),
        ("timing.zzz=1", "timing.zzz: unknown key, valid are packet_bytes, routing, collective"),
        ("system.prest=dojo-tile", "system.prest: unknown key, did you mean 'preset'?"),
        ("system.grid={rows=2,cols=2,bandwith=1}", "system.grid.bandwith: unknown key, did you mean 'bandwidth'?"),
        ("training.optimizer.name=lamb", "training.optimizer.name = 'lamb' is not one of sgd, adam, adamw"),
        ("training.optimizer={lr=1}", "training.optimizer.name is missing"),
        ("training.optimizer.lr=nan", "training.optimizer.lr = nan: should be"),
        ("training.optimizer.lr=inf", "training.optimizer.lr = inf: should be"),
        ("training.optimizer.betas=[0.9, nan]", "training.optimizer.betas = [0.9, nan]: should be"),
        ("training.optimizer.groups=[{lr=1}]", "training.optimizer.groups[0].match is missing"),
        ("training.optimizer.groups=[{match=''}]", "training.optimizer.groups[0].match = '': String should have"),
        ("training.optimizer.groups=[{match='a', lr={b=1}}]", "training.optimizer.groups[0].lr = {'b': 1}: should be"),
        ("training.optimizer.groups={match='a'}", "training.optimizer.groups = {'match': 'a'}: should be"),
        ("training.schedule=cosine", "training.schedule = 'cosine': should be a table"),
        ("training.schedule.warmup_steps=3", "training.schedule.name is missing"),
        ("training.schedule={name='sine'}", "training.schedule.name = 'sine' is not one of constant, linear, cosine"),
        ("training.schedule={name='step',warmup_steps=-1}", "training.schedule.warmup_steps = -1: should be"),
        ("training.clip_norm=0", "training.clip_norm = 0: should be greater than 0"),
        ("training.clip_norm=inf", "training.clip_norm = inf: should be"),
        ("model.autocast=fp8", "model.autocast = 'fp8': should be 'bf16'"),
        ("model={name='gpt',dtype='fp64',autocast='bf16'}", "model: autocast = 'bf16' needs dtype = 'fp32'"),
        ("model.load=3", "model.load = 3: should be a valid string"),
        ("training.steps=0", "training.steps = 0: should be greater than 0"),
        ("training.steps=2.5", "training.steps = 2.5: should be a valid integer"),
        ("training.steps=true", "training.steps = True: should be a valid integer"),
        ("training.steps='3'", "training.steps = '3': should be a valid integer"),
        ("training.seed=-1", "training.seed = -1: should be"),
        ("training.loss=hinge", "training.loss = 'hinge' is not one of cross_entropy, mse, model nor"),
        ("model.dtype=fp8", "model.dtype = 'fp8': should be 'fp32', 'fp64' or 'bf16'"),
        ("model.build=m.py:make", "model: give either 'name'"),
        ("data={batch_size=1}", "data: give either 'name'"),
        ("data.name=3", "data.name = 3: should be a valid string"),
        ("data.batch_size=-5", "data.batch_size = -5: should be greater than 0"),
        ("model={build='m.txt'}", "model.build = 'm.txt' is not of the form 'file.py:function'"),
        ("model=3", "model = 3: should be a table"),
        ("plan=diagonal", "plan = 'diagonal': should be 'spatial', 'data', 'shard', 'tensor', 'pipeline' or 'auto'"),
        ("plan={}", "plan: give at least one of"),
        ("plan={spatial=[5]}", "plan.spatial[1] is missing"),
        ("plan={spatial=[5,0]}", "plan.spatial[1] = 0: should be greater than 0"),
        ("plan={dta=5}", "plan.dta: unknown key, did you mean 'data'?"),
        ("timing.packet_bytes=9 apples", "timing.packet_bytes = '9 apples' is not a size (for example '1 MiB')"),
        ("timing.packet_bytes=50 GB/s", "timing.packet_bytes = '50 GB/s' is not a size"),
        ("timing.packet_bytes=0", "timing.packet_bytes = 0 must be more than zero"),
        ("timing.routing=zigzag", "timing.routing = 'zigzag': should be 'xy' or 'yx'"),
        ("system={preset='a',grid={rows=1,cols=1,bandwidth=1,latency=0}}", "system: give either 'preset' or 'grid'"),
        ("system.grid={rows=1,cols=1,bandwidth='1 s',latency=0}", "system.grid.bandwidth = '1 s' is not a bandwidth"),
        ("steps", "--set steps: give it as key=value"),
        ("=5", "--set =5: give it as key=value"),
        ("a..b=5", "--set a..b=5: give it as key=value"),
        ("plan.data=5", "--set plan.data=5: plan is 'spatial', not a table"),
    ],
)
def test_what_is_wrong_is_named(override, said):
    assert said in fault(MINIMAL, override)


def test_all_faults_are_told_at_once():
    message = fault(MINIMAL, "training.steps=0", "modle.x=1", "timing.packet_bytes=x", "plan=foo", "system.prset=a")
    assert message.startswith("a.toml: ")
    for key in ("training.steps", "modle", "timing.packet_bytes", "plan", "system.prset"):
        assert f"{key}" in message
    assert message.count("; ") == 4
    many = fault("\n".join(f"key{i} = 1" for i in range(20)))
    assert many.endswith("and 16 more")  # 20 unknown keys and 4 missing, 8 told


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"no\.toml: cannot be read: No such file or directory$"):
        load(tmp_path / "no.toml")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
        load(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"b\.toml: is not a text file in UTF-8$"):
        load(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("plan = \n")
    with pytest.raises(InputError, match=r"c\.toml: is not valid TOML: .*line 1"):
        load(tmp_path / "c.toml")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        read().training.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_the_configurations_of_the_repository_are_valid(path):
    assert load(path).training.steps > 0


_KEYS = st.text("abcdefghij_", min_size=1, max_size=8).map(lambda key: f"x_{key}")
_VALUES = st.one_of(st.integers(-(2**40), 2**40), st.booleans(), st.text(max_size=10), st.lists(st.integers(0, 9)))
_PLANS = st.one_of(
    st.sampled_from(["spatial", "data"]),
    st.builds(PlanShape, data=st.integers(1, 9999)),
    st.builds(PlanShape, spatial=st.tuples(st.integers(1, 99), st.integers(1, 99))),
)
_OPTIMIZERS = st.sampled_from(
    [
        {"name": "sgd", "lr": 1e-3},
        {"name": "adam", "lr": 0.5, "betas": (0.8, 0.9), "amsgrad": True},
        {"name": "nadam", "groups": [{"match": "*.bias", "weight_decay": 0.0}, {"match": "a", "betas": [0, 0.5]}]},
    ]
)
_SCHEDULES = st.sampled_from(
    [None, {"name": "cosine", "eta_min": 1e-5, "warmup_steps": 3}, {"name": "multi_step", "milestones": [1, 2]}]
)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    plan=_PLANS,
    optimizer=_OPTIMIZERS,
    schedule=_SCHEDULES,
    args=st.dictionaries(_KEYS, _VALUES, max_size=3),
    overrides=st.dictionaries(st.lists(_KEYS, min_size=2, max_size=2).map(".".join), _VALUES, max_size=3),
    packet_bytes=st.integers(1, 2**40),
)
def test_the_resolved_configuration_reads_back_equal(plan, optimizer, schedule, args, overrides, packet_bytes):
    config = Config.model_validate(
        {
            "system": {"preset": "dojo-tray", "overrides": overrides},
            "model": {"build": "/base/m.py:make", "args": args},
            "data": {"name": "digits", "batch_size": 25},
            "plan": plan,
            "training": {"steps": 2, "optimizer": optimizer, "schedule": schedule},
            "timing": {"packet_bytes": packet_bytes},
        }
    )
    assert read(to_toml(config)) == config


def test_routers_are_off_unless_they_are_named():
    assert read().network.router is None
    assert read(MINIMAL + "[network]\nrouter = false\n").network.router is None
    assert read(MINIMAL + "[network]\nrouter = true\n").network.router == Router()
    assert read(MINIMAL + "[network.router]\n").network.router == Router()
    assert read(MINIMAL, "network.router.buffer_flits=3").network.router == Router(buffer_flits=3)
    assert read(MINIMAL + "[network.router]\nbuffer_flits = 3\n", "network.router=false").network.router is None


def test_a_router_has_units_and_survives_writing():
    table = """
[network.router]
flit_bytes = "32 B"
buffer_flits = 8
virtual_channels = 2
message_classes = 3
pipeline_cycles = 2
clock = "2 GHz"
credit_latency = "3 ns"
switching = "virtual_cut_through"
local_ports = "per_link"
"""
    config = read(MINIMAL + table)
    assert config.network.router == Router(
        flit_bytes=32, buffer_flits=8, virtual_channels=2, message_classes=3, pipeline_cycles=2, clock=2 * 10**9,
        credit_latency=3000, switching="virtual_cut_through", local_ports="per_link",
    )  # fmt: skip
    assert read(to_toml(config)) == config
    assert read(to_toml(read())) == read()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.router.virtual_channels=0", "router.virtual_channels = 0 is not a whole number of at least 1"),
        ("network.router.buffer_flits=true", "network.router.buffer_flits = True is not a whole number of at least 1"),
        ("network.router.flit_bytes=64 bits", "network.router.flit_bytes = '64 bits' is not a size (for example"),
        ("network.router.credit_latency=0", "network.router.credit_latency = 0 must be more than zero"),
        ("network.router.clock=2 THz", "network.router.clock = '2 THz': a cycle is shorter than the 1 ps"),
        ("network.router.switching=fast", "network.router.switching = 'fast' is not one of wormhole, virtual_cut"),
        ("network.router={virtual_channels=8, message_classes=5}", "= 8 x 5 = 40: a link has at most 32"),
        ("network.router.virtual_chanels=2", ".virtual_chanels: unknown key, did you mean 'virtual_channels'?"),
        ("network.router.xyz=2", "network.router.xyz: unknown key, valid are flit_bytes, buffer_flits, virtual"),
        ("network.router=4", "network.router = 4: should be a table, true or false"),
        ("network.rooter={}", "network.rooter: unknown key, did you mean 'router'?"),
        ("network=fast", "network = 'fast': should be a table"),
    ],
)
def test_faults_of_routers_name_the_key(override, said):
    assert said in fault(MINIMAL, override)
    assert "training.steps" in fault(MINIMAL, override, "training.steps=0"), "other faults are told as well"

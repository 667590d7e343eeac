"""Back-pressure mode: the compiled routers equal the plain Python model, on any mesh and with any router."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_engine import random_mesh, random_program, random_traffic

from meshemu.mesh import Mesh, routes
from meshemu.network import Router, simulate_messages, time_program
from meshemu.network.credit import state as fields
from meshemu.network.credit.fabric import routers_of
from meshemu.network.credit.reference import ReferenceChannel, ReferenceHop, RouterReference, RouterRules
from meshemu.network.reference import ReferenceOp
from meshemu.network.row_order import row_order
from meshemu.program.ir import OpKind

FEW = settings(max_examples=30, deadline=None, derandomize=True)

routers = st.builds(
    Router,
    flit_bytes=st.sampled_from([1, 16, 64]),
    buffer_flits=st.sampled_from([None, 1, 2, 5]),
    virtual_channels=st.integers(1, 4),
    message_classes=st.integers(1, 3),
    pipeline_cycles=st.integers(1, 5),
    clock=st.sampled_from([None, "2 GHz"]),
    credit_latency=st.sampled_from([None, 1, "3 ns"]),
    switching=st.sampled_from(["wormhole", "virtual_cut_through"]),
    local_ports=st.sampled_from(["one", "per_link"]),
)


def any_mesh(seed: int) -> Mesh:
    """A small grid of unequal links; for every third seed its devices inject and eject over links of the hardware."""
    mesh = random_mesh(seed)
    if seed % 3:
        return mesh
    n, n_links = mesh.n_devices, mesh.n_links
    devices = np.arange(n, dtype=np.int32)
    local = np.concatenate([devices, devices])
    return replace(
        mesh,
        link_src=np.concatenate([mesh.link_src, local]),
        link_dst=np.concatenate([mesh.link_dst, local]),
        link_class=np.concatenate([mesh.link_class, np.ones(2 * n, np.int8)]),
        class_names=(*mesh.class_names, "local"),
        bandwidth_bytes_per_s=np.concatenate([mesh.bandwidth_bytes_per_s, np.full(2 * n, 3 * 10**11)]),
        latency_ps=np.concatenate([mesh.latency_ps, np.full(2 * n, 2)]),
        injection_link=n_links + devices,
        ejection_link=n_links + n + devices,
    )


def packet_bytes_for(router: Router, flits: int) -> int:
    """Packets of up to so many flits, as many as a buffer holds where it has to hold a packet."""
    if router.switching == "virtual_cut_through" and router.buffer_flits is not None:
        flits = min(flits, router.buffer_flits)
    return flits * router.flit_bytes


def reference(mesh, paths, size, message_class, ready, ops, router, packet_bytes) -> RouterReference:
    """The plain model of the same channels; what moves in them is its own."""
    built = routers_of(mesh, paths, size, message_class, router, packet_bytes, "xy")
    injecting = set(built.inject_channel.tolist())
    channels = [
        ReferenceChannel(
            num=int(row[fields.NUM]), den=int(row[fields.DEN]), onward_ps=int(row[fields.ONWARD]),
            credit_ps=int(row[fields.CREDIT]), slots=int(row[fields.BUFFER]), near=int(row[fields.FEEDER]),
            far=None if row[fields.SINK] < 0 else int(row[fields.SINK]), injects=number in injecting,
            is_link=number < mesh.n_links,
        )
        for number, row in enumerate(built.channel)
    ]  # fmt: skip
    bits, mask = fields.HOP_BITS, fields.HOP_MASK
    hops = []
    for start in built.message[:, fields.START].tolist():
        stop = start
        while channels[int(built.hop[stop]) >> 2 * bits].far is not None:
            stop += 1
        hops.append(
            [ReferenceHop(h >> 2 * bits, h >> bits & mask, h & mask) for h in built.hop[start : stop + 1].tolist()]
        )
    rules = RouterRules(
        built.cycle, built.restart, built.packet_flits, built.n_classes, built.n_vcs, bool(built.cut_through)
    )
    flits = built.message[:, fields.FLITS_IN_ALL].tolist()
    model = RouterReference(rules, channels, flits, hops, message_class.tolist(), ready, ops)
    model.run()
    return model


def check_against(model: RouterReference, found, mesh, n: int) -> None:
    np.testing.assert_array_equal(found.depart_ps, [model.depart[i] for i in range(n)])
    np.testing.assert_array_equal(found.arrival_ps, [model.arrival[i] for i in range(n)])
    links = model.channels[: mesh.n_links]
    np.testing.assert_array_equal(found.links.busy_ps, [sum(e - s for s, e in link.busy) for link in links])
    np.testing.assert_array_equal(found.links.wait_ps, [link.wait_ps for link in links])
    np.testing.assert_array_equal(found.links.packets, [link.packets for link in links])
    np.testing.assert_array_equal(found.links.max_queue, [link.max_queue for link in links])
    assert found.counters.packet_hops == sum(link.flits for link in links)
    for b, row in enumerate(found.timeline.link_busy_ps):
        low, high = b * found.timeline.bin_ps, (b + 1) * found.timeline.bin_ps
        inside = [sum(max(0, min(e, high) - max(s, low)) for s, e in link.busy) for link in links]
        np.testing.assert_array_equal(row, inside)


@FEW
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), packet_flits=st.integers(1, 7), router=routers)
def test_messages_equal_reference(seed, n, packet_flits, router):
    mesh = any_mesh(seed)
    rng = np.random.default_rng(seed)
    src, _, size, ready = random_traffic(mesh, seed, n)
    dst = rng.integers(0, mesh.n_devices, n)  # its own device, too
    size = np.minimum(size, 15 * router.flit_bytes)
    row = row_order(mesh.n_devices, src, dst, size, ready)  # the order that the engine breaks ties in
    src, dst, size, ready = src[row], dst[row], size[row], ready[row]
    message_class = rng.integers(0, router.message_classes, n)
    packet_bytes = packet_bytes_for(router, packet_flits)
    found = simulate_messages(
        mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=6, router=router,
        message_class=message_class,
    )  # fmt: skip
    paths = routes(mesh, src, dst, to_self=True)
    model = reference(mesh, paths, size, message_class, ready.tolist(), [], router, packet_bytes)
    check_against(model, found, mesh, n)
    hops = np.diff(paths.route_ptr)[paths.index]
    assert found.links.bytes.sum() == (size * hops).sum()
    assert (found.links.busy_ps <= found.end_ps).all()
    assert all(buffer.credits == model.channels[c].slots for (c, _), buffer in model.buffers.items()), "all came back"


@FEW
@given(seed=st.integers(0, 10**6), packet_flits=st.integers(1, 7), router=routers)
def test_programs_equal_reference(seed, packet_flits, router):
    mesh = any_mesh(seed)
    router = replace(router, flit_bytes=max(64, router.flit_bytes))
    program, duration = random_program(mesh.n_devices, seed, 8)
    message_class = np.arange(program.n_messages) % router.message_classes
    packet_bytes = packet_bytes_for(router, packet_flits)
    found = time_program(
        program, mesh, duration, packet_bytes=packet_bytes, timeline_bins=3, router=router, message_class=message_class
    )
    ops = [
        ReferenceOp(
            OpKind(program.kind[i]), int(program.device[i]), int(duration[i]),
            program.dep[program.dep_ptr[i] : program.dep_ptr[i + 1]].tolist(), int(program.message[i]),
            int(program.kind[i] != OpKind.REDUCE),
        )
        for i in range(program.n_ops)
    ]  # fmt: skip
    paths = routes(mesh, program.src, program.dst)
    ready = [None] * program.n_messages
    model = reference(mesh, paths, program.size_bytes, message_class, ready, ops, router, packet_bytes)
    np.testing.assert_array_equal(found.ops.end_ps, [model.op_end[i] for i in range(program.n_ops)])
    np.testing.assert_array_equal(found.ops.start_ps, [model.op_start[i] for i in range(program.n_ops)])
    check_against(model, found, mesh, program.n_messages)

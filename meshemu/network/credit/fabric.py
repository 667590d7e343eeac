"""From a mesh, its routes and a Router to the arrays that the kernels of back-pressure mode work on."""

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.hardware import Router
from meshemu.mesh import Mesh, Order, Routes, deadlock_free_levels
from meshemu.network.credit import state as fields
from meshemu.network.credit.channels import Channels, channels_of, whole_routes
from meshemu.network.credit.state import Routers
from meshemu.network.credit.wake import tree
from meshemu.network.events import Ints

__all__ = ["routers_of"]

MOST_SLOTS = 10**8


def routers_of(
    mesh: Mesh, paths: Routes, size_bytes: Ints, message_class: Ints, router: Router, packet_bytes: int, order: Order
) -> Routers:
    """Empty routers at time 0, for messages of these sizes and classes along `paths`.

    Raises InputError where routes could deadlock or need more virtual channels than there are, where a packet does not
    fit, and where buffers are too large to simulate.
    """
    channels = channels_of(mesh, router)
    first, route, levels = whole_routes(paths, deadlock_free_levels(mesh, paths, order), channels)
    flits = -(-size_bytes // router.flit_bytes)
    packet_flits = min(router.packet_flits(packet_bytes), int(flits.max(initial=1)))
    route_flits = np.bincount(paths.index, flits, paths.n_routes)
    n_hops = np.diff(np.append(first, len(route)))
    crossing = np.bincount(route, np.repeat(route_flits, n_hops), len(channels.num)).astype(np.int64)
    n_vcs = router.virtual_channels * router.message_classes
    channel = _channel_rows(channels, crossing, router, packet_flits)
    vc = _aligned_rows(len(channel) * n_vcs, fields.VC_FIELDS)
    vc[:, fields.OUT_VC] = -1
    size = np.repeat(channel[:, fields.BUFFER], n_vcs)
    vc[:, fields.FIRST_SLOT] = np.cumsum(size) - size
    in_ptr, in_channel = _by_device(np.flatnonzero(~channels.ejects), channels.far, mesh.n_devices)
    channel[in_channel, fields.IN_PORT] = np.arange(len(in_channel)) - in_ptr[channels.far[in_channel]]
    inject_ptr, inject_channel = _by_device(np.flatnonzero(channels.injects), channels.near, mesh.n_devices)
    out_channel = _out_channels(channel, np.flatnonzero(~channels.injects), channels.near, mesh.n_devices)
    n_in, n_out = int(np.diff(in_ptr).max(initial=1)), out_channel.shape[1]
    source = np.zeros((len(inject_channel) * router.message_classes, fields.SOURCE_FIELDS), np.int64)
    source[:, [fields.FRONT, fields.VC]] = -1
    port_of = np.zeros(len(channel), np.int64)
    port_of[inject_channel] = np.arange(len(inject_channel))
    start = first[paths.index]
    message = _aligned_rows(len(flits), fields.MESSAGE_FIELDS)
    message[:, fields.MISSING] = message[:, fields.FLITS_IN_ALL] = flits
    message[:, fields.START] = start
    message[:, fields.SOURCE] = port_of[route[start]] * router.message_classes + message_class
    message[:, fields.SENDER] = paths.src[paths.index]
    message[:, [fields.FOLLOWING, fields.HANDED]] = -1
    return Routers(
        channel=channel,
        vc=vc,
        slot=_aligned_rows(int(size.sum()), fields.SLOT_FIELDS),
        front=_aligned_rows(mesh.n_devices * n_in * n_vcs, fields.FRONT_FIELDS).reshape(
            mesh.n_devices, n_in * n_vcs, fields.FRONT_FIELDS
        ),
        n_front=np.zeros(mesh.n_devices, np.int64),
        class_vc=np.arange(n_vcs) // router.virtual_channels * router.virtual_channels,
        source=source,
        message=message,
        hop=_hops(route, levels, router),
        in_ptr=in_ptr,
        in_channel=in_channel,
        inject_ptr=inject_ptr,
        inject_channel=inject_channel,
        out_channel=out_channel,
        wake=tree(mesh.n_devices),
        wanted=np.zeros(n_out, np.int64),
        granted=np.zeros(n_in, np.int64),
        choice=np.zeros((n_in, n_out, 2), np.int64),
        first_extra=mesh.n_links,
        cycle=channels.cycle_ps,
        restart=max(0, router.pipeline_cycles - 2) * channels.cycle_ps,
        n_vcs=n_vcs,
        n_classes=router.message_classes,
        per_class=router.virtual_channels,
        packet_flits=packet_flits,
        cut_through=int(router.switching == "virtual_cut_through"),
    )


def _aligned_rows(n: int, n_columns: int) -> Ints:
    """int64[n, n_columns] of zeros that begins with a cache line, as no row need then lie across two."""
    line = 64 // 8
    entries = np.zeros(n * n_columns + line, np.int64)
    first = -(entries.ctypes.data // 8) % line
    return entries[first : first + n * n_columns].reshape(n, n_columns)


def _channel_rows(channels: Channels, crossing: Ints, router: Router, packet_flits: int) -> Ints:
    """Routers.channel of idle channels, which `crossing` flits each will cross in all."""
    cycle, stated = channels.cycle_ps, router.credit_latency
    row = _aligned_rows(len(channels.num), fields.CHANNEL_FIELDS)
    onward = channels.latency_ps + np.where(channels.ejects, cycle, (router.pipeline_cycles - 1) * cycle)
    credit = channels.latency_ps + cycle if stated is None else np.full(len(row), stated, np.int64)
    buffer = _buffer_flits(channels, onward + credit, crossing, router, packet_flits)
    slots = buffer * router.virtual_channels * router.message_classes
    if slots.sum() > MOST_SLOTS:
        raise InputError(
            f"the buffers hold {slots.sum():,} flits (the largest {buffer.max():,} for a virtual channel), at most "
            f"{MOST_SLOTS:,} can be simulated: set larger flit_bytes, smaller buffer_flits or fewer virtual_channels"
        )
    row[:, fields.NUM], row[:, fields.DEN] = channels.num, channels.den
    row[:, fields.ONWARD], row[:, fields.CREDIT], row[:, fields.BUFFER] = onward, credit, buffer
    row[:, fields.FEEDER] = channels.near
    row[:, fields.SINK] = np.where(channels.ejects, -1, channels.far)
    return row


def _buffer_flits(channels: Channels, loop_ps: Ints, crossing: Ints, router: Router, packet_flits: int) -> Ints:
    """Slots of a virtual channel of each channel.

    By default what fills the channel while a credit goes round: a slot is filled, emptied and known to be free again
    a flit's time and loop_ps later. A packet that waits for room for all of it needs that much more. More slots than
    flits that ever cross make no difference, and are left out.
    """
    if router.buffer_flits is None:
        round_trip = -(-(loop_ps * channels.den + channels.num) // channels.num)
        wanted = round_trip + (packet_flits - 1 if router.switching == "virtual_cut_through" else 0)
    else:
        wanted = np.full(len(loop_ps), router.buffer_flits, np.int64)
    return np.where(channels.ejects, 0, np.minimum(wanted, crossing))


def _hops(route: Ints, levels: NDArray[np.int16], router: Router) -> Ints:
    """Routers.hop. Each level above the first has one virtual channel of a class, the first the others, since few
    packets go up.
    """
    above, n = int(levels.max(initial=0)), router.virtual_channels
    if above >= n:
        raise InputError(
            f"routes turn back into the first dimension, around dead devices or links, or go around the mesh up to "
            f"{above} times: without deadlock that takes virtual_channels = {above + 1} per message class, the router "
            f"has {n}"
        )
    low = np.where(levels == 0, 0, n - 1 - above + levels)
    high = np.where(levels == 0, n - above, low + 1)
    return np.asarray(route << 2 * fields.HOP_BITS | low << fields.HOP_BITS | high, np.int64)


def _by_device(channels: Ints, device: Ints, n_devices: int) -> tuple[Ints, Ints]:
    """(ptr, channels): the channels grouped by device, CSR."""
    order = np.argsort(device[channels], kind="stable")
    counts = np.bincount(device[channels], minlength=n_devices)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), channels[order]


def _out_channels(channel: Ints, outputs: Ints, device: Ints, n_devices: int) -> Ints:
    """Outputs of every device, int64[n_devices, most], -1 for none; writes their numbers into the channels."""
    ptr, grouped = _by_device(outputs, device, n_devices)
    number = np.arange(len(grouped)) - ptr[device[grouped]]
    table = np.full((n_devices, int(np.diff(ptr).max(initial=1))), -1, np.int64)
    table[device[grouped], number] = grouped
    channel[grouped, fields.OUT_PORT] = number
    return table

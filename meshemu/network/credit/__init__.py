"""Back-pressure mode: routers with finite input buffers, virtual channels and credits, in place of unbounded FIFOs.

The model, all times integer picoseconds:

* A message travels as flits, in packets of at most `packet_bytes`. A flit of F bytes on a link of num / den ps per byte
  takes F num / den ps, never less than a cycle; a router moves whole flits.
* A flit that a device injects takes one flit time on the injection channel. A router has it on a free link
  `pipeline_cycles` after its arrival, the first cycle on the link included; so it is at the next router after
  pipeline_cycles cycles, what the link takes longer than a cycle, and the latency of the link. At its destination it
  takes the pipeline and one flit time on the ejection channel. Ejection never blocks, so waiting for messages of others
  cannot deadlock the network.
* Each link has virtual channels, an equal number for each message class, with a buffer each at its far end. A packet
  takes a virtual channel that no packet holds and that has a credit, that is room for a flit (wormhole) or for the
  whole packet (virtual cut-through), and holds it until its last flit is sent. A flit needs a credit, too. A credit is
  back one credit latency after the flit has left the buffer.
* A packet behind another in a virtual channel goes through the pipeline up to the switch, all but its first and last
  stage, when it comes to the front.
* Allocation is round robin, one iteration of iSLIP per cycle (see `allocation`): inputs ask for outputs, outputs grant,
  inputs accept. An input sends one flit per cycle, and asks once per cycle. Channels that a head flit asks for are
  allocated with the switch.
* The source queue of a device is unbounded; message classes take turns flit by flit, messages of a class follow in the
  order in which they were handed over.
"""

from meshemu.network.credit.engine import BackPressure, back_pressure, run_routers

__all__ = ["BackPressure", "back_pressure", "run_routers"]

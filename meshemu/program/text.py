"""The text form of a Program: a header, a line per collective, a line per op.

    meshemu program 1
    devices 2
    labels ["forward", "gradients"]
    op_classes ["matmul", "", "reduce_sum"]
    number_formats ["fp32", ""]
    collective 0 all_reduce ring grid 1 2 chunks 2 bytes 64 devices 0,1 label "gradients"
    0 device 0 compute class matmul format fp32 flops 100 read 8 write 8 label "forward"
    1 device 0 send message 0 to 1 bytes 32 collective 0 chunks 0:1 label "gradients" after 0
    2 device 1 recv message 0 from 0 bytes 32 collective 0 chunks 0:1 label "gradients"

An op at an interface processor names it, `4 device 0 interface class host_to_memory write 4096 at 2 label "x"`.
An op with a known shape names its row of the table `shapes [[[4096]], ...]`, and one that alone reads a block names
the op that made it and its bytes, `producer 0:8` (docs/cost-model.md).

The SEND of a multicast and the RECV of a reduction in the network name all their messages and devices:

    0 device 0 send message 0,1 to 1,2 bytes 32 label "parameters"

Fields with their default value (0, or none) are left out; a name of other than word characters is a JSON string. The
three tables give names their numbers; they may be left out, and names are then numbered as they come. An empty line
and a line that starts with # are ignored.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from meshemu.errors import InputError, ScheduleError
from meshemu.program.arrays import from_arrays
from meshemu.program.ir import CollectiveUse, OpKind, Program

__all__ = ["from_text", "to_text"]

_FIRST_LINE = "meshemu program 1"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_BARE = re.compile(r"[A-Za-z_][\w.+-]*")
_KINDS = {kind.name.lower(): kind for kind in OpKind}
_TABLES = {"labels": "label", "op_classes": "op_class", "number_formats": "number_format"}
_SHAPES = "shapes"
_COUNTS = {"flops": "flops", "read": "read_bytes", "write": "write_bytes"}
_OP_COLUMNS = (
    "kind", "device", "label", "op_class", "number_format", *_COUNTS.values(), "message", "collective",
    "chunk_lo", "chunk_hi", "shape", "producer", "producer_bytes", "interface",
)
_OP_FIELDS = (
    "class", "format", *_COUNTS, "at", "shape", "producer", "message", "to", "from", "bytes", "collective", "chunks",
    "label", "after",
)


def to_text(program: Program) -> str:
    """Return the Program as text. Raises ScheduleError if SEND and RECV ops do not match the messages."""
    _check_message_ops(program)
    lines = [_FIRST_LINE, f"devices {program.n_devices}"]
    lines += [f"{table} {json.dumps(list(getattr(program, table)))}" for table in _TABLES]
    if program.shapes:
        lines.append(f"{_SHAPES} {json.dumps(program.shapes)}")
    lines += [_collective_line(index, use) for index, use in enumerate(program.collectives)]
    lines += _op_lines(program)
    return "\n".join(lines) + "\n"


def from_text(text: str) -> Program:
    """Return the Program that `to_text` wrote, or a hand-written one. Raises InputError naming the line."""
    reader = _Reader()
    lines = text.splitlines()
    number = 0
    try:
        while number < len(lines):
            number += 1
            if lines[number - 1].strip() and not lines[number - 1].lstrip().startswith("#"):
                reader.line(lines[number - 1])
        return reader.program()
    except IndexError:
        raise InputError(f"line {number} of the program text ends too early") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"missing or malformed field {error}"
        raise InputError(f"line {number} of the program text: {reason}") from None


def _check_message_ops(p: Program) -> None:
    number = np.arange(p.n_messages)
    for kind, op, end in ((OpKind.SEND, p.send_op, p.src), (OpKind.RECV, p.recv_op, p.dst)):
        named, first = np.unique(op, return_index=True)
        matched = np.array_equal(p.message[named], number[first]) and np.array_equal(p.device[op], end)
        if not matched or np.count_nonzero(p.kind == kind) != len(named) or (p.kind[op] != kind).any():
            raise ScheduleError(f"the {kind.name} ops of a Program do not match its {p.n_messages} messages")


def _name(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _collective_line(index: int, use: CollectiveUse) -> str:
    root = f" root {use.root}" if use.root != -1 else ""
    return (
        f"collective {index} {_name(use.kind)} {_name(use.algorithm)} grid {use.grid[0]} {use.grid[1]} chunks "
        f"{use.n_chunks} bytes {use.size_bytes}{root} devices {','.join(map(str, use.devices))} "
        f"label {json.dumps(use.label)}"
    )


def _op_lines(p: Program) -> Iterator[str]:
    columns = {name: getattr(p, name).tolist() for name in (
        *_OP_COLUMNS, "src", "dst", "size_bytes", "dep_ptr", "dep",
    )}
    messages_of: defaultdict[int, list[int]] = defaultdict(list)
    for ops in (p.send_op.tolist(), p.recv_op.tolist()):
        for number, op in enumerate(ops):
            messages_of[op].append(number)
    classes, formats = [_name(n) for n in p.op_classes], [_name(n) for n in p.number_formats]
    labels, kinds = [json.dumps(n) for n in p.labels], [kind.name.lower() for kind in OpKind]
    for op in range(p.n_ops):
        kind, message = columns["kind"][op], columns["message"][op]
        words = [f"{op} device {columns['device'][op]} {kinds[kind]}"]
        if p.op_classes[columns["op_class"][op]]:
            words.append(f"class {classes[columns['op_class'][op]]}")
        if p.number_formats[columns["number_format"][op]]:
            words.append(f"format {formats[columns['number_format'][op]]}")
        words += [f"{word} {columns[name][op]}" for word, name in _COUNTS.items() if columns[name][op]]
        if columns["interface"][op] != -1:
            words.append(f"at {columns['interface'][op]}")
        if columns["shape"][op] != -1:
            words.append(f"shape {columns['shape'][op]}")
        if columns["producer"][op] != -1:
            words.append(f"producer {columns['producer'][op]}:{columns['producer_bytes'][op]}")
        if kind in (OpKind.SEND, OpKind.RECV):
            side, end = ("to", "dst") if kind == OpKind.SEND else ("from", "src")
            peers = ",".join(str(columns[end][number]) for number in messages_of[op])
            words.append(f"message {','.join(map(str, messages_of[op]))} {side} {peers}")
            words.append(f"bytes {columns['size_bytes'][message]}")
        elif message != -1:
            words.append(f"message {message}")
        if columns["collective"][op] != -1:
            words.append(f"collective {columns['collective'][op]}")
        if columns["chunk_lo"][op] or columns["chunk_hi"][op]:
            words.append(f"chunks {columns['chunk_lo'][op]}:{columns['chunk_hi'][op]}")
        words.append(f"label {labels[columns['label'][op]]}")
        after = columns["dep"][columns["dep_ptr"][op] : columns["dep_ptr"][op + 1]]
        if after:
            words.append("after " + ",".join(map(str, after)))
        yield " ".join(words)


class _Reader:
    """Collects the lines of a program text; every method raises ValueError or KeyError for what it cannot read."""

    def __init__(self) -> None:
        self._started = False
        self._n_devices: int | None = None
        self._names: dict[str, dict[str, int]] = {table: {} for table in _TABLES}
        self._collectives: list[dict[str, Any]] = []
        self._ops: dict[str, list[int]] = {name: [] for name in _OP_COLUMNS}
        self._shapes: list[Any] = []
        self._dep: list[int] = []
        self._dep_ptr = [0]
        self._sent: dict[int, tuple[int, int, int, int]] = {}
        self._received: dict[int, tuple[int, int, int, int]] = {}

    def line(self, line: str) -> None:
        words = [token.group() for token in _TOKEN.finditer(line)]
        if not self._started:
            if line.strip() != _FIRST_LINE:
                raise ValueError(f"expected {_FIRST_LINE!r}, found {line.strip()!r}")
            self._started = True
        elif words[0] == "devices":
            self._n_devices = int(words[1])
        elif words[0] in _TABLES:
            names = json.loads(line.strip()[len(words[0]) :])
            self._names[words[0]] = {name: index for index, name in enumerate(names)}
            if len(self._names[words[0]]) != len(names):
                raise ValueError(f"{words[0]} names one entry twice")
        elif words[0] == _SHAPES:
            self._shapes = json.loads(line.strip()[len(_SHAPES) :])
        elif words[0] == "collective":
            self._collective(words)
        elif words[0].isdecimal():
            self._op(words)
        else:
            raise ValueError(f"{words[0]!r} starts no line; expected an op id, devices, collective or a table")

    def program(self) -> Program:
        if self._n_devices is None:
            raise ValueError("the text has no line 'devices N'")
        if set(self._sent) != set(range(len(self._sent))) or set(self._sent) != set(self._received):
            lone = set(self._sent) ^ set(self._received)
            raise ValueError(
                f"message {min(lone)} has no send and recv op" if lone else "messages are not numbered 0, 1, 2 ..."
            )
        messages = [(*self._sent[number], self._received[number][3]) for number in range(len(self._sent))]
        for number, (src, dst, size, _, _) in enumerate(messages):
            if self._received[number][:3] != (src, dst, size):
                raise ValueError(f"message {number}: its send and recv op differ in devices or bytes")
        table = np.array(messages, np.int64).reshape(-1, 5)
        columns: dict[str, Any] = {**self._ops, "dep": self._dep, "dep_ptr": self._dep_ptr}
        columns |= dict(zip(("src", "dst", "size_bytes", "send_op", "recv_op"), table.T, strict=True))
        named: dict[str, Any] = {name: list(names) for name, names in self._names.items()}
        named[_SHAPES] = self._shapes
        return from_arrays(columns, {"n_devices": self._n_devices, "collectives": self._collectives, **named})

    def _collective(self, words: list[str]) -> None:
        if int(words[1]) != len(self._collectives):
            raise ValueError(f"collective {words[1]} where {len(self._collectives)} comes next")
        if words[4] != "grid":
            raise ValueError(f"expected 'grid', found {words[4]!r}")
        fields = _fields(words[7:], ("chunks", "bytes", "root", "devices", "label"))
        self._collectives.append(
            {
                "kind": _text(words[2]), "algorithm": _text(words[3]), "grid": [int(words[5]), int(words[6])],
                "n_chunks": int(fields["chunks"]), "size_bytes": int(fields["bytes"]),
                "root": int(fields.get("root", -1)), "devices": _numbers(fields["devices"]),
                "label": _text(fields["label"]),
            }
        )

    def _op(self, words: list[str]) -> None:
        op = len(self._ops["kind"])
        if int(words[0]) != op:
            raise ValueError(f"op {words[0]} where op {op} comes next")
        if words[1] != "device":
            raise ValueError(f"expected 'device', found {words[1]!r}")
        if words[3] not in _KINDS:
            raise ValueError(f"unknown kind {words[3]!r}; known: {', '.join(_KINDS)}")
        device, kind, fields = int(words[2]), _KINDS[words[3]], _fields(words[4:], _OP_FIELDS)
        lo, _, hi = fields.get("chunks", "0:0").partition(":")
        producer, _, producer_bytes = fields.get("producer", "-1:0").partition(":")
        numbers = _numbers(fields.get("message", "-1"))
        row = {
            "kind": int(kind), "device": device, "message": numbers[0],
            "collective": int(fields.get("collective", -1)), "chunk_lo": int(lo), "chunk_hi": int(hi),
            "shape": int(fields.get("shape", -1)), "producer": int(producer), "producer_bytes": int(producer_bytes),
            "interface": int(fields.get("at", -1)),
            **{name: int(fields.get(word, 0)) for word, name in _COUNTS.items()},
        }
        for (table, name), word in zip(_TABLES.items(), ("label", "class", "format"), strict=True):
            names = self._names[table]
            row[name] = names.setdefault(_text(fields.get(word, '""')), len(names))
        if kind in (OpKind.SEND, OpKind.RECV):
            sends = kind == OpKind.SEND
            half, peers = (self._sent, "to") if sends else (self._received, "from")
            for message, peer in zip(_numbers(fields["message"]), _numbers(fields[peers]), strict=True):
                if message in half:
                    raise ValueError(f"message {message} has a second {words[3]} op")
                half[message] = (device, peer, int(fields["bytes"]), op) if sends else (
                    peer, device, int(fields["bytes"]), op
                )
        elif len(numbers) > 1:
            raise ValueError(f"a {words[3]} op names one message, not {fields['message']}")
        for name, column in self._ops.items():
            column.append(row[name])
        self._dep += _numbers(fields["after"]) if "after" in fields else []
        self._dep_ptr.append(len(self._dep))


def _fields(words: list[str], known: tuple[str, ...]) -> dict[str, str]:
    fields = dict(zip(words[::2], words[1::2], strict=True)) if len(words) % 2 == 0 else {}
    unknown = [word for word in fields if word not in known]
    if len(fields) * 2 != len(words) or unknown:
        raise ValueError(f"expected pairs of a field and its value, with fields {', '.join(known)}; found {words}")
    return fields


def _text(word: str) -> str:
    return str(json.loads(word)) if word.startswith('"') else word


def _numbers(word: str) -> list[int]:
    return [int(part) for part in word.split(",")]

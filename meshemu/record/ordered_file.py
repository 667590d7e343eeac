"""A file for HDF5 to write, in an order in which a kill between any two writes leaves what was committed readable.

HDF5 writes what a flush changes in the order of addresses. Where the index of a dataset's chunks (a B-tree) is split, a
kill in the middle leaves an index that points to nodes which were never written, and all of the dataset is lost.
Here the writes of a flush are kept back and made in this order:

    1. what nothing on the disk refers to yet: new chunks, new nodes
    2. the head of the file, which says how long it is
    3. nodes that are replaced, those nearer to the root first: a node that was split is still whole on the disk when
       its parent already points to both halves
    4. everything else, which stays in its place: lengths of datasets, rows within chunks

Nothing moves within a file and rows only grow, so that steps 3 and 4 only ever add to what could be read before.
"""

import io
import os
from bisect import bisect_left, insort

__all__ = ["OrderedFile"]

_NODE = b"TREE"
_LEVEL_AT = 5
_LENGTH_AT = slice(40, 48)  # of the file, in a head of version 0, the one that h5py writes by default
_HEAD_BYTES = 48


class OrderedFile(io.RawIOBase):
    """What h5py takes for a file. size_bytes: its length for HDF5, without what is set aside beyond it.

    Until `order`, writes are made as they come. OSError of the system is raised by what makes the writes: `flush`.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._position = 0
        self._starts: list[int] = []
        self._pending: dict[int, bytes] = {}
        self._ordered = self._severed = False
        self._on_disk_bytes = self.size_bytes = _length(os.pread(descriptor, _HEAD_BYTES, 0))

    def order(self) -> None:
        """From now on, keep writes back and make them in order."""
        self._on_disk_bytes = self.size_bytes
        self._ordered = True

    def sever(self) -> None:
        """From now on, write nothing: the file stays as it is, as after a kill."""
        self._severed = True
        self._forget()

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place in the file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Where the next bytes are read or written."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what is there, with the writes that are kept back."""
        start, wanted = self._position, max(min(len(buffer), self.size_bytes - self._position), 0)
        found = bytearray(os.pread(self._descriptor, wanted, start).ljust(wanted, b"\0"))
        for at in self._overlapping(start, start + wanted):
            data = self._pending[at]
            lo, hi = max(at, start), min(at + len(data), start + wanted)
            found[lo - start : hi - start] = data[lo - at : hi - at]
        buffer[:wanted] = found
        self._position += wanted
        return wanted

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Write, or note what is to be written."""
        content = bytes(data)
        start = self._position
        self._position += len(content)
        self.size_bytes = max(self.size_bytes, self._position)
        if self._severed:
            return len(content)
        if not self._ordered:
            _write_all(self._descriptor, content, start)
            return len(content)
        overlapping = self._overlapping(start, start + len(content))
        if overlapping and overlapping != [start]:
            low = min(start, overlapping[0])
            last = overlapping[-1]
            joined = bytearray(max(start + len(content), last + len(self._pending[last])) - low)
            for at in overlapping:
                joined[at - low : at - low + len(self._pending[at])] = self._pending.pop(at)
                self._starts.remove(at)
            joined[start - low : start - low + len(content)] = content
            start, content = low, bytes(joined)
        elif overlapping and len(self._pending[start]) > len(content):
            content += self._pending[start][len(content) :]
        if start not in self._pending:
            insort(self._starts, start)
        self._pending[start] = content
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Note the length; what lies beyond it does no harm, and may be set aside."""
        self.size_bytes = self._position if size is None else size
        return self.size_bytes

    def flush(self) -> None:
        """Make the writes that were kept back."""
        if self._severed:
            return
        if os.fstat(self._descriptor).st_size < self.size_bytes:
            os.ftruncate(self._descriptor, self.size_bytes)
        for start in sorted(self._pending, key=self._turn):
            _write_all(self._descriptor, self._pending[start], start)
        self._forget()
        self._on_disk_bytes = self.size_bytes

    def _turn(self, start: int) -> tuple[int, int, int]:
        """When a write has its turn, by the numbers above."""
        data = self._pending[start]
        if start == 0:
            return 2, 0, start
        if start >= self._on_disk_bytes:
            return 1, 0, start
        before = os.pread(self._descriptor, len(data), start)
        is_node = data.startswith(_NODE)
        if not before.strip(b"\0") or (is_node and not before.startswith(_NODE)):
            return 1, 0, start
        return (3, -data[_LEVEL_AT], start) if is_node else (4, 0, start)

    def _overlapping(self, start: int, stop: int) -> list[int]:
        """Where writes begin that are kept back and reach into start <= byte < stop; they do not overlap each other."""
        first = bisect_left(self._starts, start)
        if first and self._starts[first - 1] + len(self._pending[self._starts[first - 1]]) > start:
            first -= 1
        return self._starts[first : bisect_left(self._starts, stop)]

    def _forget(self) -> None:
        self._starts, self._pending = [], {}


def _length(head: bytes) -> int:
    """How long the file says that it is; 0 for one without a head."""
    return int.from_bytes(head[_LENGTH_AT], "little") if len(head) == _HEAD_BYTES else 0


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written

"""
Writing segment files: create, append groups, go on in a new file. Blocking; `segmented_log` calls it in its thread.

Every `OSError` leaves the writer as it was, so that the same group can be tried again after ENOSPC.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.layout import (
    FILE_HEADER_BYTES,
    FRAME_BYTES,
    encode_file_header,
    encode_frame,
    segment_name,
)
from kvorum.storage.wal.segments import Segment
from kvorum.storage.wal.system import REAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvorum.storage.wal.system import SystemCalls

ZEROED_BYTES: Final = 256 * 1024
"""
Zeros written behind a group now and then.

Overwriting written blocks needs no file system journal commit, which fallocate's unwritten blocks do: measured on ext4
with three nodes on one disk, the mean of write + fdatasync falls from 360 to 260 us; larger steps hurt the tail.
"""
_ZEROS: Final = memoryview(bytes(ZEROED_BYTES))


@contextmanager
def _no_second_chance(path: Path) -> Iterator[None]:
    """Turn a failed fsync into the end of the process, whatever its errno."""
    try:
        yield
    except OSError as error:
        msg = (
            f"fsync of {path} failed: {error}; what was written may be lost although a second fsync would succeed, so "
            "this process ends: check the disk, then start the node again, it recovers from what is really there"
        )
        raise StorageFailedError(msg) from error


class SegmentWriter:
    """The active segment."""

    def __init__(self, directory: Path, segment_bytes: int, sequence: int, system: SystemCalls = REAL) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._system = system
        self._descriptor = -1
        self._allocated = 0
        self._zeroed = 0
        self._sequence = sequence
        self._position = 0
        self.segment: Segment | None = None

    def has_room(self, body_bytes: int) -> bool:
        """True if a group with this body fits into the active segment."""
        return self._position + FRAME_BYTES + body_bytes <= self._allocated

    @property
    def fresh(self) -> bool:
        """True if the active segment holds no durable group yet, so that the next one must carry the head."""
        return self._position == FILE_HEADER_BYTES

    def begin_segment(self, number: int, body_bytes: int) -> None:
        """
        Go on in a new, preallocated file that has room for a group of this size.

        Durable:
            The file's name, size and header, before any group is written into it.
        """
        path = self._directory / segment_name(number)
        size = max(self._segment_bytes, FILE_HEADER_BYTES + FRAME_BYTES + body_bytes)
        salt = self._system.draw_salt()
        descriptor = self._system.create(path)
        try:
            self._system.allocate(descriptor, 0, size)
            self._write_fully(descriptor, [encode_file_header(number, salt)], 0)
            with _no_second_chance(path):
                self._system.sync_file(descriptor)
                self._system.sync_directory(self._directory)
        except BaseException:
            self._system.close(descriptor)
            self._system.unlink(path)
            raise
        self.close()
        self._descriptor = descriptor
        self._allocated = size
        self._position = self._zeroed = FILE_HEADER_BYTES
        self.segment = Segment(path, number, salt, FILE_HEADER_BYTES)

    def write(self, parts: list[bytes], body_bytes: int) -> tuple[int, int]:
        """
        Write one group; not durable before `sync`.

        Returns:
            Offset of its frame and first byte behind it.
        """
        segment = self.segment
        assert segment is not None
        assert body_bytes > 0, "a zero length would end the log"
        assert self.has_room(body_bytes)
        frame = encode_frame(body_bytes, segment.salt, self._sequence, parts)
        offset, size = self._position, FRAME_BYTES + body_bytes
        end = offset + size
        buffers: list[bytes | memoryview] = [frame, *parts]
        zeroed = self._zeroed
        if end > zeroed:
            zeroed = min(self._allocated, end + ZEROED_BYTES)
            buffers.append(_ZEROS[: zeroed - end])
        self._write_fully(self._descriptor, buffers, offset)
        self._zeroed = zeroed
        return offset, end

    def _write_fully(self, descriptor: int, buffers: list[bytes | memoryview], offset: int) -> None:
        """Write all of it: the system may take less at once, of a file header as of a group."""
        size = sum(map(len, buffers))
        written = self._system.write(descriptor, buffers, offset)
        if written < size:
            data = b"".join(buffers)
            while written < len(data):
                more = self._system.write(descriptor, [memoryview(data)[written:]], offset + written)
                if not more:
                    raise OSError(errno.ENOSPC, "nothing was written")
                written += more

    def sync(self) -> None:
        """
        Make the group durable.

        Raises:
            StorageFailedError: The kernel may have thrown the pages away; a second fsync would lie.
        """
        assert self.segment is not None
        with _no_second_chance(self.segment.path):
            self._system.sync_data(self._descriptor)

    def advance(self, end: int) -> None:
        """The group is durable: the next one has the next sequence and stands behind it."""
        assert self.segment is not None
        self._position = self.segment.end = end
        self._sequence += 1

    def close(self) -> None:
        """Close the active segment."""
        if self._descriptor >= 0:
            self._system.close(self._descriptor)
            self._descriptor = -1

"""The bytes of a segment, as docs/formats/log.md gives them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from kvorum.core.entries import HardState
from kvorum.storage.wal.layout import (
    FILE_HEADER_BYTES,
    FRAME_BYTES,
    FileHeader,
    Flaw,
    Group,
    base_record,
    decode_file_header,
    decode_hard_state,
    encode_file_header,
    encode_frame,
    find_group,
    group_at,
    hard_state_record,
    is_zero_from,
    records_in,
    segment_name,
    segment_number,
)

SALT = 0xCAFEBABE


def group(sequence: int, body: bytes = b"body", salt: int = SALT) -> bytes:
    return encode_frame(len(body), salt, sequence, [body]) + body


def test_layout_file_header_is_these_bytes() -> None:
    """The file header is frozen byte by byte."""
    header = encode_file_header(7, SALT)

    assert header[:-4] == b"kvorumL\x01" + bytes(7) + b"\x07" + b"\xca\xfe\xba\xbe"
    assert header[-4:] == zlib.crc32(header[:-4]).to_bytes(4, "big")
    assert len(header) == FILE_HEADER_BYTES == 24
    assert decode_file_header(header) == FileHeader(1, 7, SALT)


def test_layout_frame_is_these_bytes() -> None:
    """The frame of a group is frozen byte by byte; its checksum covers the other fields, then the body."""
    frame = encode_frame(6, SALT, 5, [b"abc", b"def"])

    assert frame[:-4] == b"\x00\x00\x00\x06" + b"\xca\xfe\xba\xbe" + bytes(7) + b"\x05"
    assert frame[-4:] == zlib.crc32(frame[:-4] + b"abcdef").to_bytes(4, "big")
    assert len(frame) == FRAME_BYTES == 20


def test_layout_disk_records_are_these_bytes() -> None:
    """Hard state and base use the header of entries; a vote is four bytes, no vote is none."""
    zeros = bytes(8)
    term = bytes(7) + b"\x09"

    assert hard_state_record(HardState(9, 2)) == b"\x00\x00\x00\x1d\x10" + term + zeros + zeros + b"\x00\x00\x00\x02"
    assert hard_state_record(HardState(9, None)) == b"\x00\x00\x00\x19\x10" + term + zeros + zeros
    assert base_record(3, 9, 0) == b"\x00\x00\x00\x19\x11" + term + bytes(7) + b"\x03" + zeros
    assert base_record(3, 9, 258) == b"\x00\x00\x00\x19\x11" + term + bytes(7) + b"\x03" + bytes(6) + b"\x01\x02"


@pytest.mark.parametrize("state", [HardState(), HardState(1, 0), HardState(2**64 - 1, 2**32 - 1)])
def test_layout_hard_state_survives_its_record(state: HardState) -> None:
    """Any term and vote come back as they were; node 0 is not nobody."""
    data = hard_state_record(state)
    [record] = records_in(data, 0, len(data))

    assert decode_hard_state(data, record) == state


@pytest.mark.parametrize("size", [1, 5 * 1024, 5 * 1024 + 1, 64 * 1024, 64 * 1024 + 1, 300_000])
def test_layout_checksum_does_not_depend_on_its_steps(size: int) -> None:
    """Large bodies are summed in steps; the result is that of the whole."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    assert isinstance(group_at(group(1, body), 0, SALT), Group)


def test_layout_any_flipped_bit_is_noticed() -> None:
    """No single flipped bit of a file header or of a group goes unnoticed."""
    header, data = encode_file_header(1, SALT), group(1)
    for position in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[position // 8] ^= 1 << position % 8
        assert decode_file_header(bytes(flipped)) is None
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        assert not isinstance(group_at(bytes(flipped), 0, SALT), Group)


def test_layout_zero_length_is_the_end() -> None:
    """Preallocated zeros and the end of the file end the log; anything else cut short is a flaw."""
    assert group_at(bytes(100), 0, SALT) is None
    assert group_at(b"", 0, SALT) is None
    assert group_at(bytes(3), 0, SALT) is None
    assert isinstance(group_at(group(1)[:10], 0, SALT), Flaw)
    assert isinstance(group_at(group(1)[:-1], 0, SALT), Flaw)


def test_layout_group_of_another_file_is_a_flaw() -> None:
    """A frame with another file's salt is no group, even with a right checksum."""
    assert group_at(group(1, salt=1), 0, SALT) == Flaw(0, "frame does not belong to this file")


def test_layout_search_finds_good_groups_only() -> None:
    """The search behind damage takes no group of the past, no damaged one, and none that a client wrote as data."""
    forged = group(9, salt=SALT + 1)
    data = b"damage" + SALT.to_bytes(4, "big") + group(3) + forged + group(7)[:-1] + b"!" + group(8)

    found = find_group(data, 0, SALT, 4)

    assert found is not None
    assert found.sequence == 8
    assert find_group(data, 0, SALT, 9) is None


def test_layout_segment_names_sort_as_their_numbers() -> None:
    """Only names of the exact form are segments."""
    assert segment_name(12) == "0000000000000012.log"
    assert segment_number(Path("/x/0000000000000012.log")) == 12
    assert segment_number(Path("12.log")) is None
    assert segment_number(Path("0000000000000012.log.bak")) is None
    assert segment_number(Path("000000000000001x.log")) is None


def test_layout_records_must_fill_their_body() -> None:
    """A body whose records leave bytes over, or pass its end, was written by a bug."""
    data = base_record(1, 1, 5)
    for wrong in (data[:-1], data + b"\0", data[:10], b"\0\0\0\x01" + data[4:]):
        with pytest.raises(ValueError, match="record"):
            records_in(wrong, 0, len(wrong))


def test_layout_zeros_are_recognised_across_steps() -> None:
    """One byte anywhere in some megabytes is seen."""
    size = 3 * 1024 * 1024 + 5
    assert is_zero_from(bytes(size), 17)
    for position in (17, 1024 * 1024 + 16, 1024 * 1024 + 17, size - 1):
        data = bytearray(size)
        data[position] = 1
        assert not is_zero_from(bytes(data), 17)
    assert is_zero_from(b"\x01", 1)

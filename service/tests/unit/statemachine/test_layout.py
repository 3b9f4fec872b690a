"""The bytes of docs/formats/store.md."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvorum.statemachine.layout import (
    CHANGES,
    CHANGES_END,
    CHANGES_ROW_BYTES_MAX,
    KIND_SET,
    Change,
    change_record,
    changes_key,
    family_varint,
    history_prefix,
    parse_changes,
)


def rows(engine):
    """All rows of an engine in hex."""
    return [(key.hex(), row.hex()) for key, row in engine.iterate(b"", b"\xff")]


def test_rows_of_a_small_store_are_the_documented_bytes(store):
    """A set, a large set, a family and a delete: every byte as the format page says."""
    store.group(store.set(b"k", b"v"), store.set(b"L", b"x" * 1025), store.set(b"f", b"w", b"fam"), store.delete(b"k"))

    at = [f"{version:016x}" for version in range(5)]
    record = "01000000000161"
    assert len(record) == 14
    assert [
        (b"\x00family".hex() + b"fam".hex(), "00000001" + at[3]),
        (b"\x00format".hex(), "02"),
        (b"\x00state".hex(), at[4] + at[4] + at[0]),
        ("01" "00000000" + "4c", "02" + at[2][2:]),
        ("01" "00000000" + "6b", "01" + at[4][2:]),
        ("01" "00000001" + "66", "00" + at[3][2:] + "77"),
        ("02" "00000000" "00000001" + "4c" + at[2] + "01", "78" * 1025),
        ("02" "00000000" "00000001" + "6b" + at[1] + "01", "76"),
        ("02" "00000000" "00000001" + "6b" + at[4] + "02", ""),
        ("02" "00000001" "00000001" + "66" + at[3] + "01", "77"),
        (
            "03" + at[4] + "00000000",
            at[1] + "01" "00" "00000001" "6b"
            + at[2] + "01" "00" "00000001" "4c"
            + at[3] + "01" "01" "00000001" "66"
            + at[4] + "02" "00" "00000001" "6b",
        ),
    ] == rows(store.engine)  # fmt: skip


@given(st.lists(st.builds(Change, st.integers(0, 2**56), st.integers(1, 2), st.integers(0, 2**32 - 2), st.binary())))
def test_change_records_read_back_as_written(changes):
    """Any family id, any key."""
    row = b"".join(
        change_record(
            change.version.to_bytes(8, "big"), bytes((change.kind,)), family_varint(change.family_id), change.key
        )
        for change in changes
    )

    assert changes == list(parse_changes(row))


@given(st.binary(max_size=4), st.binary(max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_history_keys_of_different_keys_never_interleave(one, two, version, other):
    """All versions of a key lie together, whatever their neighbours' lengths."""
    if one == two:
        return
    prefix = history_prefix(0, one)
    key = history_prefix(0, two) + other.to_bytes(8, "big") + KIND_SET

    assert not prefix + bytes(8) <= key <= prefix + b"\xff" * 9
    assert prefix < prefix + version.to_bytes(8, "big") + KIND_SET


def test_changes_of_a_huge_group_go_on_in_bounded_parts(store):
    """Many records of one version are numbered parts; a walk from a version on misses none."""
    commit = store.commit(0, *[store.set(b"%05d" % n + b"k" * 200, b"v") for n in range(1000)])
    store.group(store.set(b"before", b"v"), commit, store.set(b"after", b"v"))

    stored = list(store.engine.iterate(CHANGES, CHANGES_END))

    assert max(len(row) for _, row in stored) < CHANGES_ROW_BYTES_MAX + 1000
    changes = [change for _, row in stored for change in parse_changes(row)]
    assert 1002 == len(changes)
    assert [1, *[2] * 1000, 3] == [change.version for change in changes]
    above_one = [
        change for _, row in store.engine.iterate(changes_key(2), CHANGES_END) for change in parse_changes(row)
    ]
    assert 1001 == len([change for change in above_one if change.version > 1])

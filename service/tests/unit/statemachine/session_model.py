"""Sessions as the contract tells them, and their rows as format 1 kept them: written without the code under test."""

from __future__ import annotations

import struct
from hashlib import blake2b

from kvorum.core.codec import TAG, encode_operation, identified
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.maintenance import Maintenance
from kvorum.core.operations import AtomicCommit, Mutation, MutationKind
from kvorum.statemachine.journal import session_content
from kvorum.statemachine.sessions import SESSIONS_MAX

A, B, C, D = (bytes((letter,)) * 16 for letter in b"abcd")
SET = Mutation(MutationKind.SET, b"", b"k", b"v")
SESSION, OUTCOME, RING, USES = b"\0session\0", b"\0outcome\0", b"\0ring\0", b"\0uses\0"


def identified_entry(index, client_id, request_id, operation, time_ms=1_700_000_000_000):
    """The log entry of an identified write."""
    payload = TAG.pack(7, 8, index) + identified(encode_operation(operation), client_id, request_id)
    return Entry.create(index, 1, EntryKind.COMMAND, time_ms, payload)


def maintenance_entry(index, watermark=0, idle_before_ms=0, sessions_max=100_000):
    """A MAINTENANCE entry."""
    payload = Maintenance(watermark, idle_before_ms, sessions_max).encode()
    return Entry.create(index, 1, EntryKind.MAINTENANCE, 1_700_000_000_000, payload)


def digest(operation):
    """Digest of an operation, as docs/formats/store.md says."""
    encoded = encode_operation(operation)
    return encoded[:1] + blake2b(encoded[1:], digest_size=15).digest()


def content(engine):
    """The sessions of a store as rows of format 1."""
    return [row for row in session_content(engine) if row is not None]


def sessions_of(engine):
    """Clients that have a session."""
    return {key[len(SESSION) :] for key, _ in content(engine) if key.startswith(SESSION)}


def make_old(engine, rows):
    """Turn a store into what the release of format 1 would have left, given its rows of sessions."""
    batch = engine.batch()
    for prefix in (SESSION, RING, USES, OUTCOME):
        batch.delete_range(prefix, prefix[:-1] + b"\1")
    for key, row in rows:
        batch.put(key, row)
    batch.put(b"\0format", b"\1")
    engine.write(batch)


def operation_of(choice):
    """A write of the kind; the commit conflicts now and then."""
    return [
        SET,
        Mutation(MutationKind.DELETE, b"", b"k"),
        AtomicCommit(8, (SET,), (b"k",), existing_style=False),
        Mutation(MutationKind.VERSIONSTAMPED_VALUE, b"", b"k", b"." * 12),
    ][choice]


class Model:
    """Sessions by client, least recently used first, with a ring of four."""

    KEPT = 4

    def __init__(self):
        self.sessions = {}
        self.maximum = SESSIONS_MAX
        self.newest = 0

    def send(self, index, time, client, number, choice):
        """Error code of a refusal, the first version of a known retry, 0 for a new write."""
        session = self.sessions.pop(client, None)
        if session is None:
            if len(self.sessions) >= self.maximum:
                del self.sessions[next(iter(self.sessions))]
            session = {"kept": {}, "forgotten": -1, "recorded": 0}
        self.sessions[client] = session
        session["time"] = time
        session["index"] = index
        if number in session["kept"]:
            body, outcome, version = session["kept"][number]
            if body != choice:
                return "INVALID_ARGUMENT"
            return outcome or version
        if number <= session["forgotten"]:
            return "INVALID_ARGUMENT"
        outcome = None
        if choice == 2:
            outcome = "FUTURE_VERSION" if index <= 8 else "CONFLICT" if self.newest > 8 else None
        if outcome is None:
            self.newest = index
        session["kept"][number] = (choice, outcome, index)
        session["recorded"] += 1
        if len(session["kept"]) > self.KEPT:
            oldest = next(iter(session["kept"]))
            del session["kept"][oldest]
            session["forgotten"] = max(session["forgotten"], oldest)
        return outcome or 0

    def maintain(self, idle_before, maximum):
        """Forget idle and surplus sessions."""
        self.maximum = maximum
        for client in list(self.sessions):
            if self.sessions[client]["time"] >= idle_before and len(self.sessions) <= maximum:
                break
            del self.sessions[client]

    def rows(self):
        """All rows of sessions as format 1 has them, in the order of their keys."""
        rows = []
        for client, session in self.sessions.items():
            head = struct.pack(">QqQQ", session["recorded"], session["forgotten"], session["index"], session["time"])
            rows.append((SESSION + client, head))
            first = session["recorded"] - len(session["kept"])
            for nth, (number, (choice, code, version)) in enumerate(session["kept"].items(), first):
                row = struct.pack(">qQ16s", number, version, digest(operation_of(choice))) + (code or "").encode()
                rows.append((OUTCOME + client + bytes((nth % self.KEPT,)), row))
        return sorted(rows)

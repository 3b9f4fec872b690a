"""``kvorum check``: is every voter part of one working cluster? A write through each, read through all the others."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvorum.cli.output import OutputFormat, print_json, read_endpoints, run_async
from kvorum_client import KvorumClient, KvorumError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from kvorum_client import Member, NodeStatus

KEY_PREFIX: Final = b"kvorum-check/"
PAUSE_S: Final = 0.25
LINEARIZABLE: Final = "read_index"


@dataclass(slots=True)
class Report:
    """What was found out through one node."""

    member: Member
    write_s: float = 0.0
    readers: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The same for people."""
        head = f"node {self.member.node_id} at {self.member.kv_endpoint}: "
        if not self.member.voter:
            return head + "a learner, not checked"
        if self.problems:
            return head + "FAILED: " + "; ".join(self.problems)
        by = ", ".join(map(str, self.readers)) or "nobody else"
        return head + f"ok, written in {self.write_s * 1000:.0f} ms, read back by itself and through {by}"


async def find_cluster(client: KvorumClient, timeout_s: float) -> NodeStatus:
    """
    What a node says that knows a leader.

    Raises:
        KvorumError: None answered, or none knew a leader, within the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            status = await client.status()
            if status.leader_id is not None:
                return status
            problem: KvorumError = UnavailableError(f"{status.endpoint} knows no leader; look with kvorum status")
        except KvorumError as caught:
            problem = caught
        if time.monotonic() >= deadline:
            raise problem
        await asyncio.sleep(PAUSE_S)


async def prove(report: Report, clients: Mapping[int, KvorumClient]) -> None:
    """Write a key of its own through one node, read it linearizably through all, and take it away again."""
    writer = clients[report.member.node_id]
    key, value = KEY_PREFIX + secrets.token_hex(12).encode(), secrets.token_bytes(16)
    begun = time.monotonic()
    try:
        await writer.set(key, value)
    except KvorumError as problem:
        report.problems.append(f"cannot write: {problem}")
        return
    report.write_s = time.monotonic() - begun

    async def read(node_id: int, client: KvorumClient) -> None:
        try:
            found = await client.get(key, consistency=LINEARIZABLE)
        except KvorumError as problem:
            report.problems.append(f"cannot be read through node {node_id}: {problem}")
            return
        if found != value:
            what = "nothing" if found is None else "another value"
            report.problems.append(f"node {node_id} shows {what} after the write was acknowledged")
        elif client is not writer:
            report.readers.append(node_id)

    await asyncio.gather(*(read(node_id, client) for node_id, client in clients.items()))
    report.readers.sort()
    try:
        await writer.delete(key)
    except KvorumError as problem:
        report.problems.append(f"cannot remove {key.decode()} again: {problem}")


async def check_cluster(asked: list[str], timeout_s: float) -> list[Report]:
    """
    One report for each member, in the order of their numbers.

    Raises:
        KvorumError: No node told who belongs to the cluster.
    """
    async with KvorumClient(asked, timeout_s=timeout_s) as client:
        status = await find_cluster(client, timeout_s)
    reports = [Report(member) for member in sorted(status.members, key=lambda member: member.node_id)]
    async with AsyncExitStack() as open_clients:
        clients = {
            report.member.node_id: await open_clients.enter_async_context(
                # One endpoint each: what this client does, it does through this node.
                KvorumClient([report.member.kv_endpoint], timeout_s=timeout_s)
            )
            for report in reports
            if report.member.voter
        }
        for report in reports:
            if report.member.voter:
                await prove(report, clients)
    return reports


def check(endpoints: str, timeout_s: float, output: OutputFormat) -> NoReturn:
    """Print one line for each member; exit code 0 if every voter wrote and read."""
    asked = read_endpoints(endpoints)

    async def work() -> int:
        reports = await check_cluster(asked, timeout_s)
        voters = [report for report in reports if report.member.voter]
        good = bool(voters) and not any(report.problems for report in voters)
        if output is OutputFormat.JSON:
            nodes = [
                {
                    "node_id": report.member.node_id,
                    "endpoint": report.member.kv_endpoint,
                    "voter": report.member.voter,
                    "read_through": report.readers,
                    "problems": report.problems,
                }
                for report in reports
            ]
            print_json({"ok": good, "nodes": nodes})
        else:
            for report in reports:
                print(report.line())
            print(f"{'good' if good else 'NOT GOOD'}: {len(voters)} voters of {len(reports)} members checked")
        return 0 if good else 1

    run_async(work())

"""``kvorum verify``: do all nodes hold the same state? Each one hashes its own at one and the same applied index."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Final

from kvorum.cli.admin_client import http_endpoints as find_http_endpoints
from kvorum.cli.output import OutputFormat, console, print_json, read_endpoints, run_async, usage_error
from kvorum_client import KvorumClient, KvorumError, NodeStatus, split_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

LEAD_S: Final = 0.5
"""Under load the common index is chosen this far ahead of the cluster, so that every node hears it in time."""

ROUNDS_MAX: Final = 20
ROUND_PAUSE_S: Final = 0.25
HTTP_TIMEOUT_S: Final = 60.0
_MOVED_ON: Final = 409


class MovedOnError(Exception):
    """The node has applied more by now, or has not come that far."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The hash of every node at one applied index."""

    applied_index: int
    hashes: dict[str, str]

    @property
    def equal(self) -> bool:
        """All nodes hold the same state."""
        return len(set(self.hashes.values())) == 1


def _fetch(http: str, index: int) -> str:
    host, port = split_endpoint(http)
    connection = HTTPConnection(host, port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request("GET", f"/state-hash?at={index}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as problem:
        text = f"{http} does not give its state hash: {str(problem) or type(problem).__name__}"
        raise KvorumError(text) from problem
    finally:
        connection.close()
    if response.status == _MOVED_ON:
        raise MovedOnError
    if response.status != 200:
        text = f"{http} answered {response.status} to /state-hash: {body[:200].decode(errors='replace')}"
        raise KvorumError(text)
    answer = json.loads(body)
    if answer["applied_index"] != index:
        raise MovedOnError
    return str(answer["hash"])


async def compare(client: KvorumClient, https: Sequence[str]) -> Verdict:
    """
    Hash all nodes at the highest applied index among them, again while writes move on.

    Raises:
        KvorumError: A node cannot be reached, or the nodes did not stand still long enough.
    """
    loop = asyncio.get_running_loop()
    last: tuple[float, int] | None = None
    for _ in range(ROUNDS_MAX):
        applied = 0
        for answer in (await client.status_all()).values():
            if not isinstance(answer, NodeStatus):
                raise answer
            applied = max(applied, answer.applied_index)
        now = loop.time()
        seen, last = last, (now, applied)
        if seen is not None and applied > seen[1]:
            # Writes go on, so the question comes too late for the present index: ask for one yet to be reached.
            applied += int((applied - seen[1]) / (now - seen[0]) * LEAD_S) + 1
        found = await asyncio.gather(
            *(asyncio.to_thread(_fetch, http, applied) for http in https), return_exceptions=True
        )
        hashes = [answer for answer in found if isinstance(answer, str)]
        if len(hashes) == len(https):
            return Verdict(applied, dict(zip(client.endpoints, hashes, strict=True)))
        for problem in found:
            if isinstance(problem, BaseException) and not isinstance(problem, MovedOnError):
                raise problem
        await asyncio.sleep(ROUND_PAUSE_S)
    text = "the nodes never stood at one index together: writes keep coming, or a node does not catch up; try later"
    raise KvorumError(text)


def verify(endpoints: str, http_endpoints: str | None, output: OutputFormat) -> NoReturn:
    """Print each node's hash; exit code 1 if they differ or cannot be compared."""
    asked = read_endpoints(endpoints)
    https = find_http_endpoints(endpoints, http_endpoints)
    if len(https) != len(asked):
        usage_error("--http-endpoints must name one for each of --endpoints, in the same order")

    async def work() -> int:
        async with KvorumClient(asked) as client:
            verdict = await compare(client, https)
        if output is OutputFormat.JSON:
            print_json({"applied_index": verdict.applied_index, "equal": verdict.equal, "hashes": verdict.hashes})
        else:
            terminal = console()
            for endpoint, state_hash in verdict.hashes.items():
                terminal.print(f"{endpoint}  {state_hash}")
            judgement = "[green]equal[/green]" if verdict.equal else "[red]DIFFERENT[/red]"
            terminal.print(f"at applied index {verdict.applied_index}: {judgement}")
        return 0 if verdict.equal else 1

    run_async(work())

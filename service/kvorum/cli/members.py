"""``kvorum member`` and ``kvorum leader``: who belongs to the cluster, and who leads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from kvorum.cli.admin_client import AdminClient, AdminError, http_endpoints
from kvorum.cli.output import OutputFormat, console, fail, print_json, usage_error
from kvorum_client import split_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_MARGIN_S: Final = 5.0
"""What a node gets beyond the command's own time, so that its answer and not the client's patience is shown."""


class MemberCommand:
    """One command, with the nodes it asks."""

    def __init__(self, endpoints: str, https: str | None, timeout_s: float, output: OutputFormat) -> None:
        self._client = AdminClient(http_endpoints(endpoints, https), timeout_s + ANSWER_MARGIN_S)
        self._timeout_s = timeout_s
        self._output = output

    def list_members(self) -> NoReturn:
        """Print the configuration in force; exit code 1 if no leader is known."""
        document = self._get("/admin/members")
        if self._output is OutputFormat.JSON:
            print_json(document)
        else:
            _print_members(document)
        raise SystemExit(0 if document.get("leader_id") is not None else 1)

    def add(self, endpoint: str, peer_endpoint: str | None, node_id: int | None) -> NoReturn:
        """Take in a node as a learner."""
        arguments: dict[str, object] = {"client_endpoint": _endpoint(endpoint)}
        if peer_endpoint is not None:
            arguments["peer_endpoint"] = _endpoint(peer_endpoint)
        if node_id is not None:
            arguments["node_id"] = node_id
        document = self._post("/admin/members/add", arguments)
        added = document["node_id"]
        self._done(
            document,
            f"start it with an empty data directory: kvorum serve -n {added}, with a file that lists all members "
            "and it; it becomes a voter by itself once it has caught up (kvorum member list)",
        )

    def promote(self, node_id: int, *, force: bool) -> NoReturn:
        """Make a learner a voter now, without waiting until the leader does."""
        self._done(self._post("/admin/members/promote", {"node_id": node_id, "force": force}), None)

    def remove(self, node_id: int, *, force: bool) -> NoReturn:
        """Take a node out for good."""
        document = self._post("/admin/members/remove", {"node_id": node_id, "force": force})
        self._done(
            document, "stop its process and remove its data directory, which never serves again under its old id"
        )

    def replace(self, node_id: int, endpoint: str | None, peer_endpoint: str | None, *, force: bool) -> NoReturn:
        """Give the seat of a node to an empty data directory."""
        arguments: dict[str, object] = {"node_id": node_id, "force": force}
        if endpoint is not None:
            arguments["client_endpoint"] = _endpoint(endpoint)
        if peer_endpoint is not None:
            arguments["peer_endpoint"] = _endpoint(peer_endpoint)
        document = self._post("/admin/members/replace", arguments)
        self._done(
            document,
            f"start node {node_id} with an empty data directory; it becomes a voter by itself once it has caught up "
            "(kvorum member list)",
        )

    def show_leader(self) -> NoReturn:
        """Print who leads; exit code 1 if nobody is known to."""
        document = self._get("/admin/members")
        leader, term = document.get("leader_id"), document.get("term")
        endpoint = document.get("leader_endpoint")
        if self._output is OutputFormat.JSON:
            print_json({"leader_id": leader, "leader_endpoint": endpoint, "term": term})
        elif leader is None:
            print("no leader is known; look at the nodes with kvorum status")
        else:
            print(f"node {leader} at {endpoint} leads in term {term}")
        raise SystemExit(0 if leader is not None else 1)

    def move_leader(self, node_id: int | None) -> NoReturn:
        """Hand leadership over."""
        self._done(self._post("/admin/leader/move", {} if node_id is None else {"node_id": node_id}), None)

    # --- asking and telling ---

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return self._client.get(path)
        except AdminError as problem:
            fail(str(problem))

    def _post(self, path: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        try:
            return self._client.post(path, {**arguments, "timeout_s": self._timeout_s})
        except AdminError as problem:
            fail(str(problem))
        except KeyboardInterrupt:
            fail("interrupted; the change may happen all the same: look with kvorum member list", 130)

    def _done(self, document: Mapping[str, object], next_step: str | None) -> NoReturn:
        if self._output is OutputFormat.JSON:
            print_json(document)
        else:
            print(document["text"])
            if next_step is not None:
                print(f"next: {next_step}")
        raise SystemExit(0)


def compact_logs(endpoints: str, https: str | None, timeout_s: float, output: OutputFormat) -> NoReturn:
    """Have every node cut its log; exit code 1 if one did not."""
    answers: dict[str, object] = {}
    failed = False
    for http in http_endpoints(endpoints, https):
        try:
            client = AdminClient([http], timeout_s + ANSWER_MARGIN_S)
            answers[http] = client.post("/admin/log/compact", {"timeout_s": timeout_s})["base_index"]
        except AdminError as problem:
            failed = True
            answers[http] = str(problem)
    if output is OutputFormat.JSON:
        print_json(answers)
    else:
        for http, answer in answers.items():
            print(f"{http}: the log begins behind index {answer:,}" if isinstance(answer, int) else f"{http}: {answer}")
    raise SystemExit(1 if failed else 0)


def _endpoint(text: str) -> str:
    try:
        split_endpoint(text)
    except ValueError as problem:
        usage_error(str(problem))
    return text


def _print_members(document: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("node", "role", "client endpoint", "peer endpoint", "data directory", "health", "behind", "heard"):
        justify: Literal["left", "right"] = "right" if heading in {"node", "behind", "heard"} else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for member in document["members"]:
        role = "voter" if member["voter"] else "learner"
        heard = member.get("last_contact_s")
        behind = member.get("behind")
        table.add_row(
            str(member["node_id"]),
            f"[green]{role}, leader[/green]" if member["node_id"] == document.get("leader_id") else role,
            member["client_endpoint"],
            member["peer_endpoint"] or "-",
            member.get("incarnation") or "not seen yet",
            member.get("health", "-"),
            "-" if behind is None else f"{behind:,}",
            "-" if heard is None else f"{heard:.1f} s",
        )
    terminal = console()
    terminal.print(table)
    if document.get("leader_id") is None:
        terminal.print("[red]no leader[/red]")

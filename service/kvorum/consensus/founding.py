"""
How a cluster begins, behind one interface: all nodes of a file together, or one pod that takes the others in.

`FileBirth` is the rule for static endpoints (`birth.judge`). `PodBirth` is the rule for the pods of a StatefulSet
(docs/decisions/0016): the first ordinal forms a cluster of one, once, and everybody else joins it as a learner. The
order makes a crash at any point harmless: the id of the cluster follows from the random incarnation, which is durable
in the data directory; it is written into the genesis record; then the first log entry is written. A record that holds
the own id means "form now"; one that holds another id means that a cluster was formed before, and that this directory
is not its beginning.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.consensus.birth import Verdict, judge, judge_pod
from kvorum.core.cluster import Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kvorum.consensus.frames import Report
    from kvorum.core.cluster import Member
    from kvorum.core.ids import Incarnation, NodeId
    from kvorum.core.ports import Greeting

CLAIM_AGAIN_S: Final = 5.0
"""A record that names another cluster is looked at again this often: an operator may have cleared it."""


class Genesis(Protocol):
    """The record of the cluster's birth, outside of any data directory."""

    def claim(self, cluster_id: bytes, decided: Callable[[bytes], None]) -> None:
        """
        Write an id unless there is one, and call back on the loop with the one that stands there.

        Tries again for ever, with pauses, until the keeper of the record answers.
        """
        ...


class Birth(Protocol):
    """How a node without a cluster comes to one."""

    @property
    def expected(self) -> Configuration:
        """Whom to talk to before a log says who the members are; this node is among them."""
        ...

    @property
    def birth_id(self) -> bytes:
        """Equal for all nodes that may be born together."""
        ...

    @property
    def cluster_id(self) -> bytes:
        """Id of the cluster that this node forms."""
        ...

    @property
    def first(self) -> Configuration:
        """Log entry 1 of the cluster that this node forms."""
        ...

    def judge(
        self,
        incarnation: Incarnation,
        reports: Mapping[NodeId, Report],
        clusters: Mapping[NodeId, bytes | None],
        learned: Configuration | None,
        *,
        patient: bool,
    ) -> Verdict:
        """What an empty directory may do, from what the linked peers have said."""
        ...

    def prepare(self, now: float, decided: Callable[[], None]) -> bool:
        """Whether the first entry may be written now; if not yet, ``decided`` is called when there is news."""
        ...

    def must_look_again(self, now: float) -> bool:
        """Whether `judge` may say something else by now although no peer has said anything."""
        ...

    def unborn_flaw(self, greeting: Greeting) -> str | None:
        """Why this node and an empty one may not form a cluster together."""
        ...

    def complete(self, voters: int, *, written: bool) -> bool:
        """
        Whether clients may be served.

        Args:
            voters: In the newest committed configuration.
            written: A client's write was committed already.
        """
        ...


class FileBirth:
    """All nodes of a file are born together, from the same first entry."""

    def __init__(self, node_id: NodeId, configuration: Configuration) -> None:
        self._node_id = node_id
        self.expected = self.first = configuration
        self.birth_id = self.cluster_id = configuration.birth_id()

    def judge(
        self,
        incarnation: Incarnation,
        reports: Mapping[NodeId, Report],
        clusters: Mapping[NodeId, bytes | None],
        learned: Configuration | None,
        *,
        patient: bool,
    ) -> Verdict:
        """See `birth.judge`."""
        return judge(
            self._node_id, incarnation, self.expected, reports, clusters=clusters, learned=learned, patient=patient
        )

    def prepare(self, _now: float, _decided: Callable[[], None]) -> bool:
        """Nothing is recorded anywhere: every node derives the same."""
        return True

    def must_look_again(self, _now: float) -> bool:
        """Only peers bring news."""
        return False

    def unborn_flaw(self, greeting: Greeting) -> str | None:
        """Another file, or a node it does not list."""
        if self.expected.member(greeting.node_id) is None:
            return f"node id {greeting.node_id} is no member of this cluster"
        if greeting.birth_id != self.birth_id:
            return "its configuration lists other members (replica_endpoints or [consensus] endpoints differ)"
        return None

    def complete(self, voters: int, *, written: bool) -> bool:  # noqa: ARG002 - the port
        """A cluster from a file has all its voters from the first entry on."""
        return True


class PodBirth:
    """
    One pod forms the cluster alone, the leader takes the others in.

    Args:
        own: The seat of this pod, without incarnation.
        incarnation: Of this pod's data directory.
        birth_id: Equal for the pods of the set.
        genesis: Where the birth is recorded; None: a majority of empty pods is proof enough.
    """

    def __init__(
        self,
        own: Member,
        incarnation: Incarnation,
        birth_id: bytes,
        genesis: Genesis | None,
    ) -> None:
        self._own = own
        self._genesis = genesis
        self._claiming = False
        self._claimed_at = float("-inf")
        self._recorded: bytes | None = None
        self._news = False
        self.birth_id = birth_id
        self.cluster_id = hashlib.sha256(b"kvorum cluster" + birth_id + incarnation.to_bytes(8)).digest()[:16]
        self.first = Configuration.of([replace(own, voter=True, incarnation=incarnation)])
        self.expected = Configuration.of([own])
        self.founder: NodeId | None = None
        self.wanted: int | None = None
        """Pods that the StatefulSet is to have; None until that was read."""

    def expect(self, members: Iterable[Member], founder: NodeId | None, wanted: int | None) -> None:
        """
        Take in what the StatefulSet says.

        Args:
            members: Every wanted pod, as a voter.
            founder: The first ordinal.
            wanted: How many pods there are to be.
        """
        by_id = {member.node_id: member for member in members}
        self.expected = Configuration.of((by_id | {self._own.node_id: self._own}).values())
        self.founder, self.wanted = founder, wanted
        self._news = True

    def judge(
        self,
        incarnation: Incarnation,
        reports: Mapping[NodeId, Report],
        clusters: Mapping[NodeId, bytes | None],
        learned: Configuration | None,
        *,
        patient: bool,
    ) -> Verdict:
        """See `birth.judge_pod`."""
        verdict = judge_pod(
            self._own.node_id,
            incarnation,
            self.expected,
            reports,
            founder=self.founder,
            wanted=self.wanted,
            clusters=clusters,
            learned=learned,
            patient=patient,
        )
        if verdict.born and self._recorded is not None and self._recorded != self.cluster_id:
            return Verdict(
                waiting_for=f"a member of cluster {self._recorded.hex()}: the genesis record says that it was formed "
                "before. If it is lost for good, clear the data of the record and it is formed anew, empty"
            )
        return verdict

    def prepare(self, now: float, decided: Callable[[], None]) -> bool:
        """The record must hold the own id."""
        own = self.cluster_id
        if self._genesis is None or self._recorded == own:
            return True

        def answered(recorded: bytes) -> None:
            self._claiming = False
            self._recorded = recorded
            decided()

        if not self._claiming and now - self._claimed_at >= CLAIM_AGAIN_S:
            self._claiming = True
            self._claimed_at = now
            self._genesis.claim(own, answered)
        return False

    def must_look_again(self, now: float) -> bool:
        """Another cluster stood in the record a while ago, or the StatefulSet has said something new."""
        if self._recorded is not None and not self._claiming and now - self._claimed_at >= CLAIM_AGAIN_S:
            self._recorded = None
            self._news = True
        news, self._news = self._news, False
        return news

    def unborn_flaw(self, greeting: Greeting) -> str | None:
        """A pod of another StatefulSet; how many pods this one has may just be changing."""
        if greeting.birth_id != self.birth_id:
            return "it is no pod of the same StatefulSet (name, Service, namespace or cluster domain differ)"
        return None

    def complete(self, voters: int, *, written: bool) -> bool:
        """
        A majority of the wanted pods vote, or the cluster has taken writes before.

        A birth on one disk could lose what it acknowledged there (operations section 2, item 4).
        """
        return written or (self.wanted is not None and voters >= self.wanted // 2 + 1)

"""The pods' birth beside its rule: the record, what the StatefulSet says, and when clients may write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum.consensus.founding import CLAIM_AGAIN_S, PodBirth
from kvorum.core.cluster import Member
from kvorum.core.ports import Greeting

OWN = Member(0, "n0:9090", "n0.:7090")


class Record:
    """A genesis record that answers when told to."""

    def __init__(self, holds=None):
        self.holds = holds
        self.asked = []

    def claim(self, cluster_id, decided):
        self.asked.append((cluster_id, decided))

    def answer(self):
        cluster_id, decided = self.asked[-1]
        self.holds = self.holds or cluster_id
        decided(self.holds)


def birth(record=None, wanted=1):
    found = PodBirth(OWN, 7, b"set", record)
    found.expect([OWN], 0, wanted)
    return found


def judged(subject):
    return subject.judge(7, {}, {}, None, patient=False)


def test_pod_claims_the_record_once_before_it_forms_a_cluster():
    """No first entry before the record holds the own id; the answer is news to be judged again."""
    record, news = Record(), []
    subject = birth(record)
    assert judged(subject).born
    assert not subject.prepare(0, lambda: news.append(1))
    assert not subject.prepare(1, lambda: news.append(2))
    record.answer()
    assert ([1], 1) == (news, len(record.asked))
    assert judged(subject).born
    assert subject.prepare(2, lambda: None)


def test_pod_without_a_record_relies_on_the_majority_alone():
    """Where the Kubernetes API may not be asked."""
    assert birth().prepare(0, lambda: None)


def test_pod_waits_while_the_record_names_another_cluster_and_looks_again():
    """The text says what an operator may do; a record that was cleared is noticed."""
    record = Record(holds=b"x" * 16)
    subject = birth(record)
    subject.prepare(0, lambda: None)
    record.answer()
    verdict = judged(subject)
    assert not verdict.born
    assert (b"x" * 16).hex() in verdict.waiting_for
    assert subject.must_look_again(0.1), "what the StatefulSet said"
    assert not subject.must_look_again(CLAIM_AGAIN_S - 1)
    assert subject.must_look_again(CLAIM_AGAIN_S)
    record.holds = None
    assert judged(subject).born
    assert not subject.prepare(CLAIM_AGAIN_S, lambda: None)
    record.answer()
    assert subject.prepare(CLAIM_AGAIN_S, lambda: None)


def test_cluster_id_follows_from_directory_and_set():
    """The same after a crash, another after the disk was lost, another in another set."""
    ids = [PodBirth(OWN, incarnation, name, None).cluster_id for incarnation, name in ((7, b"a"), (8, b"a"), (7, b"b"))]
    assert birth().cluster_id == PodBirth(OWN, 7, b"set", None).cluster_id
    assert len(set(ids)) == 3
    assert {16} == {len(found) for found in ids}


def test_expected_pods_always_include_this_one():
    """A surplus pod still talks to the wanted ones."""
    subject = PodBirth(Member(4, "n4:9090", "n4.:7090"), 7, b"set", None)
    subject.expect([OWN], 0, 1)
    assert [0, 4] == [member.node_id for member in subject.expected.members]


@pytest.mark.parametrize(
    ("wanted", "voters", "written", "complete"),
    [
        (3, 1, False, False),
        (3, 2, False, True),
        (5, 2, False, False),
        (5, 3, False, True),
        (1, 1, False, True),
        (3, 1, True, True),
        (None, 3, False, False),
        (None, 1, True, True),
    ],
)
def test_clients_are_served_once_a_majority_of_the_wanted_pods_votes(wanted, voters, written, complete):
    """A cluster that has taken writes before is never closed again, whatever it is scaled to."""
    assert complete is birth(wanted=wanted).complete(voters, written=written)


def test_pod_of_another_set_is_no_partner_of_a_birth():
    """Its names differ, so it has another birth id; how many pods there are does not matter."""
    subject = birth()
    stranger = Greeting(bytes(16), b"other", 1, 9, "n1:9090", "0.1.0")
    assert "no pod of the same StatefulSet" in str(subject.unborn_flaw(stranger))
    assert subject.unborn_flaw(replace(stranger, birth_id=b"set")) is None

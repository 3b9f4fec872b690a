"""How many keys clients are told the store holds."""

from __future__ import annotations

from kvorum.statemachine.executor import KEYS_COUNTED_MAX
from kvorum.storage.rocksdict_engine import RocksdictEngine


def test_live_keys_of_an_empty_store_are_none(make_store, tmp_path):
    """Rows that the store keeps for itself are no keys, whatever the engine counts."""
    store = make_store(RocksdictEngine.open(tmp_path / "store"))
    store.group(store.NOOP)

    assert 0 < store.engine.statistics().keys
    assert 0 == store.executor.estimate_live_keys(store.engine.statistics().keys)
    store.engine.close()


def test_live_keys_while_few_are_exact(make_store):
    """Each key counts once however often it was written; deleted keys do not; families count together."""
    store = make_store()
    store.group(*(store.set(b"%d" % (n % 10), b"v") for n in range(100)))
    store.group(store.set(b"1", b"v", b"f"), store.delete(b"1"), store.delete(b"never"))

    assert 10 == store.executor.estimate_live_keys(10_000)


def test_live_keys_when_many_are_estimated_from_the_engine(make_store):
    """Beyond the bound the engine's rows are halved and the share of tombstones is taken off."""
    store = make_store()
    keys = [b"%05d" % n for n in range(KEYS_COUNTED_MAX)]
    store.group(*(store.set(key, b"v") for key in keys))

    assert 5_000 == store.executor.estimate_live_keys(10_000)
    assert KEYS_COUNTED_MAX == store.executor.estimate_live_keys(0)

    store.group(*(store.delete(key) for key in keys[::2]))
    assert 2_500 == store.executor.estimate_live_keys(10_000)

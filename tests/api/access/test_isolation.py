"""The prefix cache of one key tells nothing to another."""

from array import array

from jserve.api.access.isolation import CacheIsolation
from jserve.api.access.keys import ANYBODY, KeyRing
from jserve.schedule.prefix import DigestChain

_RING = KeyRing(("one", "two"))
ONE, TWO = (_RING.find({b"x-api-key": key}) for key in (b"one", b"two"))
assert ONE is not None
assert TWO is not None


def test_salts_differ_by_key_by_client_salt_and_by_server() -> None:
    isolation = CacheIsolation("key")
    salts = [CacheIsolation("key").salt(ONE, "")]
    salts += [isolation.salt(key, salt) for key in (ONE, TWO) for salt in ("", "a", "b")]
    assert len(set(salts)) == 7
    assert isolation.salt(ONE, "a") == isolation.salt(ONE, "a")
    first_pages = {DigestChain(array("i", [1, 2]), 2, salt).digest(0) for salt in salts}
    assert len(first_pages) == 7


def test_no_client_salt_reaches_the_pages_of_a_key() -> None:
    isolation = CacheIsolation("key")
    theirs = isolation.salt(ONE, "")
    assert isolation.salt(TWO, theirs) != theirs
    assert isolation.salt(TWO, ONE.digest.hex()) != theirs


def test_without_isolation_and_without_keys_the_clients_salt_is_all() -> None:
    assert CacheIsolation("none").salt(ONE, "a") == CacheIsolation("none").salt(TWO, "a") == "a"
    assert CacheIsolation("key").salt(ANYBODY, "a") == "a"

from __future__ import annotations

import base64
import os

import pytest
from django.core.exceptions import ImproperlyConfigured

from keyring.keys import DecryptionError, KeyRing, parse

CONTEXT = b"table|1|column"


def make_ring(*names: str) -> KeyRing:
    return KeyRing({name: os.urandom(32) for name in names or ("k1",)})


def make_key(key: bytes | None = None) -> str:
    return base64.b64encode(key or os.urandom(32)).decode()


def seal(ring: KeyRing, plaintext: bytes = b"secret", purpose: str = "field", context: bytes = CONTEXT) -> bytes:
    return ring.encrypt(plaintext, purpose=purpose, context=context)


def unseal(ring: KeyRing, ciphertext: bytes, purpose: str = "field", context: bytes = CONTEXT) -> bytes:
    return ring.decrypt(ciphertext, purpose=purpose, context=context)


@pytest.mark.parametrize("plaintext", [b"", b"secret", os.urandom(1_000_000)], ids=len)
def test_what_is_encrypted_is_decrypted(plaintext):
    ring = make_ring()
    assert unseal(ring, seal(ring, plaintext)) == plaintext


def test_the_same_text_is_never_encrypted_alike():
    ring = make_ring()
    assert len({seal(ring) for _ in range(1000)}) == 1000


def test_an_old_key_decrypts_while_the_new_one_encrypts():
    old = make_ring("old")
    ciphertext = seal(old)
    both = KeyRing({"new": os.urandom(32), "old": old._keys["old"]})
    assert unseal(both, ciphertext) == b"secret"
    assert KeyRing.key_id_of(seal(both)) == "new"
    assert both.primary == "new"
    assert both.key_ids == ("new", "old")


@pytest.mark.parametrize("place", range(35))
def test_a_flipped_bit_anywhere_is_noticed(place):
    ring = make_ring()
    ciphertext = bytearray(seal(ring))
    ciphertext[place % len(ciphertext)] ^= 1
    with pytest.raises(DecryptionError):
        unseal(ring, bytes(ciphertext))


@pytest.mark.parametrize("length", range(38))
def test_a_cut_ciphertext_is_noticed(length):
    ring = make_ring()
    with pytest.raises(DecryptionError):
        unseal(ring, seal(ring)[:length])


@pytest.mark.parametrize("other", [{"context": b"table|2|column"}, {"purpose": "ledger"}])
def test_a_ciphertext_opens_only_where_it_belongs(other):
    ring = make_ring()
    with pytest.raises(DecryptionError, match="belongs to another row, field or key"):
        unseal(ring, seal(ring), **other)


def test_another_key_of_the_same_name_does_not_open_it():
    with pytest.raises(DecryptionError, match="was changed, or belongs"):
        unseal(make_ring(), seal(make_ring()))


def test_a_key_that_is_gone_is_named():
    with pytest.raises(DecryptionError, match="The key 'k0' is not in the key ring: add it to ENCRYPTION_KEYS"):
        unseal(make_ring("k1"), seal(make_ring("k0")))


def test_a_ciphertext_without_a_key_id_is_not_tried_with_the_first_key():
    ring = make_ring()
    nameless = b"\x01\x00" + seal(ring)[4:]
    with pytest.raises(DecryptionError, match="not a ciphertext of the key ring"):
        unseal(ring, nameless)
    with pytest.raises(DecryptionError, match="not in the key ring"):
        ring.derive("field", "")


@pytest.mark.parametrize(
    "noise", [b"", b"\x01", b"\x01\xff" + b"\xff" * 255, b"\x02k1", b"\x01\x02\xc3\xa9" + b"x" * 40]
)
def test_noise_is_told_apart_from_a_ciphertext_of_an_unknown_key(noise):
    with pytest.raises(DecryptionError, match="This is not a ciphertext of the key ring"):
        KeyRing.key_id_of(noise)


def test_every_purpose_has_a_key_of_its_own():
    ring = make_ring("a", "b")
    derived = {ring.derive(purpose, key) for purpose in ("field", "ledger") for key in ("a", "b")}
    assert len(derived) == 4
    assert not derived & set(ring._keys.values())
    assert ring.derive("field") == ring.derive("field", "a")


def test_the_ring_shows_names_only():
    ring = make_ring("k1", "k2")
    assert repr(ring) == str(ring) == "KeyRing(k1, k2)"


def test_a_ring_is_read_from_its_setting():
    first, second = make_key(), make_key(b"\xfb\xff" * 4 + os.urandom(24)).replace("+", "-").replace("/", "_")
    ring = parse(f" new:{first} , old:{second},")
    assert ring.key_ids == ("new", "old")


SECRET = "deadbeefdeadbeefdeadbeefdeadbeef"
ONE_KEY = make_key()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ENCRYPTION_KEYS is empty"),
        (" , ,", "ENCRYPTION_KEYS is empty"),
        (SECRET, "entry 1 is not id:base64"),
        (f"k1={SECRET}", "entry 1 is not id:base64"),
        (f":{SECRET}", "entry 1 is not id:base64"),
        (f"{SECRET}:k1", "entry 1 has a key that is not base64"),
        (f"{SECRET}:key1", "entry 1 has a key of 3 bytes"),
        (f"k1:{SECRET}é", "entry 1 has a key that is not base64"),
        (f"k1:{SECRET}", "entry 1 has a key of 24 bytes, but 32 random ones are needed"),
        (f"k1:{make_key(b'a' * 32)}", "entry 1 has a key that is not random"),
        (f"k-1:{ONE_KEY}", "entry 1 is not id:base64"),
        (f"{'k' * 33}:{ONE_KEY}", "entry 1 is not id:base64"),
        (f"k1:{ONE_KEY},k1:{make_key()}", "entry 2 has the id of an entry before it"),
        (f"k1:{ONE_KEY},k2:{ONE_KEY}", "entry 2 has the key of an entry before it"),
    ],
)
def test_a_wrong_setting_is_refused_without_repeating_it(text, said):
    with pytest.raises(ImproperlyConfigured, match=said) as caught:
        parse(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.__cause__)
    assert ONE_KEY not in str(caught.value)

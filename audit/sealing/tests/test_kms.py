"""Heads signed by a key of AWS KMS: over the wire, by boto3 itself, against a service with a real Ed25519 key."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from django.core.exceptions import ImproperlyConfigured

from audit.sealing.keys import key_of, parse
from audit.sealing.kms import CannotSign, KmsSigner, public_key
from audit.sealing.rotation import kms_entry, new_entry
from audit.sealing.tests.conftest import Ledger, new_signer
from audit.sealing.tests.kms import ARN, Kms
from audit.verify import OK, Options, check_note, parse_head, parse_note, verify_database

PUBLIC = urlsafe_b64encode(bytes(range(32))).decode()


def signer(kms: Kms) -> KmsSigner:
    return KmsSigner("s2", ARN, kms.key.public_key().public_bytes_raw(), kms.url)


@pytest.mark.django_db(databases=[])
def test_a_file_hands_over_to_kms_and_back_with_one_signature_a_head(ledger: Ledger, kms: Kms) -> None:
    file, remote = new_signer("s1"), signer(kms)
    ledger.signers = [file]
    ledger.write(3)
    sealer = ledger.sealer()
    signed_by = []
    names: list[str] = []
    for signers in ([file], [remote, file], [remote], [file, remote], [file]):
        ledger.signers[:] = signers
        ledger.clock.now += 60
        sealer.step()
        note = parse_note(ledger.notes()[-1])
        keys = {str(key_of(parse_head(note.text).origin, each)): each.name for each in (file, remote)}
        names = list(keys)
        signed_by.append([keys[each] for each in check_note(note, names)])
    assert signed_by == [["s1"], ["s1", "s2"], ["s2"], ["s2", "s1"], ["s1"]]
    assert kms.asked == ["Sign"] * 3
    found = verify_database(ledger.dsn, Options(keys=(names[0],)))
    assert found.verdict == OK, str(found)


@pytest.mark.django_db(databases=[])
@pytest.mark.parametrize("wrong", ["refuses", "lies", "away"])
def test_without_a_good_signature_nothing_is_sealed_and_afterwards_everything(
    ledger: Ledger, kms: Kms, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.signers = [signer(kms)]
    sealer = ledger.sealer()
    sealer.step()
    ledger.write(3)
    if wrong == "away":
        ledger.signers[:] = [KmsSigner("s2", ARN, ledger.signers[0].public, "http://127.0.0.1:1")]
        ledger.clock.now += 5
    kms.failure, kms.lies = "DisabledException" if wrong == "refuses" else "", wrong == "lies"
    sentence = {"refuses": "enable the key", "lies": "another key's", "away": "cannot be reached"}[wrong]
    with pytest.raises(CannotSign, match=sentence):
        sealer.step()
    assert (len(ledger.notes()), ledger.leaves()) == (1, [])
    kms.failure, kms.lies, ledger.signers[:] = "", False, [signer(kms)]
    ledger.end_sealers()
    ledger.sealer().step()
    assert (len(ledger.notes()), len(ledger.leaves())) == (2, 3)


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("AccessDeniedException", "allow kms:Sign"),
        ("NotFoundException", "look at the ARN"),
        ("KMSInvalidStateException", "cancel its deletion"),
        ("UnrecognizedClientException", "credentials of the sealer are not valid"),
        ("AnythingElse", "AnythingElse at the test"),
    ],
)
def test_what_kms_refuses_is_said_with_what_to_do(kms: Kms, failure: str, advice: str) -> None:
    kms.failure = failure
    with pytest.raises(CannotSign, match=f"{failure}.*{advice}"):
        signer(kms).sign(b"text")


def test_an_entry_is_made_of_what_kms_says_and_read_again(kms: Kms) -> None:
    entry = kms_entry(parse(new_entry([])), ARN, kms.url)
    (again,) = parse(entry)
    assert again == signer(kms)
    assert again.sign(b"text") == kms.key.sign(b"text")
    assert kms.asked == ["GetPublicKey", "GetPublicKey", "Sign", "Sign"]


def test_a_key_that_is_of_another_kind_or_not_ours_is_not_used(kms: Kms) -> None:
    with pytest.raises(CannotSign, match="is not the one in LEDGER_SIGNING_KEYS"):
        KmsSigner("s2", ARN, bytes(32), kms.url).examine()
    kms.spec = "ECC_NIST_P256"
    with pytest.raises(CannotSign, match="is ECC_NIST_P256 for SIGN_VERIFY: it must be made with"):
        public_key(ARN, kms.url)
    with pytest.raises(CannotSign, match="Name the key by its ARN"):
        public_key("alias/ledger")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (f"awskms:///alias/ledger?public={PUBLIC}", "by its ARN"),
        (f"awskms:///{ARN}", "lacks the public key"),
        (f"awskms:///{ARN}?public=AAAA", "lacks the public key"),
        (f"awskms:///{ARN}?public={PUBLIC}&region=x", "unknown options"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_by_its_place(value: str, what: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"entry 1 .*{what}"):
        parse(f"s1:{value}")

"""Signs with a key that stays in AWS KMS: an Ed25519 key (KeySpec ECC_NIST_EDWARDS25519) that nobody can read.

An entry of LEDGER_SIGNING_KEYS holds the key's ARN and its public half, so that KMS is asked for signatures only, and a
signature of any other key is noticed before it goes anywhere.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

SCHEME = "awskms:///"
_ARN = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]{1,64}")
_SPEC = "ECC_NIST_EDWARDS25519"
_ALGORITHM = "ED25519_SHA_512"
# A head is signed up to three times a second, in a transaction: whoever answers later than this is as good as away.
_CONNECT_SECONDS, _ANSWER_SECONDS, _ATTEMPTS = 2, 3, 2

_ADVICE = {
    "AccessDeniedException": "allow kms:Sign and kms:GetPublicKey on it to the role of the sealer",
    "NotFoundException": "there is no such key: look at the ARN",
    "DisabledException": "enable the key",
    "KMSInvalidStateException": "the key is to be deleted, or not ready: cancel its deletion",
    "InvalidKeyUsageException": f"it must be made with KeyUsage SIGN_VERIFY and KeySpec {_SPEC}",
    "UnrecognizedClientException": "the credentials of the sealer are not valid",
    "ExpiredTokenException": "the credentials of the sealer have expired",
    "ThrottlingException": "the account's quota of requests is spent",
}


class CannotSign(Exception):
    """KMS gives no signature that can be used; the text says why, and what to do. Nothing was sealed."""

    code = "signing_key_unavailable"


@dataclass(frozen=True, slots=True)
class KmsSigner:
    """Signs with one key of KMS. Credentials are found as the AWS SDK finds them."""

    name: str
    arn: str
    public: bytes
    endpoint: str | None = None

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature, which fits the public key. Raises CannotSign."""
        answer = self._ask("sign", Message=message, MessageType="RAW", SigningAlgorithm=_ALGORITHM)
        signature: bytes = answer["Signature"]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature as error:
            raise CannotSign(
                f"The signature of {self.arn} does not fit the public key in LEDGER_SIGNING_KEYS: it is another key's."
            ) from error
        return signature

    def examine(self) -> None:
        """Raise CannotSign unless the key is of the right kind, is the one that is named, and may sign."""
        if public_key(self.arn, self.endpoint) != self.public:
            raise CannotSign(f"The public key of {self.arn} is not the one in LEDGER_SIGNING_KEYS.")
        self._ask("sign", Message=b"?", MessageType="RAW", SigningAlgorithm=_ALGORITHM, DryRun=True)

    def _ask(self, verb: str, **values: Any) -> Any:
        return _ask(self.arn, self.endpoint, verb, **values)

    def __str__(self) -> str:
        """The entry of LEDGER_SIGNING_KEYS."""
        options = {"public": base64.urlsafe_b64encode(self.public).decode()}
        if self.endpoint:
            options["endpoint"] = self.endpoint
        return f"{self.name}:{SCHEME}{self.arn}?{urlencode(options, safe='=:/')}"


def read(name: str, url: str) -> KmsSigner:
    """The signer that an entry names, `awskms:///<ARN of a key>?public=<base64>`; raises ValueError."""
    arn, _, query = url.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query))
    if not _ARN.fullmatch(arn):
        raise ValueError("does not name a key of KMS by its ARN (arn:aws:kms:region:account:key/id, no alias)")
    if unknown := set(options) - {"public", "endpoint"}:
        raise ValueError(f"has {len(unknown)} unknown options: there are public and endpoint")
    try:
        public = base64.b64decode(options.get("public", ""), altchars=b"-_", validate=True)
    except ValueError:
        public = b""
    if len(public) != 32:
        raise ValueError("lacks the public key: manage.py ledger rotate-key --kms prints the whole entry")
    return KmsSigner(name, arn, public, options.get("endpoint"))


def public_key(arn: str, endpoint: str | None = None) -> bytes:
    """The 32 bytes of the public key, as KMS has it. Raises CannotSign, also where the key is of another kind."""
    if not _ARN.fullmatch(arn):
        raise CannotSign("Name the key by its ARN: arn:aws:kms:region:account:key/id. An alias can be moved.")
    found = _ask(arn, endpoint, "get_public_key")
    if found["KeySpec"] != _SPEC or found["KeyUsage"] != "SIGN_VERIFY":
        kind = f"{found['KeySpec']} for {found['KeyUsage']}"
        raise CannotSign(f"{arn} is {kind}: {_ADVICE['InvalidKeyUsageException']}.")
    key = load_der_public_key(found["PublicKey"])
    assert isinstance(key, Ed25519PublicKey)
    return key.public_bytes_raw()


def _ask(arn: str, endpoint: str | None, verb: str, **values: Any) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return getattr(_client(_region(arn), endpoint), verb)(KeyId=arn, **values)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "DryRunOperationException":  # it would have been carried out
            return None
        advice = _ADVICE.get(code) or error.response["Error"].get("Message") or "look at its state"
        raise CannotSign(f"AWS KMS refuses {arn} ({code}): {advice}.") from error
    except BotoCoreError as error:
        _client.cache_clear()  # it keeps the credentials that it did not find
        raise CannotSign(f"AWS KMS cannot be reached for {arn}: {str(error).rstrip('.')}.") from error


def _region(arn: str) -> str:
    return arn.split(":")[3]


@lru_cache(maxsize=4)
def _client(region: str, endpoint: str | None) -> Any:
    # Here, since importing it takes a third of a second, and only a sealer with such a key needs it.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    return boto3.session.Session().client("kms", region_name=region, endpoint_url=endpoint, config=config)

"""A certificate authority of the tests."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """Signs certificates for names and addresses."""

    def __init__(self, name: str = "tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {name}")])
        self._certificate = self._signed(self._name, self._key.public_key(), None, authority=True)
        self.pem = self._certificate.public_bytes(Encoding.PEM).decode()

    def certificate(self, *names: str, days: int = 1) -> tuple[str, str]:
        """A certificate for these names or addresses, and its key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        made = self._signed(subject, key.public_key(), names, days=days)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return made.public_bytes(Encoding.PEM).decode(), private.decode()

    def files(self, folder: Path, *names: str, days: int = 1) -> tuple[Path, Path, Path]:
        """Certificate, key and authority as files."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = tuple(folder / name for name in ("certificate.pem", "key.pem", "ca.pem"))
        for path, text in zip(paths, (*self.certificate(*names, days=days), self.pem), strict=True):
            path.write_text(text)
        return paths[0], paths[1], paths[2]

    def _signed(self, subject, public, names, *, authority=False, days=1):
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if authority:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            made = made.add_extension(usage, critical=True)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        return made.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)

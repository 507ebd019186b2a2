"""The Ed25519 key that signs bundles: made on first use, readable by its owner alone, never printed or logged."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from truing.errors import DataError, StoreError, UsageError

KEY_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: str
    """Its 32 bytes in lower-case hexadecimal."""

    @property
    def sslib(self) -> SSlibKey:
        """The key as securesystemslib verifies with it."""
        return SSlibKey.from_crypto(self._crypto)

    @property
    def id(self) -> str:
        """The key id of TUF and in-toto: SHA-256 of the canonical description of the key, 64 hexadecimal digits."""
        return str(self.sslib.keyid)

    @property
    def pem(self) -> str:
        """The key as text to hand to others."""
        return self._crypto.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    @classmethod
    def from_pem(cls, text: bytes) -> PublicKey:
        """Parse what `pem` gave. UsageError where it is something else."""
        try:
            key = load_pem_public_key(text)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError("this is no public key in PEM form; `truing share keygen` prints one") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"the public key is of type {type(key).__name__}; bundles are signed with Ed25519 keys")
        return cls(key.public_bytes_raw().hex())

    @property
    def _crypto(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.raw))


class SigningKey:
    """A private key. It shows its id and nothing else."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.public = PublicKey(private.public_key().public_bytes_raw().hex())
        self.signer = CryptoSigner(private)

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id[:12]})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key, kept nowhere."""
        return cls(Ed25519PrivateKey.generate())


def key_path() -> Path:
    """Where the user's key lies: `$TRUING_CONFIG/key.pem`, else `truing/key.pem` in the XDG configuration folder."""
    if folder := os.environ.get("TRUING_CONFIG"):
        return Path(folder) / "key.pem"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "truing" / "key.pem"


def own_key(path: Path | None = None) -> SigningKey:
    """The user's key; made where there is none yet. Of two processes that make it at once, both get the same key."""
    path = path or key_path()
    try:
        return load_key(path)
    except FileNotFoundError:
        _make(path)
        return load_key(path)


def load_key(path: Path) -> SigningKey:
    """The key in a file.

    UsageError if others may read the file, DataError if it holds no Ed25519 key, FileNotFoundError if there is none.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if os.name == "posix" and mode & 0o077:
                raise UsageError(
                    f"the key {path} can be read by others (mode {mode:04o}). Run `chmod 600 {path}` if nobody else "
                    "had access; otherwise move it away and make a new one with `truing share keygen`."
                )
            private = load_pem_private_key(file.read(1 << 16), password=None)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(
            f"{path} holds no unencrypted private key in PEM form; move it away to make a new one"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DataError(f"{path} holds a key of another type than Ed25519; move it away to make a new one")
    return SigningKey(private)


def _make(path: Path) -> None:
    """Write a new key. The link makes it appear whole and at once, and never replaces a key that is there."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(SigningKey.generate().signer.private_bytes)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(
            f"cannot write a key to {path}: {error.strerror}. Name a folder of yours in TRUING_CONFIG."
        ) from error
    finally:
        part.unlink(missing_ok=True)

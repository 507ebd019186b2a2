"""The signed statement of a bundle: an in-toto Statement v1 about its manifest, in a DSSE envelope."""

from __future__ import annotations

import base64
import binascii
import copy
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError

from truing.errors import BundleError
from truing.records import Value, canonical
from truing.share.container import MANIFEST, STATEMENT
from truing.share.keys import PublicKey, SigningKey
from truing.share.manifest import Digest, parse_json

PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
PREDICATE_TYPE: Literal["urn:truing:bundle:1"] = "urn:truing:bundle:1"


class _Aliased(Value):
    """A value whose JSON has keys that are no Python names of ours."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class DigestSet(Value):
    """Digests of the thing that is stated about."""

    sha256: Digest


class Subject(Value):
    """The thing that is stated about: the manifest."""

    name: Literal["manifest.json"] = MANIFEST
    digest: DigestSet


class Tool(Value):
    """What packed the bundle."""

    name: Literal["truing"] = "truing"
    version: str


class Key(Value):
    """The public key that the signer signs with."""

    keytype: Literal["ed25519"] = "ed25519"
    public: Digest
    """32 bytes in hexadecimal."""


class Predicate(_Aliased):
    """What the signer states about the manifest."""

    roots: tuple[Digest, ...]
    tool: Tool
    public_key: Annotated[Key, Field(alias="publicKey")]
    about: dict[str, Any]
    """The packer's own words on what the evidence is about."""


class Statement(_Aliased):
    """in-toto Statement v1."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = (
        "https://in-toto.io/Statement/v1"
    )
    subject: tuple[Subject]
    predicate_type: Annotated[Literal["urn:truing:bundle:1"], Field(alias="predicateType")] = PREDICATE_TYPE
    predicate: Predicate

    @property
    def manifest(self) -> str:
        """SHA-256 of the manifest that was signed for."""
        return self.subject[0].digest.sha256

    @property
    def key(self) -> PublicKey:
        """The key that the statement says it is signed with."""
        return PublicKey(self.predicate.public_key.public)


class _Signature(Value):
    keyid: Digest
    sig: str


class _Envelope(Value):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]
    signatures: tuple[_Signature]


def sign(statement: Statement, key: SigningKey) -> bytes:
    """The statement in a DSSE envelope, as canonical JSON. Ed25519 is deterministic: same input, same bytes."""
    envelope = Envelope(canonical(statement.model_dump(mode="json")), PAYLOAD_TYPE, {})
    envelope.sign(key.signer)
    return canonical(envelope.to_dict())


def open_statement(data: bytes) -> Statement:
    """The statement in an envelope whose signature is valid for the key that the statement names. Else BundleError."""
    sealed = parse_json(data, _Envelope, name=STATEMENT)
    try:
        payload = base64.b64decode(sealed.payload, validate=True)
        # from_dict takes its argument apart, hence the copy.
        envelope = Envelope.from_dict(copy.deepcopy(json.loads(data)))
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise BundleError(f"{STATEMENT}: its envelope is not base64") from error
    if canonical(envelope.to_dict()) != data:
        raise BundleError(f"{STATEMENT}: its envelope is not as Truing writes it")
    statement = parse_json(payload, Statement, name=f"{STATEMENT} (payload)")
    key = statement.key
    try:
        envelope.verify([key.sslib], 1)
    except VerificationError as error:
        raise BundleError(
            f"{STATEMENT}: the signature does not fit its content and key {key.id[:12]}; one of the three was altered"
        ) from error
    return statement

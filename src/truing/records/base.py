"""Frozen values with an identity: the SHA-256 of their canonical JSON (RFC 8785)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import rfc8785
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from truing.errors import RecordError

Id = str
"""64 lower-case hexadecimal digits."""


def canonical(value: Any) -> bytes:
    """Canonical JSON bytes (RFC 8785) of plain data. RecordError where a number is not finite or too large."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, TypeError) as error:
        raise RecordError(f"cannot write canonical JSON: {error}. Numbers must be finite; ints below 2^53.") from error


def digest(data: bytes) -> Id:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> Id:
    """SHA-256 of the canonical JSON of plain data."""
    return digest(canonical(value))


class Value(BaseModel):
    """A frozen part of a record: it has no identity of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sparse(Value):
    """A value that gained fields: those are left out where they say nothing, so that it keeps the identity it had."""

    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _said(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = whole(self)
        return {key: value for key, value in plain.items() if value not in ("", [], (), None) or key not in self.later}


class Record(Value):
    """A frozen value with an identity. Clocks, durations and host facts stand outside it, in the store."""

    kind: ClassVar[str]
    schema_number: ClassVar[int] = 1

    parents: tuple[Id, ...] = ()

    @field_validator("parents")
    @classmethod
    def _are_ids(cls, parents: tuple[Id, ...]) -> tuple[Id, ...]:
        for parent in parents:
            if len(parent) != 64 or set(parent) - set("0123456789abcdef"):
                raise ValueError(f"parent {parent!r} is not a record id (64 hexadecimal digits)")
        return parents

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A changed copy, checked anew; it has an id of its own."""
        del deep  # records are frozen: nothing to copy deeply
        return type(self).model_validate(
            {**{name: getattr(self, name) for name in type(self).model_fields}, **(update or {})}
        )

    def plain(self) -> dict[str, Any]:
        """The record as plain data: kind, schema, parents, body."""
        body = self.model_dump(mode="json", exclude={"parents"})
        return {"kind": self.kind, "schema": self.schema_number, "parents": list(self.parents), "body": body}

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed, stored and packed."""
        return canonical(self.plain())

    @cached_property
    def id(self) -> Id:
        """SHA-256 of the canonical bytes."""
        return digest(self.canonical)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Parse plain data of this kind. RecordError where it does not fit."""
        try:
            return cls.model_validate({**plain["body"], "parents": tuple(plain["parents"])})
        except (ValidationError, KeyError, TypeError) as error:
            raise RecordError(f"a {cls.kind} record does not parse: {error}") from error

"""Tokens as the bytes that they stand for; a character may be spread over several tokens."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Any

from truing.targets.local.write import Ask, Token, Written

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
REMEMBERED = 2**18
"""Tokens whose bytes are remembered."""


class Pieces:
    """The tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._added: dict[int, str] = {at: str(token) for at, token in added}
        self._special = {*tokenizer.all_special_ids, *(at for at, token in added if token.special)}
        self._decoder = _decoder(tokenizer)
        self.bytes = lru_cache(REMEMBERED)(self._bytes)
        """What a token stands for within a text, a blank before a word included."""

    def special(self, token: int) -> bool:
        """Whether it is left out of a text."""
        return token in self._special

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        said = self._tokenizer.convert_ids_to_tokens(token)
        if said is None:  # a row of the model that the tokenizer has no token for
            return b""
        if "ByteLevel" in self._decoder:
            return bytes(self._alphabet[letter] for letter in said)
        if "ByteFallback" in self._decoder and (found := _BYTE.fullmatch(said)):
            return bytes([int(found[1], 16)])
        if _SPACE in self._decoder:
            return str(said).replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token])).encode()

    def name(self, token: int) -> str:
        r"""Its text; bytes that are no text of their own are spelled, "bytes:\xe2\x80", so that names differ."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def text(self, tokens: Iterable[int]) -> str:
        """What they stand for together; what is no UTF-8 becomes U+FFFD."""
        return b"".join(map(self.bytes, tokens)).decode(errors="replace")

    def starts(self, tokens: Iterable[int], *, special: bool) -> Iterator[int]:
        """Where in the text each token begins, in characters. `special`: special tokens are part of the text."""
        decoder, at = getincrementaldecoder("utf-8")("replace"), 0
        for token in tokens:
            data = self.bytes(token) if special or not self.special(token) else b""
            # Bytes before that this token does not go on with are a character by themselves, U+FFFD.
            yield at + bool(decoder.getstate()[0] and data and not 0x80 <= data[0] < 0xC0)
            at += len(decoder.decode(data))

    def shown(self, ask: Ask, written: Written) -> list[tuple[Token, int]]:
        """The tokens of a reply's text and where each begins, without those that a stop cut off but with its end."""
        finished = bool(written.ids) and written.ids[-1] in ask.ends
        cut = written.ended == "stop" and not finished
        starts = self.starts([token.id for token in written.tokens], special=ask.special)
        return [
            (token, min(at, len(written.text)))
            for token, at in zip(written.tokens, starts, strict=True)
            if not cut or at < len(written.text)
        ]

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        """The letters of byte-level vocabularies: printable bytes stand for themselves, others for U+0100 and on."""
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _decoder(tokenizer: Any) -> str:
    """How a fast tokenizer makes text of tokens, as JSON; "" where that is not known."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder.__getstate__().decode() if decoder is not None else ""

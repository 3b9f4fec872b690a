r"""
Keys and values on the command line: text, with ``\xNN`` for bytes that are none; or plain hexadecimal.

What `to_text` prints, `from_text` reads back as the same bytes.
"""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_SHORT: Final = {"\\": b"\\", "n": b"\n", "r": b"\r", "t": b"\t", "0": b"\x00"}


def from_text(text: str) -> bytes:
    r"""
    Bytes of a text with ``\xNN``, ``\\``, ``\n``, ``\r``, ``\t`` and ``\0``.

    Raises:
        ValueError: Another escape.
    """
    parts: list[bytes] = []
    at = 0
    for found in _ESCAPE.finditer(text):
        parts.append(text[at : found.start()].encode("utf-8", "surrogateescape"))
        code = found.group(1)
        if len(code) == 3:
            parts.append(bytes.fromhex(code[1:]))
        elif code in _SHORT:
            parts.append(_SHORT[code])
        else:
            message = (
                f"unknown escape \\{code} in {text!r}: write a backslash as \\\\ and any byte as \\xNN, or use --hex"
            )
            raise ValueError(message)
        at = found.end()
    parts.append(text[at:].encode("utf-8", "surrogateescape"))
    return b"".join(parts)


def to_text(data: bytes) -> str:
    r"""Readable form: UTF-8 where it is printable, ``\xNN`` where it is not."""
    parts: list[str] = []
    for character in data.decode("utf-8", "surrogateescape"):
        if character == "\\":
            parts.append("\\\\")
        elif character.isprintable():
            parts.append(character)
        else:
            parts += [f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape")]
    return "".join(parts)


def read_bytes(text: str, *, as_hex: bool) -> bytes:
    """
    Read one argument.

    Raises:
        ValueError: Not of that form; the text says what is.
    """
    if not as_hex:
        return from_text(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        message = f"{text!r} is not hexadecimal: two digits for each byte"
        raise ValueError(message) from None


def show_bytes(data: bytes, *, as_hex: bool) -> str:
    """Print one key or value."""
    return data.hex() if as_hex else to_text(data)

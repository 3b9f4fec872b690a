"""How keys and values look on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.cli.text import from_text, read_bytes, show_bytes, to_text


@given(st.binary(max_size=40))
def test_text_any_bytes_come_back_as_they_were(data):
    """What is printed can be typed in again and means the same bytes, on one line."""
    shown = to_text(data)

    assert data == from_text(shown)
    assert shown.isprintable()
    assert data == read_bytes(show_bytes(data, as_hex=True), as_hex=True)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("plain", b"plain"),
        (r"a\x00\xFFb", b"a\x00\xffb"),
        (r"\\x41", b"\\x41"),
        (r"\n\t\r\0", b"\n\t\r\0"),
        ("é", b"\xc3\xa9"),
    ],
)
def test_text_escapes_mean_what_they_say(text, data):
    """Two hexadecimal digits for any byte, a few short forms, UTF-8 for the rest."""
    assert data == from_text(text)


@pytest.mark.parametrize(
    ("text", "as_hex"), [(r"\q", False), ("\\", False), (r"\x4", False), ("abc", True), ("zz", True)]
)
def test_text_that_cannot_be_read_says_what_could(text, as_hex):
    """A wrong escape or digit is refused with the way out, never guessed."""
    with pytest.raises(ValueError, match=r"--hex|two digits"):
        read_bytes(text, as_hex=as_hex)

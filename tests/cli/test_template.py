from __future__ import annotations

import pytest

from rlog.cli.template import InvalidTemplate, compile_template
from rlog_client import Record

PLAIN = Record("t", 7, 1_767_225_600_123_456_789, None, {}, b"v\xff")
FULL = Record("t", 8, 1_767_225_600_000_000_000, b"k", {"a": b"1", "b": b"\xff"}, b"", -5)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (r"%o %t %k %v\n", b"7 2026-01-01T00:00:00.123456789Z  v\xff\n"),
        ("%o", b"7"),
        ("%T", b"1767225600123456789"),
        ("%K/%V", b"-1/2"),
        ("%l", b"t"),
        ("%h", b"{}"),
        ("[%e]", b"[]"),
        ("100%%\n", b"100%\n"),
        (r"\t\r\n\0\\\a\e\x25\xFf", b"\t\r\n\0\\\a\x1b%\xff"),
        ("\u00e9 %v", "\u00e9 ".encode() + b"v\xff"),
        ("\udcff", b"\xff"),
        ("", b""),
    ],
)
def test_directives_and_escapes(template: str, rendered: bytes) -> None:
    assert compile_template(template)([PLAIN]) == rendered


def test_a_record_with_everything() -> None:
    render = compile_template("%k %K %V %e %h|")
    assert render([FULL, FULL]) == b'k 1 0 -5 {"a":"1","b":{"b64":"/w=="}}|' * 2


def test_text_without_directives_is_repeated() -> None:
    assert compile_template("x%%")([PLAIN, FULL]) == b"x%x%"
    assert compile_template("%o")([]) == b""


@pytest.mark.parametrize(
    ("template", "at"),
    [
        ("%", 1),
        ("%z", 1),
        ("ab%", 3),
        ("\\", 1),
        (r"\q", 1),
        (r"\x1", 2),
        (r"\xzz", 2),
        ("%o%%%", 5),
    ],
)
def test_what_it_does_not_know_is_marked(template: str, at: int) -> None:
    with pytest.raises(InvalidTemplate) as caught:
        compile_template(template)
    assert caught.value.at == at
    assert str(caught.value).endswith("\n" + " " * (at + 2) + "^")

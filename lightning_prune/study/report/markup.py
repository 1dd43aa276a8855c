"""Markup from values: every text and attribute is escaped, whatever it holds."""

import html
import unicodedata
from collections.abc import Iterable

_VOID = frozenset(("link", "meta"))


class Markup(str):
    """A string that is markup already and is not escaped again."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Return a text as it may stand in markup; characters that no page may hold become the replacement sign."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(cleaned(str(text))))


def cleaned(text: str) -> str:
    """Return a text with the replacement sign in place of characters that no page may hold."""
    return "".join("\ufffd" if _is_barred(sign) else sign for sign in text)


def _is_barred(sign: str) -> bool:
    # controls and lone surrogates; marks of direction would turn the text around them as well
    return unicodedata.category(sign) in ("Cc", "Cs", "Cf") and sign not in "\n\t"


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        *children: texts, which are escaped, and markup, which is not.
        **attributes: ``class_`` stands for class, and any other ``_`` for a hyphen; None leaves an attribute out.
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>" if name in _VOID else f"<{name}{named}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Return the parts one after the other."""
    return Markup("".join(map(escaped, parts)))


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters.

    Parts between dots give all but their first letter, one after the other from the left, so that the names of a deep
    model stay different; numbers and the last part stay whole. Where that is not enough, the middle gives way.

    Example:
        >>> shortened("encoder.layers.11.attention.output", 20), shortened("a_very_long_name", 8)
        ('e.l.11.a.output', 'a_v…name')
    """
    parts = text.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= most:
            break
        parts[index] = part if part.isdigit() else part[:1]
    text = ".".join(parts)
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"

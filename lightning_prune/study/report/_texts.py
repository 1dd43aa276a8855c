"""Texts that anybody may have written, as a page and a picture can take them."""


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters.

    Parts between dots give all but their first letter, one after the other from the left, so that the names of a deep
    model stay different; numbers and the last part stay whole. Where that is not enough, the middle gives way.

    Example:
        >>> shortened("encoder.layers.11.attention.output", 20)
        'e.l.11.a.output'
        >>> shortened("a_very_long_name", 8)
        'a_v…name'
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

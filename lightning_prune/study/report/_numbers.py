"""Numbers as people read them, and the round numbers that an axis is marked with."""

import math
import re


def brief(value: float) -> str:
    """Return a number in four digits: whole ones with commas up to 9,999, larger ones in thousands k, M, G or T.

    Example:
        >>> [brief(v) for v in (0.98765, 12, 1234, 151274, 2.5e9, 1e-7)]
        ['0.9877', '12', '1,234', '151.3 k', '2.5 G', '1e-7']
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    sign, size = "−" if value < 0 else "", abs(value)
    if size == int(size) and size < 1e4:
        return f"{sign}{int(size):,}"
    if size < 1e-3 or size >= 999.95e12:
        return sign + re.sub(r"e\+?(-?)0*", r"e\1", f"{size:.3g}")
    power = 0
    while size >= (9999.5 if power == 0 else 999.95):
        size, power = size / 1000, power + 1
    text = _plain(size, max(0, 3 - math.floor(math.log10(size))))
    return f"{sign}{text} {'kMGT'[power - 1]}" if power else f"{sign}{text}"


def _plain(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def share(value: float) -> str:
    """Return a share in percent.

    Example:
        >>> share(0.905), share(1.0)
        ('90.5 %', '100 %')
    """
    return f"{_plain(100 * value, 2)} %" if math.isfinite(value) else brief(value)


def whole(value: float | None) -> str:
    """Return a whole number with commas, or a dash for None."""
    return "–" if value is None else f"{round(value):,}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from low to high, about ``count``: steps of 1, 2, 2.5 or 5 times a power of ten.

    Example:
        >>> ticks(0, 1), ticks(3, 17, 4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5.0, 10.0, 15.0])
    """
    rough = (high - low) / max(count, 1)
    if not (math.isfinite(rough) and rough > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return powers of ten from low to high, at most about ``count``; with less than two, 1, 2 and 5 times powers.

    Args:
        low: above 0.
        high: at least low.
        count: how many are wanted.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / max(count, 1)))
    powers = [10.0**power for power in range(first, last + 1, stride)]
    found = [tick for tick in powers if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(found) > 1:
        return found
    finer = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
    found = [tick for tick in finer if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return found if len(found) > 1 else [low, high][: 1 if low == high else 2]

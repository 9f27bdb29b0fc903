"""Bytes, times and ratios in words."""

from __future__ import annotations

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def unit_of(size: int) -> tuple[str, int]:
    """The unit in which a number of bytes is at least 1, and the bytes in it."""
    index = 0
    while index + 1 < len(UNITS) and abs(size) >= 1024 ** (index + 1):
        index += 1
    return UNITS[index], 1024**index


def format_bytes(size: int) -> str:
    """A number of bytes with one decimal in its unit, such as ``"14.5 MiB"``."""
    unit, scale = unit_of(size)
    return f"{size} B" if scale == 1 else f"{size / scale:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration, with its sign, such as ``"+1.25 ms"``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:+.3g} {unit}"
    return f"{seconds * 1e6:+.3g} us"


def counted(count: int, noun: str) -> str:
    """A count with its noun, such as ``"1 segment"`` or ``"2 segments"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

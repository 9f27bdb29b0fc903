"""What everything that draws holds before it starts to work: that the picture can be written."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from snnfx.errors import OptionError, SnnfxError

FORMATS = (".png", ".svg", ".pdf")


def check_picture_path(path: str | PathLike[str], error: type[SnnfxError] = OptionError) -> None:
    """Hold that a picture can be drawn there.

    Args:
        path: of the file to be.
        error: what to raise for a wrong one.

    Raises:
        SnnfxError: the suffix names no known format; of type `error`.
        ImportError: matplotlib is missing.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise error(f"cannot draw to '{path}': its suffix must be one of {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as missing:
        raise ImportError(
            "plots need matplotlib, which is missing: pip install 'snnfx[plot]'"
        ) from missing

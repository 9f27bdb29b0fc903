"""``python -m snnfx``."""

from __future__ import annotations

from snnfx.cli import main

if __name__ == "__main__":
    main(prog_name="snnfx")

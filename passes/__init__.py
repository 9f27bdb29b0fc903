"""Pure graph analyses, planners and rewrites, imported as ``snnfx.passes``."""

"""Rewritten steps as modules and as files: `snnfx.rewrite`, `snnfx.export`, `snnfx.load`."""

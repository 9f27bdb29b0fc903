"""Lowering: from planned graphs to functions that run."""

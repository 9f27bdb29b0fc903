"""Planners: they read the cost graph and know nothing of FX."""

"""Costs of graph nodes: bytes, packed bytes, FLOPs, and the NetworkX cost graph."""

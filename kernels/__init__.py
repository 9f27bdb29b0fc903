"""Kernels: lossless bit packing of tensors on a small grid. They know nothing of graphs."""

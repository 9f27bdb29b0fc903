"""Models that train eagerly: their steps recorded on fake tensors, and predictions from that."""

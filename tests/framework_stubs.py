"""Stands in for torchvision, which cannot be imported beside the CPU build of torch."""

from torchvision_stand_in import stand_in_for_torchvision

__all__ = ["stand_in_for_torchvision"]

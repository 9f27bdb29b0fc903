"""Capture of models as joint graphs: inside `torch.compile`, and offline from fake tensors."""

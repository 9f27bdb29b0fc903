"""Memory optimisation of models that train eagerly: what to checkpoint, decided from one record."""

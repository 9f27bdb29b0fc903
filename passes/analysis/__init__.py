"""Analyses: they return frozen facts about a graph and never write to it."""

"""Moves chips one way and instances back; knows only the contract of a model."""

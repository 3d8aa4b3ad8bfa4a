"""Accuracy, without torch."""

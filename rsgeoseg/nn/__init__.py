"""Blocks that two or more methods share."""

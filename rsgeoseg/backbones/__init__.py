"""Shared image encoders and SAM parts."""

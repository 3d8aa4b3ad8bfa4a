"""Rasters and vectors; knows no torch and no model."""

"""Oracle segmenters, scene generator with exact truth, Hypothesis strategies, contract suite."""

"""Benchmarks: speed and memory of `helpers.patching.sweep` beside its peers, as ratios within one run."""

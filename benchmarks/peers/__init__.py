"""Peers: other ways to compute the same patches, one module each.

Each has `blocks` and `heads`, which denoise (clean activations into the corrupted run) at the sites of
`benchmarks.cases`, and where need be a function that turns a Hugging Face GPT-2 into what these work on.
"""

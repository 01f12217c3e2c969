"""Stages beside a baseline written as its users would write it, in one run: ratios, never absolute times."""

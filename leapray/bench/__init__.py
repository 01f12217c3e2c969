"""Every stage against a baseline written as its users would write it, run beside it: ratios, never absolute times."""

"""What a training would take before it is started: rows, time, CPUs, bandwidth, memory, and what holds it back first.

The model, every formula and constant of it, stands in ``docs/planning.md``; :mod:`.model` is its arithmetic.
"""

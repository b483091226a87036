"""Measurements: ratios against a peer or a floor in the same run, never asserted in tests."""

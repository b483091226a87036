"""The engine on one GPU, taken directly: is it exact, and how near is it to what the memory allows?

Random weights made on the device, no network, no files of gigabytes.  `python -m benchmarks.gpu --help`.
"""

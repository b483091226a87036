"""Loads and what came of them: workloads, records, reports.

Knows neither HTTP nor the queue, so that the benchmark and the simulator measure with the same code.  All columns
are numpy arrays with one entry per request: a million requests take some 60 MB.  Everything random comes from
generators that the caller seeds.
"""

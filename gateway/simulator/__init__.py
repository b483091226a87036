"""The gateway without a world: its driver, policies and queue on virtual time, over engines that only take time.

Nothing here decides anything that the gateway decides: an engine's steps are planned by `triton_backend.plan` and
its memory is kept by `triton_backend.memory`, and all else is the code that serves.  A run is a function of its
configuration and seed.
"""

"""A tiny chat model trained from scratch, so that the whole gateway can be tried with no download."""

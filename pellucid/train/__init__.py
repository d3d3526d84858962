"""A checkpoint and data -> a better checkpoint, through the decoder that also serves it."""

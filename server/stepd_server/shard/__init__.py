"""A shard: a piece of every run's parameters with its buffers. Takes gradients, gives parameters."""

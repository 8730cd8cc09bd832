"""Compiled updates: what a rule does to a block, in one pass over memory instead of one for each NumPy call.

Nothing is written twice. A rule's own NumPy code is run once on recording arrays (trace.py), the record is turned into
one loop for LLVM (emit.py), and that is compiled for this processor (compiled.py). The loop does the same operations on
each element in the same order and precision, so the bits are the same: NumPy takes over wherever there is no kernel
(a rule that cannot be recorded, `stepd[fast]` not installed), in the middle of a run if need be.

What is done to elements as they arrive is one loop as well (gather.py, arriving.py), written by hand: it keeps the
order of sums that `shard/lanes.py` lays down.
"""

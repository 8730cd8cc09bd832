"""Every limit of stepd in one place, each with its reason."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- Layout -----------------------------------------------------------------------------------------------------

# Elements in a block: the unit in which tensors are split, rules are applied and sums are rounded. 256 KiB of float32:
# a block with its buffers and scratch stays in the second-level cache, and NumPy's cost for each call is small.
BLOCK_ELEMENTS: Final = 64 * KIB
# Elements of a tensor whose rule must see it whole (Muon, Adafactor): it lies on one shard, and an update takes scratch
# of its size. With seven arrays of this, which is what Muon needs, a shard is at 7 GiB of float32.
WHOLE_ELEMENTS_MAX: Final = 1 << 28

# Threads of a shard that compute at once: each has a slot in the memory of every run, and more than these wait for
# memory rather than compute.
COMPUTE_THREADS_MAX: Final = 16

# --- Wire -------------------------------------------------------------------------------------------------------

# Payload bytes of a chunk: near the best for gRPC; 64 KiB halves the throughput and 16 MiB gains nothing.
CHUNK_BYTES: Final = MIB
# What a receiver takes in one chunk, so that others may choose their own size without holding a server's memory.
CHUNK_BYTES_MAX: Final = 2 * MIB
# What a server takes in of a stream before it has to be read: one chunk in hand and one on its way. Left to itself gRPC
# lets this grow with the speed of the link, to tens of MiB for each worker that waits for its turn. As much as Linux
# keeps for a connection by default anyway: with 100 ms there and back it is 40 MiB in a second.
STREAM_WINDOW_BYTES: Final = 2 * CHUNK_BYTES_MAX
# Messages of a pull that a shard keeps for readers after the first: as far as workers drift apart on a busy machine.
MESSAGES_KEPT: Final = 8
# Shared memory: below this a message that holds the elements is as quick as one that says where they lie.
SHARED_BYTES_MIN: Final = 64 * KIB
# A contribution up to this size, of a shard with as little to pull, goes there and back in one call: below it a step is
# calls and not bytes. A shard may hold as much for each worker whose round is yet to begin, as it may of a stream.
AT_ONCE_BYTES_MAX: Final = 64 * KIB
# What holds it, with everything that names it.
AT_ONCE_MESSAGE_BYTES_MAX: Final = 4 * AT_ONCE_BYTES_MAX
# What is copied into shared memory, or finished there, between two messages that say so: few messages, and the other
# side begins early.
SHARED_BYTES_AT_ONCE: Final = 8 * MIB
# What a shard adds of a contribution in shared memory at once, on all its cores: some milliseconds, and then one of
# somebody else may go on. It holds no memory.
SHARED_BYTES_TAKEN: Final = 16 * MIB
# gRPC's own default, kept: small messages are far below it, and chunks are bounded above.
MESSAGE_BYTES_MAX: Final = 4 * MIB
# A layout names every tensor of a run in one message; this and the name's length keep it below MESSAGE_BYTES_MAX.
PARAMETERS_MAX: Final = 20_000

# --- Names and shapes -------------------------------------------------------------------------------------------

# A run's name is part of file names and of metrics.
RUN_NAME_CHARS_MAX: Final = 128
WORKER_NAME_CHARS_MAX: Final = 128
PARAMETER_NAME_CHARS_MAX: Final = 512
# Goes with every call, in the 8 KiB of its metadata.
TOKEN_CHARS_MAX: Final = 1024
DIMENSIONS_MAX: Final = 64  # NumPy's own
# Elements of one run; offsets stay far below 2^63 even when counted in bytes.
ELEMENTS_MAX: Final = 1 << 44
GROUPS_MAX: Final = 1024
RUNS_MAX: Final = 1024
SHARDS_MAX: Final = 1024
WORKERS_MAX: Final = 65_536
# Steps: more than any run takes, and far from where a 64-bit sum could wrap.
STALENESS_MAX: Final = 1 << 48
# Memberships that a place remembers to have been taken over from, so that a late repeat of an old join does not take it
# back; and empty places that a run can name when it waits for workers.
REPLACED_MAX: Final = 8
GONE_MAX: Final = 64
# Workers whose contributions a shard counts that come again; it tells of them with every registration.
REPEATING_MAX: Final = 256
# Memberships of a run of which a shard remembers what it has counted: as many as can be members, 56 bytes each on file.
COUNTED_MAX: Final = WORKERS_MAX
# Changes of a run that it remembers to have made: so many by others may come between a change and its repeat.
CHANGES_MAX: Final = 256

# --- Time (seconds) ---------------------------------------------------------------------------------------------

# A shard registers again so often; after the timeout without a word it is taken for dead.
SHARD_INTERVAL_S: Final = 1.0
SHARD_TIMEOUT_S: Final = 5.0
# A worker renews its lease three times within it, so that one lost call does not end a membership.
LEASE_RENEWALS: Final = 3
LEASE_S_MIN: Final = 1.0
LEASE_S_MAX: Final = 3600.0
# A run that nobody loads parameters into is dropped after this, and its name is free again; a group that is being
# added and not heard of for so long gives way to the next.
LOADING_TIMEOUT_S: Final = 120.0
# A call that waits for a round is answered at least so often, so that a dead connection is noticed.
WAIT_S: Final = 20.0
# How long a step waits for a reader of the version it is about to overwrite before the reader is sent away.
READER_GRACE_S: Final = 10.0
# A reader that has been sent away is waited for twice as long the next time, up to this: on a slow link, too, it must
# come to an end, and a step must not wait for ever for one that reads nothing.
READER_GRACE_S_MAX: Final = 80.0
# How long the owner of a run may have a round wait for latecomers: a lease cannot be longer either.
GRACE_S_MAX: Final = 3600.0
# What contributions that were arriving when their round was closed get at least to arrive whole: 1 MiB and a pause.
STRAGGLERS_S_MIN: Final = 1.0
# Time that servers give to calls under way when they are told to stop.
DRAIN_S: Final = 3.0

# --- State ------------------------------------------------------------------------------------------------------

# A staged state that nobody puts into use is dropped after this.
STAGED_S: Final = 120.0
STATE_ID_CHARS_MAX: Final = 64
# Counts of updates are 64-bit integers on shards, and rules compute with them as doubles.
UPDATES_MAX: Final = 1 << 53

# --- Watching ---------------------------------------------------------------------------------------------------

# Events kept for a reader that does not read; then the oldest are dropped.
WATCH_EVENTS_MAX: Final = 1024
METRICS_MAX: Final = 64
METRIC_NAME_CHARS_MAX: Final = 64
# Reported values that a schedule has yet to be told, kept while the coordinator is away; then the oldest are dropped.
OBSERVATIONS_MAX: Final = 1024

# --- Metrics ----------------------------------------------------------------------------------------------------

# A scrape is one line and a few headers.
SCRAPE_REQUEST_BYTES_MAX: Final = 8 * KIB
# One or two Prometheus servers, and whoever looks by hand; each holds at most one text.
SCRAPES_AT_ONCE: Final = 16
# From the connection to the last byte: Prometheus gives up after 10 s itself.
SCRAPE_S: Final = 10.0
# What a supervisor waits for each process of its fleet, all at once: within the time of a scrape.
SCRAPE_PART_S: Final = 3.0
# What it takes from each: far above what all runs of a fleet come to.
SCRAPE_BYTES_MAX: Final = 64 * MIB
# Workers of a run with series of their own, those of lowest rank: a few lines each, and a series for good in whoever
# stores them.
SCRAPED_WORKERS_MAX: Final = 512

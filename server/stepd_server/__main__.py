"""The entry of every server process."""

import os
import sys

# Servers scale by processes. NumPy's linear algebra would start a thread for every core in each of them;
# the libraries read this once, when NumPy is imported.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# gRPC's core writes lines of its own to standard error, about what it reports to us as well.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from stepd_server.cli import main  # noqa: E402  (after the environment is set)

if __name__ == "__main__":
    sys.exit(main())

"""A real classifier of handwritten digits, trained on a real fleet: `stepd demo`.

`data` has the digits, `model` a small network with its gradient, `worker` the program of one worker process (on
Kubernetes too), and `run` the command that starts a fleet and workers on this machine and shows how they get on.
"""

from typing import Final

# Of its training, unless it is asked for others.
STEPS: Final = 600

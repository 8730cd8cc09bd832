"""The command `stepd`.

`serve`, `coordinator` and `shard` are the server's and are handed over to it; the others are users of the library.
Exit codes: 0 done, 1 failed (one line on standard error says why), 2 usage, 130 interrupted.
"""

from stepd.cli.main import main as main

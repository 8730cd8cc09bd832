"""`python -m stepd.cli`, the same as `stepd`."""

import sys

from stepd.cli.main import main

sys.exit(main())

"""How long a test waits for what comes about by itself."""

# Nothing waits this long when all is well, on however busy a machine; a test that hangs is ended by its own limit.
PATIENCE_S = 100.0

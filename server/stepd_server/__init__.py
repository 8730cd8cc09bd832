"""The servers of stepd: `python -m stepd_server serve | coordinator | shard`."""

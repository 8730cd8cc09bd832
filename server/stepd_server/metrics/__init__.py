"""Numbers for Prometheus: what there is to measure, as text, over HTTP, of one process or of a whole fleet."""

"""The manifests in deploy/: rendered as a user would, then held to what is true of Kubernetes and of the program.

`manifests` renders and reads them, the `check_*` modules say what must hold, `mutants` breaks each of these once.
"""

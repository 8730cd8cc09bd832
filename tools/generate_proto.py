"""Generate client/stepd/v1 from proto/, or check that it is current.

    python tools/generate_proto.py            write
    python tools/generate_proto.py --check    compare; exit code 1 and a list of files if they differ

Run it with the environment of requirements/proto.txt: `make proto`, `make proto-check`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = Path("stepd/v1")
TARGET = ROOT / "client" / PACKAGE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if what is there is not current")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = contents(Path(folder) / PACKAGE)
    there = contents(TARGET)
    stale = sorted(name for name in fresh.keys() | there.keys() if fresh.get(name) != there.get(name))
    if check:
        for name in stale:
            print(f"{TARGET.relative_to(ROOT) / name} does not fit proto/: run `make proto`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in fresh:
            (TARGET / name).write_bytes(fresh[name])
        else:
            (TARGET / name).unlink()
    print(f"{len(fresh)} files, {len(stale)} changed")
    return 0


def generate(folder: Path) -> None:
    """Write what protoc makes of every file under proto/."""
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / PACKAGE).glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *outputs, *sources]):
        raise SystemExit("protoc failed")


def contents(folder: Path) -> dict[str, bytes]:
    """Generated files by name; __init__.py is ours."""
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}


if __name__ == "__main__":
    sys.exit(main())

#!/bin/sh
# tools/make_venv.sh PYTHON FOLDER: make a virtual environment, or say what is missing for it.
set -eu
python=$1
folder=$2

if ! command -v "$python" >/dev/null 2>&1; then
    echo "stepd needs Python 3.11 or newer, and there is no '$python'. Another one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "stepd needs Python 3.11 or newer; '$python' is $("$python" -V). Another one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$folder"
elif command -v uv >/dev/null 2>&1; then
    uv venv --quiet --seed --python "$python" "$folder"
elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet "$folder"
else
    echo "'$python' cannot make virtual environments: its module venv or ensurepip is not installed." >&2
    echo "On Debian and Ubuntu: apt-get install python3-venv. Or install uv or virtualenv." >&2
    exit 1
fi

#!/bin/bash
# Installs the readers of requirements.txt into a virtual environment of their own, once.
set -euo pipefail
home=${KVMBAKE_JUDGES:-${XDG_CACHE_HOME:-$HOME/.cache}/kvmbake-judges}
list=$(dirname "$0")/requirements.txt
cmp -s "$list" "$home/requirements.txt" && exit 0
rm -rf "$home"
mkdir -p "$(dirname "$home")"
python3 -m venv "$home" || { echo "judges: python3 has no venv; install the Debian package python3-venv" >&2; exit 1; }
"$home/bin/pip" --quiet --disable-pip-version-check install -r "$list"
cp "$list" "$home/requirements.txt"

#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
root=${XDG_CACHE_HOME:-$HOME/.cache}/lightning_prune/arm

usage() {
    cat <<'EOT'
Usage: probe_on_arm.sh [--root FOLDER] PROBE RESULTS.json

Runs the folder that export_probe wrote in the aarch64 ExecuTorch runtime, under user-mode emulation, and writes what each
program took. That is the time of the emulator: it shows that the programs, the plan and the results fit together, and says
nothing of a phone. Exit status 2 for wrong arguments, 3 if the emulation cannot be set up.

  --root FOLDER       the aarch64 root folder, see verify_on_arm.sh
  -h, --help          this text

PYTHON names an interpreter with torch, executorch and pip (default: python3).
EOT
}

refuse() {
    echo "probe_on_arm: $*" >&2
    exit 2
}

case ${1:-} in
    -h | --help) usage && exit 0 ;;
    --root)
        [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
        root=$2
        shift 2
        ;;
esac
[ $# -eq 2 ] || refuse "give the folder of a probe and the path of the results; see --help"
[ -f "$1/plan.json" ] || refuse "$1 has no plan.json: it is no folder of export_probe"
source "$here/arm/emulation.sh"
read_versions probe
grep -q "\"runtime\": \"executorch $executorch_version\"" "$1/plan.json" ||
    refuse "$1 was not written for executorch $executorch_version, which would run it: export it again"

set_up_root

log=$(mktemp)
trap 'rm -f "$log"' EXIT
emulated_python "$here/arm/probe.py" "$here/../lightning_prune" "$1" "$2" 2>"$log" || {
    cat "$log" >&2
    echo "probe_on_arm: the emulated run failed, see above" >&2
    exit 1
}

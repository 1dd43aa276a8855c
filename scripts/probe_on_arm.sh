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
versions=$("$python" -c 'from importlib.metadata import version as v; print(v("torch").split("+")[0], v("executorch"))' 2>/dev/null) ||
    refuse "$python has no torch and executorch: set PYTHON to the interpreter of the environment that made the probe"
read -r torch_version executorch_version <<<"$versions"
grep -q "\"runtime\": \"executorch $executorch_version\"" "$1/plan.json" ||
    refuse "$1 was not written for executorch $executorch_version, which would run it: export it again"

mkdir -p "$root" 2>/dev/null || refuse "--root: $root cannot be created"
root=$(cd "$root" && pwd)/torch-$torch_version-executorch-$executorch_version
exec 9>"$root.lock"
flock 9
if [ ! -d "$root" ]; then
    PYTHON=$python "$here/arm/setup.sh" "$root" "$torch_version" "$executorch_version" 9>&-
fi
exec 9>&-

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# With -cpu max (SVE) int8 comes out wrong.
qemu-aarch64-static -cpu neoverse-n1 -L "$root" -E PYTHONPATH="$root/site" -E PYTHONDONTWRITEBYTECODE=1 \
    -E LD_LIBRARY_PATH="$root/stub" -E OMP_NUM_THREADS=1 "$root/usr/bin/python3.11" \
    "$here/arm/probe.py" "$here/../lightning_prune" "$1" "$2" 2>"$log" || {
    cat "$log" >&2
    echo "probe_on_arm: the emulated run failed, see above" >&2
    exit 1
}

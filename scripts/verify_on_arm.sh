#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
root=${XDG_CACHE_HOME:-$HOME/.cache}/lightning_prune/arm
tolerance=1e-4
files=()

usage() {
    cat <<'EOT'
Usage: verify_on_arm.sh [--root FOLDER] [--tolerance NUMBER] FILE.pte ...

Runs .pte files in the aarch64 ExecuTorch runtime, under user-mode emulation, on the inputs on which they are also run
here, and compares the outputs. One line of JSON per file; exit status 0 if every file gives finite outputs within the
tolerance, 1 if one does not, 2 for wrong arguments, 3 if the emulation cannot be set up.

  --root FOLDER       the aarch64 root folder; set up on first use from Debian's packages and PyPI (about 2 minutes,
                      1.5 GB; root rights where qemu-user-static, mmdebstrap or gcc-aarch64-linux-gnu must be installed)
                      default: ~/.cache/lightning_prune/arm
  --tolerance NUMBER  largest absolute difference accepted from float programs (default 1e-4)
  -h, --help          this text

PYTHON names an interpreter with torch, numpy, executorch and pip (default: python3); the emulated side gets the same
versions of torch and executorch. XNNPACK and portable programs run there; other backends do not.
EOT
}

refuse() {
    echo "verify_on_arm: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --root | --tolerance)
            [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
            if [ "$1" = --root ]; then root=$2; else tolerance=$2; fi
            shift 2
            ;;
        -*) refuse "unknown option $1; see --help" ;;
        *)
            [ -f "$1" ] || refuse "$1: no such file"
            files+=("$(cd "$(dirname "$1")" && pwd)/$(basename "$1")")
            shift
            ;;
    esac
done
[ ${#files[@]} -gt 0 ] || refuse "no .pte given; see --help"
[[ $tolerance =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]] || refuse "--tolerance: got $tolerance, must be a number, as in 1e-4"

source "$here/arm/emulation.sh"
read_versions files

set_up_root

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$here/arm/outputs.py" write "$work" "${files[@]}" 2>"$work/log" || {
    cat "$work/log" >&2
    refuse "the files cannot be run here, see above: they need the XNNPACK or the Portable backend"
}
emulated_python "$here/arm/outputs.py" compare "$work" "${files[@]}" 2>"$work/log" | tee "$work/results" || {
    cat "$work/log" >&2
    echo "verify_on_arm: the emulated run failed, see above" >&2
    exit 1
}
"$python" - "$work/results" "$tolerance" <<'EOT'
import json, sys

results = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
bad = [r["file"] for r in results if not (r["finite"] and r["max_abs_error"] <= float(sys.argv[2]))]
if bad:
    sys.exit(f"verify_on_arm: not within {sys.argv[2]}: {', '.join(bad)}")
EOT

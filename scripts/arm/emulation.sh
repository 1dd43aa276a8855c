# shellcheck shell=bash
# Sourced by verify_on_arm.sh and probe_on_arm.sh, which set here, python and root, and define refuse.

# Set torch_version and executorch_version, those of the interpreter that made the files; $1 names these.
read_versions() {
    local versions
    versions=$("$python" -c 'from importlib.metadata import version as v; print(v("torch").split("+")[0], v("executorch"))' 2>/dev/null) ||
        refuse "$python has no torch and executorch: set PYTHON to the interpreter of the environment that made the $1"
    read -r torch_version executorch_version <<<"$versions"
}

# Make root the folder of these versions, set up on first use; a second process waits.
set_up_root() {
    mkdir -p "$root" 2>/dev/null || refuse "--root: $root cannot be created"
    root=$(cd "$root" && pwd)/torch-$torch_version-executorch-$executorch_version
    exec 9>"$root.lock"
    flock 9
    if [ ! -d "$root" ]; then
        PYTHON=$python "$here/arm/setup.sh" "$root" "$torch_version" "$executorch_version" 9>&-
    fi
    exec 9>&-
}

# Run Python in the root with the arguments. With -cpu max (SVE) int8 comes out wrong.
emulated_python() {
    qemu-aarch64-static -cpu neoverse-n1 -L "$root" -E PYTHONPATH="$root/site" -E PYTHONDONTWRITEBYTECODE=1 \
        -E LD_LIBRARY_PATH="$root/stub" -E OMP_NUM_THREADS=1 "$root/usr/bin/python3.11" "$@"
}

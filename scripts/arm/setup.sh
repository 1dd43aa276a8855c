#!/usr/bin/env bash
# An aarch64 root folder in which the Arm wheels of torch and executorch run under user-mode emulation.
# Called by emulation.sh: setup.sh ROOT TORCH_VERSION EXECUTORCH_VERSION   (PYTHON: an interpreter with pip)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1
torch_version=$2
executorch_version=$3
python=${PYTHON:-python3}

packages=(qemu-user-static mmdebstrap gcc-aarch64-linux-gnu binutils-aarch64-linux-gnu debian-archive-keyring)
tools=(qemu-aarch64-static mmdebstrap aarch64-linux-gnu-gcc aarch64-linux-gnu-readelf)
wheels=(
    "torch==$torch_version" "executorch==$executorch_version" "numpy<2.5" typing_extensions sympy mpmath networkx
    jinja2 markupsafe filelock fsspec packaging flatbuffers
)

stop() {
    echo "verify_on_arm: $*" >&2
    exit 3
}

install_tools() {
    local missing=()
    for tool in "${tools[@]}"; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null ||
        stop "${missing[*]} not found, and there is no apt-get to install them: run this on Debian or Ubuntu"
    local -a as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null ||
            stop "${missing[*]} not found, and installing needs root: sudo apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq "${packages[@]}"; } >/dev/null ||
        stop "apt-get could not install ${packages[*]}: see its messages above"
}

# XNNPACK's cpuinfo reads the processor from these files and crashes without them.
describe_processor() {
    local cpu identification
    mkdir -p "$1/proc"
    for cpu in 0 1; do
        identification="$1/sys/devices/system/cpu/cpu$cpu/regs/identification"
        mkdir -p "$identification"
        echo 0x00000000414fd0c1 >"$identification/midr_el1"
        cat <<EOT
processor	: $cpu
BogoMIPS	: 243.75
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

EOT
    done >"$1/proc/cpuinfo"
}

install_tools
partial="$root.partial"
rm -rf "$partial"
trap 'rm -rf "$partial"' EXIT
mkdir -p "$(dirname "$root")"
echo "verify_on_arm: setting up $root (about 2 minutes, 1.5 GB)" >&2
mmdebstrap --quiet --variant=extract --architectures=arm64 \
    --include=python3.11,libpython3.11-stdlib,libstdc++6,libgomp1,libopenblas0-pthread bookworm "$partial" ||
    stop "mmdebstrap could not unpack Debian's arm64 packages: see its messages above"
"$python" -m pip install --quiet --disable-pip-version-check --target "$partial/site" --no-deps --only-binary=:all: \
    --python-version 3.11 --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 "${wheels[@]}" || stop "pip could not download the Arm wheels: see its messages above"
describe_processor "$partial"
"$python" "$here/stand_ins.py" "$partial" || stop "the CUDA stand-ins could not be built"
rm -rf "$root"
mv "$partial" "$root"

"""Stand-in libraries for the CUDA libraries that the aarch64 torch wheel links against, so that it loads on a CPU.

Each stand-in carries the file name, the symbol versions and the symbols that the wheel asks of the real one; every
function returns an error code. Usage: stand_ins.py ROOT (a folder made by setup.sh); they are written to ROOT/stub.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

COMPILER = "aarch64-linux-gnu-gcc"
READER = "aarch64-linux-gnu-readelf"


@dataclass(frozen=True)
class Wanted:
    """What the wheel's libraries ask of the missing ones.

    Args:
        versions: {file name: its symbol versions}.
        symbols: {file name: {symbol version, or "" without one: symbols}}.
    """

    versions: Mapping[str, set[str]]
    symbols: Mapping[str, Mapping[str, set[str]]]


def read(flag: str, library: Path) -> str:
    """Return what readelf says of a library."""
    return subprocess.run([READER, flag, "-W", str(library)], capture_output=True, text=True, check=True).stdout


def dynamic_symbols(library: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (binding, whether it is defined here, name@version) per dynamic symbol."""
    for line in read("--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[0].endswith(":"):
            yield columns[4], columns[6] != "UND", columns[7]


def needed_versions(libraries: Iterable[Path], missing: set[str]) -> dict[str, set[str]]:
    """Return {missing file name: symbol versions that are asked of it}."""
    versions: dict[str, set[str]] = defaultdict(set)
    for library in libraries:
        asked = ""
        for line in read("-V", library).splitlines():
            if file := re.search(r"File: (\S+)", line):
                asked = file.group(1)
            if asked in missing and (version := re.search(r"Name: (\S+)\s+Flags", line)):
                versions[asked].add(version.group(1))
    return versions


def wanted(libraries: list[Path], system: list[Path]) -> Wanted:
    """Return what the libraries ask for that neither they nor the system's ones define."""
    present = {path.name for path in (*libraries, *system)}
    asked = {name for library in libraries for name in re.findall(r"NEEDED.*\[(.*?)\]", read("-d", library))}
    missing = asked - present
    versions = needed_versions(libraries, missing)
    owner = {version: file for file, known in versions.items() for version in known}
    unversioned = next(name for name in sorted(missing) if name.startswith("libcudart"))
    known = {name.split("@")[0] for path in (*libraries, *system) for _, here, name in dynamic_symbols(path) if here}
    symbols: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in sorted(missing)}
    for library in libraries:
        for binding, here, text in dynamic_symbols(library):
            name, _, version = text.partition("@")
            version = version.strip("@")
            if not here and binding != "WEAK" and name and name not in known:
                file = owner.get(version, unversioned)
                symbols[file][version if version in owner else ""].add(name)
    return Wanted(versions, symbols)


def assembly(names: Iterable[str]) -> str:
    """Return functions of these names: those that give a text give one, the others an error code."""
    code = [".text"]
    for name in names:
        body = " mov x0,#100\n ret"
        if "String" in name or name.endswith("Name"):
            body = ' adr x0,98f\n ret\n98: .asciz "stand-in"\n .balign 4'
        code.append(f".global {name}\n.type {name},%function\n{name}:\n{body}")
    return "\n".join([*code, " mov x0,#100\n ret\n"])


def version_script(symbols: Mapping[str, set[str]], versions: set[str]) -> str:
    """Return the linker's version script: every version, with its symbols."""
    lines = [f"{version} {{ global: {' '.join(f'{name};' for name in sorted(symbols[version]))} }};"
             for version in sorted(symbols) if version]  # fmt: skip
    return "\n".join([*lines, *(f"{version} {{ }};" for version in sorted(versions - symbols.keys()))]) + "\n"


def build(file: str, symbols: Mapping[str, set[str]], versions: set[str], folder: Path) -> None:
    """Compile one stand-in into the folder."""
    with tempfile.TemporaryDirectory() as work:
        source, script = Path(work, "code.s"), Path(work, "versions.map")
        source.write_text(assembly(sorted(set().union(*symbols.values()))), encoding="utf-8")
        script.write_text(version_script(symbols, versions), encoding="utf-8")
        options = [f"-Wl,--version-script={script}"] if versions else []
        command = [COMPILER, "-shared", "-nostdlib", "-o", folder / file, f"-Wl,-soname,{file}", *options, source]
        subprocess.run(command, check=True)


def main(root: Path) -> None:
    """Write every stand-in that the wheel in this root needs to root/stub."""
    torch = root / "site" / "torch"
    libraries = [*torch.glob("lib/*.so*"), *torch.glob("_C*.so")]
    folders = [root / "lib/aarch64-linux-gnu", root / "usr/lib/aarch64-linux-gnu"]
    system = [path for folder in folders for path in folder.glob("*.so*") if path.is_file()]
    need = wanted(libraries, [*system, root / "usr/bin/python3.11"])
    folder = root / "stub"
    folder.mkdir(exist_ok=True)
    for file, symbols in need.symbols.items():
        build(file, symbols, need.versions.get(file, set()), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

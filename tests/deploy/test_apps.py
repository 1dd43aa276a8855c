"""The sample code of the bundles and the apps: vectors, Kotlin and, where there is a compiler, Swift."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from make_vectors import to_json
from vectors.manifests import PROGRAM, RING, manifest
from vectors.probes import probe

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "lightning_prune" / "deploy" / "sample"
LOGIC = SAMPLE / "kotlin" / "logic"
VECTORS = ROOT / "examples" / "shared" / "vectors.json"
STAND_INS = ROOT / "tests" / "stand_ins"
NO_FILE_FITS = ("size is negative", "sha256 is no hash", "shape too large")
"""Manifests that are whole by themselves, and describe no file that there could be."""

# the wheel kotlin-jupyter-kernel, which `make apps` installs, holds the compiler, which has no wheel of its own
WHEEL = importlib.util.find_spec("run_kotlin_kernel")
JARS = Path(next(iter(WHEEL.submodule_search_locations or ()))) / "jars" if WHEEL else Path("no/jars")
KERNEL = [str(path) for path in JARS.glob("kotlin-jupyter-kernel-*-all.jar")]
STDLIB = [str(path) for path in JARS.glob("kotlin-stdlib-*.jar")]

needs_kotlin = pytest.mark.skipif(
    not (shutil.which("java") and KERNEL), reason="needs Java and the Kotlin compiler of make apps"
)
needs_swift = pytest.mark.skipif(not shutil.which("swift"), reason="needs Swift: Debian 13's swiftlang, or Xcode")


def test_the_vectors_are_what_the_script_makes() -> None:
    assert VECTORS.read_text(encoding="utf-8") == to_json(), "run python scripts/make_vectors.py"


def test_python_refuses_what_the_phones_refuse(tmp_path: Path) -> None:
    from lightning_prune.deploy.artifact.manifest import load_manifest
    from lightning_prune.errors import ExportError

    for case in json.loads(VECTORS.read_text(encoding="utf-8"))["manifests"]:
        path = tmp_path / "model.json"
        path.write_bytes(case["text"].encode())
        if "holds" in case:
            assert load_manifest(path)["program"] == "model.pte"
        elif case["name"] not in NO_FILE_FITS:
            with pytest.raises(ExportError):
                load_manifest(path)


def test_python_reads_what_the_phones_write() -> None:
    from lightning_prune.deploy.probe import Probe, ProbeResults

    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    plan = Probe.from_json(vectors["probe_plans"][0]["text"])
    for run in vectors["probe_runs"]:
        results = ProbeResults.from_json(run["results"])
        failed = {*run["missing"], *run["failing"]}
        assert results.failed.keys() == failed
        assert results.nanoseconds.keys() | failed == {program.name for program in plan.programs}
        if failed:
            with pytest.raises(ValueError, match=r"programs failed on a \"phone\""):
                plan.table(results)
        else:
            assert [a.milliseconds for a in plan.table(results).networks[0].anchors] == [0.09, 7e-6]
    for case in vectors["probe_plans"]:
        if "holds" not in case:
            with pytest.raises(ValueError, match="plan of a probe") as raised:
                Probe.from_json(case["text"])
            assert case["tells"] in str(raised.value), case["name"]


@pytest.mark.parametrize(("folder", "allowed"), [
    (LOGIC, ("java.",)),
    (SAMPLE / "swift" / "Sources" / "LightningPruneLogic", ("Foundation", "Dispatch", "CryptoKit")),
])  # fmt: skip
def test_the_logic_knows_nothing_of_a_phone(folder: Path, allowed: tuple[str, ...]) -> None:
    sources = [path for path in folder.iterdir() if path.suffix in (".kt", ".swift")]
    assert len(sources) >= 6
    for path in sources:
        for name in re.findall(r"^import (\S+)", path.read_text(), re.MULTILINE):
            assert name.startswith(allowed), f"{path.name} imports {name}"


def test_the_runtimes_in_the_samples_are_those_of_the_oldest_exporter() -> None:
    oldest = re.findall(r'^mobile = \["executorch>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    gradle = re.findall(r"executorch-android:([\d.]+)", (SAMPLE / "kotlin" / "build.gradle.kts").read_text())
    swift = re.findall(r"swiftpm-([\d.]+)", (SAMPLE / "swift" / "Package.swift").read_text())
    assert oldest == gradle == swift


def test_the_builds_suit_the_plugin_that_compiles_kotlin() -> None:
    android = ROOT / "examples" / "android"
    scripts = [path for folder in (android, SAMPLE) for path in folder.rglob("*.kts")]
    assert len(scripts) == 5
    text = "".join(path.read_text() for path in scripts)
    assert re.findall(r'com\.android\.\w+"\) version "(\d+)', text) == ["9", "9"]
    assert 'id("org.jetbrains.kotlin.android")' not in text
    assert "jvmToolchain" not in text
    assert set(re.findall(r"compileSdk = (\d+)", text)) == {"36"}
    page = (ROOT / "docs" / "apps.md").read_text()
    (gradle,) = re.findall(r"gradle-(\d+\.\d+)", (android / "gradle/wrapper/gradle-wrapper.properties").read_text())
    assert f"Gradle {gradle}" in page
    assert "Android SDK 36" in page
    assert "gradlew" not in text + page + (SAMPLE / "kotlin" / "README.md").read_text()


def test_the_tests_on_a_mac_ask_for_what_the_package_asks_for() -> None:
    (package,) = re.findall(r'\.macOS\("(\d+)\.0"\)', (SAMPLE / "swift" / "Package.swift").read_text())
    assert re.findall(r"\.macOS\(\.v(\d+)\)", (ROOT / "examples" / "ios" / "Package.swift").read_text()) == [package]


def kotlin(target: Path, *sources: Path) -> Path:
    files = [str(file) for source in sources for file in ([source] if source.is_file() else source.rglob("*"))
             if file.suffix in (".kt", ".java")]  # fmt: skip
    compiler = ["java", "-cp", KERNEL[0], "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
    command = [
        *compiler,
        "-nowarn",
        "-no-stdlib",
        "-no-reflect",
        "-cp",
        f"{STDLIB[0]}:{KERNEL[0]}",
        *files,
        "-d",
        str(target),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return target


def java(*arguments: str) -> subprocess.CompletedProcess[str]:
    at = arguments.index("-cp") + 1
    arguments = (*arguments[:at], ":".join([arguments[at], *STDLIB, *KERNEL]), *arguments[at + 1 :])
    return subprocess.run(["java", *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = ROOT / "examples" / "android" / "logic" / "src" / "test" / "kotlin" / "VectorChecks.kt"
    return kotlin(tmp_path_factory.mktemp("kotlin") / "checks.jar", LOGIC, source)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runner and the app, compiled with stand-ins for Android and ExecuTorch."""
    if not shutil.which("javac"):
        pytest.skip("needs a Java compiler: apt install default-jdk-headless")
    classes = tmp_path_factory.mktemp("java")
    files = [str(path) for path in (STAND_INS / "kotlin").rglob("*.java")]
    subprocess.run(["javac", "-d", str(classes), *files], check=True, timeout=120)
    sources = (SAMPLE / "kotlin", STAND_INS / "kotlin", ROOT / "examples" / "android" / "app" / "src")
    return classes, kotlin(tmp_path_factory.mktemp("kotlin") / "app.jar", *sources)


@needs_kotlin
@pytest.mark.slow
class TestKotlin:
    def test_the_logic_agrees_with_the_vectors(self, checks: Path) -> None:
        result = java("-cp", str(checks), "VectorChecksKt", str(VECTORS))
        assert result.returncode == 0, result.stderr
        assert int(result.stdout.split()[-3]) > 300

    @pytest.mark.parametrize(
        "section", ["manifests", "files", "json", "images", "pictures", "unfit_inputs", "drawings", "scores",
                    "answers", "readings", "timings", "framings", "probe_plans", "probe_runs", "sessions"]
    )  # fmt: skip
    def test_another_expectation_fails(self, checks: Path, tmp_path: Path, section: str) -> None:
        vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
        case = vectors[section][0]
        changes: dict[str, Any] = {
            "manifests": lambda: case["holds"].update(size_bytes=1), "files": lambda: case.update(same=False),
            "json": lambda: case.update(value=1), "images": lambda: case["values"].__setitem__(3, 2.0),
            "pictures": lambda: case.update(rotation=180),
            "unfit_inputs": lambda: case.update(shape=[1, 1, 8, 8]), "drawings": lambda: case["pixels"].append(0.0),
            "scores": lambda: case.update({"class": 1}), "answers": lambda: case.update(label="c"),
            "readings": lambda: case["classes"].__setitem__(0, 1 - case["classes"][0]),
            "timings": lambda: case.update(spread=0.1), "framings": lambda: case["done"].__setitem__(0, 1),
            "probe_plans": lambda: case["holds"].update(rounds=6),
            "probe_runs": lambda: case["counts"].__setitem__(1, 3),
            "sessions": lambda: case.update(restarts=7),
        }  # fmt: skip
        changes[section]()
        (tmp_path / "vectors.json").write_text(json.dumps(vectors))
        result = java("-cp", str(checks), "VectorChecksKt", str(tmp_path / "vectors.json"))
        assert result.returncode != 0
        assert section not in result.stdout.split()

    def shown(self, app: tuple[Path, Path], folder: Path) -> list[str]:
        (folder / "files").mkdir(exist_ok=True)
        path = f"{app[0]}:{app[1]}"
        result = java("-cp", path, f"-Dassets={folder}", f"-Dfiles={folder / 'files'}", "RunnerCheckKt")
        assert result.returncode == 0, result.stderr
        assert not [p for p in (folder / "files").iterdir() if p.suffix == ".part"]
        return result.stdout.splitlines()

    def assets(self, folder: Path, program: bytes, **changes: object) -> None:
        from lightning_prune.deploy.artifact.manifest import to_text

        (folder / "model.pte").write_bytes(program)
        (folder / "model.json").write_text(to_text(manifest(**changes)), encoding="utf-8")

    def test_the_runner_runs_what_matches_its_manifest(self, app: tuple[Path, Path], tmp_path: Path) -> None:
        self.assets(tmp_path, PROGRAM, state=[RING])
        for _ in range(2):  # the second time the program is there already
            answer, turned, read, runs, stepped, message = self.shown(app, tmp_path)
            assert answer.startswith("Answer(index=1, label=eins – ένα, confidence=0.9")
            assert turned.startswith("Answer(index=2")  # of a bitmap that stands on its head
            assert read == f"{turned} on a thread of its own: true"
            assert runs == "3 runs"
            assert stepped == "steps of 64 and 64 values"
            assert "shape [2, 1, 8, 8]" in message  # the last run asks for a batch that is not taken
        (installed,) = (tmp_path / "files").iterdir()
        installed.write_bytes(b"damaged")
        assert self.shown(app, tmp_path)[3] == "3 runs"
        assert installed.read_bytes() == PROGRAM

    def test_the_runner_shows_a_message_instead(self, app: tuple[Path, Path], tmp_path: Path) -> None:
        (message,) = self.shown(app, tmp_path)
        assert "model.json is not among the app's assets" in message
        self.assets(tmp_path, PROGRAM[:-1])
        assert "is not the file" in self.shown(app, tmp_path)[0]
        self.assets(tmp_path, b"", data=[{"file": "m.ptd", "sha256": "0" * 64, "size_bytes": 1}])
        assert "external weights" in self.shown(app, tmp_path)[0]
        (tmp_path / "model.pte").unlink()
        self.assets(tmp_path, PROGRAM, methods={"embed": {"inputs": [], "outputs": []}})
        assert "no method forward" in self.shown(app, tmp_path)[0]
        assert not self.shown(app, tmp_path)[1:]

    def test_the_probe_of_a_folder_gives_what_python_reads(self, app: tuple[Path, Path], tmp_path: Path) -> None:
        from lightning_prune.deploy.probe import Probe, ProbeResults

        def told() -> list[str]:
            result = java("-cp", f"{app[0]}:{app[1]}", "ProbeCheckKt", str(tmp_path))
            assert result.returncode == 0, result.stderr
            return result.stdout.splitlines()

        plan = probe()
        (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        assert "0.pte cannot be read: push the whole folder again" in told()[0]
        for name in plan.files:
            (tmp_path / name).write_bytes(PROGRAM)
        text, progress, places = told()
        assert progress == "100 %"
        assert places == "sizes [8, 36], in one place true"
        results = ProbeResults.from_json(text)
        assert (results.device, results.clock, results.failed) == ("a stand-in", "thread", {})
        assert {len(times) for times in results.nanoseconds.values()} == {24}
        assert Probe.load(tmp_path).table(results).device == "a stand-in"
        (tmp_path / "1.pte").write_bytes(PROGRAM[:-1])
        assert "1.pte is not the file that the manifest describes" in told()[0]
        (tmp_path / "plan.json").unlink()
        assert "has no plan.json" in told()[0]

    def test_the_views_draw_where_the_picture_lies(self, app: tuple[Path, Path], tmp_path: Path) -> None:
        result = java(
            "-Djava.awt.headless=true", "-cp", f"{app[0]}:{app[1]}", "RenderingKt", str(tmp_path / "apps.png")
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [
            "pad 480 x 480, ink 000000, paper ffffff, framed 47",
            "left edge f22424, inside true",
            "background left alone true, region covered true",
        ]
        assert (tmp_path / "apps.png").stat().st_size > 10_000


@needs_swift
@pytest.mark.slow
def test_the_swift_runner_and_the_camera_suit_what_they_call(tmp_path: Path) -> None:
    """With stand-ins for ExecuTorch and Apple's frameworks; of the views their syntax."""

    def swiftc(*arguments: object) -> None:
        command = ["swiftc", "-swift-version", "5", "-parse-as-library", *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr

    modules = {
        name: [STAND_INS / "swift" / f"{name}.swift"] for name in ("ExecuTorch", "CoreVideo", "AVFoundation", "Combine")
    }
    sources = SAMPLE / "swift" / "Sources"
    modules |= {name: sorted((sources / name).glob("*.swift")) for name in ("LightningPruneLogic", "LightningPrune")}
    for name, files in modules.items():
        swiftc("-emit-module", "-module-name", name, "-emit-module-path", f"{name}.swiftmodule", "-I", ".", *files)
    app = ROOT / "examples" / "ios" / "App"
    swiftc("-typecheck", "-I", ".", *(app / f"{name}.swift" for name in ("ProgramModel", "ProbeModel", "CameraFeed")))
    swiftc("-parse", *sorted(app.glob("*.swift")))
    swiftc("-typecheck", app.parent / "UITests" / "PhoneTests.swift", STAND_INS / "swift" / "XCUITest.swift")


@needs_swift
@pytest.mark.slow
def test_the_swift_logic_agrees_with_the_vectors(tmp_path: Path) -> None:
    for part in ("lightning_prune/deploy/sample/swift", "examples/ios", "examples/shared"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns(".build", "model"))
    package = tmp_path / "examples" / "ios"
    result = subprocess.run(["swift", "test"], cwd=package, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "with 0 failures" in result.stdout + result.stderr


@pytest.mark.slow
def test_the_example_writes_what_the_apps_include(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("sklearn")
    from lightning_prune.deploy import XNNPACK, load_manifest

    for phone in ("android", "ios"):
        (tmp_path / phone).mkdir()
    runpy.run_path(str(ROOT / "examples" / "phones.py"))["main"](1, 8, tmp_path, XNNPACK())
    assert 'include(":model")' in (ROOT / "examples" / "android" / "settings.gradle.kts").read_text()
    assert (tmp_path / "android" / "model" / "build.gradle.kts").is_file()
    assert (tmp_path / "ios" / "model" / "Package.swift").is_file()
    manifest = load_manifest(tmp_path / "android" / "model" / "assets" / "model.pte")
    assert manifest["labels"] == [str(digit) for digit in range(10)]
    (image,) = manifest["methods"]["forward"]["inputs"]
    assert image["shape"] == [1, 1, 8, 8]

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

from deploy_models import EXAMPLE, LABELS, images, small

from lightning_prune.deploy import Bundle, Picture, RuntimeModel, export_android, export_ios, load_manifest
from lightning_prune.deploy.artifact.files import RECORD, Replacement, replaced
from lightning_prune.deploy.backends import XNNPACK, Backend, CoreML, Portable, Vulkan
from lightning_prune.deploy.bundles import SAMPLE
from lightning_prune.deploy.program.picture import NO_PICTURE
from lightning_prune.errors import ExportError

RESOURCES = "Sources/LightningPrune/Resources"
DIGEST = hashlib.sha256(b"").hexdigest()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture(scope="module")
def android(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_android(small(), tmp_path_factory.mktemp("a") / "app", example_inputs=EXAMPLE, labels=LABELS)


@pytest.fixture
def copied(android: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(android.folder, tmp_path / "app")
    return tmp_path / "app"


@pytest.fixture(scope="module")
def ios(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("i") / "app"
    batches: Iterator[torch.Tensor] = iter([images(4), images(4)])
    return export_ios(
        small(),
        folder,
        backend=Portable(),
        fallback=XNNPACK(),
        example_inputs=EXAMPLE,
        labels=LABELS,
        verify_on=batches,
    )


class TestAndroid:
    def test_the_program_is_in_the_assets_and_runs(self, android: Bundle) -> None:
        path = android.folder / "assets" / "model.pte"
        assert android.artifact.path == path
        assert load_manifest(path)["labels"] == list(LABELS)
        x = images(4)
        assert torch.allclose(RuntimeModel(path)(x)[0], small().eval()(x), atol=1e-5)

    def test_without_a_picture_the_artifact_and_the_manifest_say_what_the_app_does(
        self, android: Bundle, tmp_path: Path
    ) -> None:
        assert NO_PICTURE in android.artifact.notes
        assert NO_PICTURE in load_manifest(android.artifact.path)["notes"]
        told = export_android(small(), tmp_path / "app", example_inputs=EXAMPLE, picture=Picture())
        assert NO_PICTURE not in told.artifact.notes
        vector = export_android(nn.Linear(4, 2), tmp_path / "vector", example_inputs=torch.rand(1, 4))
        assert NO_PICTURE not in vector.artifact.notes

    def test_the_sample_code_is_the_packaged_one(self, android: Bundle) -> None:
        found, sample = listing(android.folder), listing(SAMPLE / "kotlin")
        own = {"README.md", "build.gradle.kts"}  # the sizes of the program, and the runtime of its exporter
        sample = {name: text for name, text in sample.items() if name not in own}
        assert {name: found[name] for name in sample} == sample
        assert found.keys() - sample.keys() == {*own, "assets/model.pte", "assets/model.json", RECORD}

    def test_files_are_all_there_is(self, android: Bundle) -> None:
        assert [str(p.relative_to(android.folder)) for p in android.files] == sorted(
            listing(android.folder).keys() - {RECORD}
        )

    def test_nothing_is_left_beside_it(self, android: Bundle) -> None:
        assert list(android.folder.parent.iterdir()) == [android.folder]

    @pytest.mark.parametrize(("options", "error", "word"), [
        ({"backend": CoreML()}, ValueError, "export_ios"),
        ({"external_weights": True}, ValueError, "one file"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ])  # fmt: skip
    def test_what_android_has_not(
        self, tmp_path: Path, options: dict[str, object], error: type[Exception], word: str
    ) -> None:
        with pytest.raises(error, match=word):
            export_android(small(), tmp_path / "app", example_inputs=EXAMPLE, **options)  # pyright: ignore[reportArgumentType]
        assert not list(tmp_path.iterdir())


class TestIos:
    def test_both_programs_are_resources_and_verified(self, ios: Bundle) -> None:
        assert [a.path.relative_to(ios.folder).as_posix() for a in ios.artifacts] == [
            f"{RESOURCES}/model.pte", f"{RESOURCES}/fallback.pte",
        ]  # fmt: skip
        assert [a.backend.name for a in ios.artifacts] == ["portable", "xnnpack"]
        assert [a.verified_samples for a in ios.artifacts] == [8, 8]
        for artifact in ios.artifacts:
            assert load_manifest(artifact.path)["sha256"] == artifact.sha256
            assert artifact.manifest_path.is_file()

    def test_the_sample_code_is_the_packaged_one(self, ios: Bundle) -> None:
        found, sample = listing(ios.folder), listing(SAMPLE / "swift")
        del sample["README.md"], sample["Package.swift"]
        assert {name: found[name] for name in sample} == sample

    @pytest.mark.parametrize(("backend", "platforms"), [
        (CoreML(deployment_target="iOS15"), ("17.0", "14.0")),
        (CoreML(deployment_target="iOS18"), ("18.0", "15.0")),
        (CoreML(deployment_target="macOS15"), ("18.0", "15.0")),
        (CoreML(deployment_target="iOS26"), ("26.0", "26.0")),
        (XNNPACK(), ("17.0", "14.0")),
    ])  # fmt: skip
    def test_the_package_asks_for_the_release_that_the_program_needs(
        self, backend: Backend, platforms: tuple[str, str]
    ) -> None:
        from lightning_prune.deploy.bundles import _swift_platforms

        old, new = _swift_platforms([XNNPACK(), backend])
        assert (SAMPLE / "swift" / "Package.swift").read_text().count(old) == 1
        assert re.findall(r'"([\d.]+)"', new) == list(platforms)

    def test_vulkan_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="export_android"):
            export_ios(small(), tmp_path / "app", backend=Vulkan(), example_inputs=EXAMPLE)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # coremltools leaves its folders
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_core_ml_comes_first_by_default(self, tmp_path: Path) -> None:
        pytest.importorskip("coremltools")
        bundle = export_ios(small(), tmp_path / "app", example_inputs=EXAMPLE)
        assert [(a.backend.name, a.executed) for a in bundle.artifacts] == [
            ("coreml", "portable"),
            ("xnnpack", "xnnpack"),
        ]


@pytest.mark.parametrize("phone", ["android", "ios"])
def test_the_readme_says_what_the_programs_add_to_the_app(phone: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(phone)
    text = (bundle.folder / "README.md").read_text()
    for artifact in bundle.artifacts:
        row = f"| `{artifact.path.name}` | {artifact.path.stat().st_size:,} | {artifact.zipped_bytes:,} |"
        assert row in text.splitlines()
    assert "| … |" not in text


def test_vulkan_takes_the_runtime_with_vulkan() -> None:
    from lightning_prune.deploy.bundles import _android_runtime, _runtimes

    old, new = _android_runtime(Vulkan())
    assert (SAMPLE / "kotlin" / "build.gradle.kts").read_text().count(old) == 1
    assert new == old.replace("android:", "android-vulkan:").replace("1.4.1", _runtimes()[0])


@pytest.mark.parametrize(
    ("exporter", "android", "apple"),
    [
        ("1.4.1", "1.4.1", "1.4.1"),
        ("1.5.0", "1.5.1", "1.5.0"),
        ("1.5.1", "1.5.1", "1.5.0"),
        ("1.9.2", "1.9.2", "1.9.2"),
    ],
)
def test_the_runtime_reads_what_the_exporter_writes(
    exporter: str, android: str, apple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_prune.deploy.bundles.versions", lambda: {"executorch": exporter})
    monkeypatch.setattr("lightning_prune.deploy.bundles._exported", lambda *_: None)
    texts: list[str] = []

    def bundle(place: Replacement, _: object) -> None:
        files = (place.building / name for name in ("build.gradle.kts", "Package.swift"))
        texts.extend(file.read_text() for file in files if file.is_file())

    monkeypatch.setattr("lightning_prune.deploy.bundles._bundle", bundle)
    export_android(small(), tmp_path / "android")
    export_ios(small(), tmp_path / "ios")
    assert f'api("org.pytorch:executorch-android:{android}")' in texts[0]
    assert f'branch: "swiftpm-{apple}")' in texts[1]


class TestAllOrNothing:
    def test_a_failed_export_leaves_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError):
            export_android(Untraceable(), tmp_path / "app", example_inputs=torch.ones(2))
        assert not list(tmp_path.iterdir())

    def test_a_failed_export_leaves_the_older_bundle(self, copied: Path) -> None:
        before = listing(copied)
        with pytest.raises(ExportError):
            export_android(Untraceable(), copied, example_inputs=torch.ones(2))
        assert listing(copied) == before
        assert list(copied.parent.iterdir()) == [copied]

    def test_a_bundle_is_replaced_with_what_tools_left_in_it(self, copied: Path) -> None:
        (copied / "build" / "x").mkdir(parents=True)
        (copied / "build" / "x" / "y").touch()
        (copied / ".DS_Store").touch()
        with replaced(copied) as place:
            (place.building / "a").write_text("new")
            assert place.publish() == (copied / "a",)
        assert set(listing(copied)) == {"a", RECORD}

    @pytest.mark.parametrize("change", ["added", "changed"])
    def test_work_in_a_bundle_is_not_lost(self, copied: Path, change: str) -> None:
        name = "runtime/Mine.kt" if change == "added" else "runtime/ProgramRunner.kt"
        (copied / name).write_text("// mine")
        before = listing(copied)
        with pytest.raises(ExportError, match=re.escape(name)):
            export_android(small(), copied, example_inputs=EXAMPLE)
        assert listing(copied) == before

    def test_removed_files_do_not_keep_a_bundle_from_being_replaced(self, copied: Path) -> None:
        (copied / "README.md").unlink()
        with replaced(copied):
            pass

    def test_a_foreign_folder_is_refused_and_an_empty_one_taken(self, tmp_path: Path) -> None:
        (tmp_path / "app").mkdir()
        with replaced(tmp_path / "app") as place:
            place.publish()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").touch()
        with pytest.raises(ExportError, match="no export wrote"), replaced(tmp_path / "other"):
            pass
        assert (tmp_path / "other" / "thesis.tex").exists()

    @pytest.mark.parametrize("record", ["", "[]", "{", '{"thesis.tex": 1}', "\0"])
    def test_a_broken_record_makes_nothing_ours(self, tmp_path: Path, record: str) -> None:
        (tmp_path / "thesis.tex").touch()
        (tmp_path / RECORD).write_text(record)
        with pytest.raises(ExportError), replaced(tmp_path):
            pass

    def test_a_record_names_what_was_written(self, tmp_path: Path) -> None:
        with replaced(tmp_path / "app") as place:
            (place.building / "a").touch()
            place.publish()
        assert json.loads((tmp_path / "app" / RECORD).read_text()) == {"a": DIGEST}

    def test_places_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for folder, word in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "app", "does not exist")):
            with pytest.raises(ExportError, match=word), replaced(folder):
                pass

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with replaced(tmp_path / "link") as place:
            (place.building / "a").touch()
            place.publish()
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "a").exists()

    def test_a_move_that_fails_puts_the_older_folder_back(self, tmp_path: Path) -> None:
        with replaced(tmp_path / "app") as place:
            (place.building / "old").touch()
            place.publish()
        with replaced(tmp_path / "app") as place:
            broken = dataclasses.replace(place, building=tmp_path / "gone")
            with pytest.raises(ExportError, match="nothing was changed"):
                broken.publish()
        assert set(listing(tmp_path / "app")) == {"old", RECORD}
        assert list(tmp_path.iterdir()) == [tmp_path / "app"]


def test_a_bundle_prints(android: Bundle) -> None:
    assert str(android.folder) in str(android)
    assert "xnnpack" in str(android).lower()

"""The CPU variants and companion packages of a portable build."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inferd import __version__, cli
from inferd.cli import doctor
from inferd.config.settings import Settings
from inferd.engine.local import portable
from inferd.errors import ConfigError

ROOT = Path(__file__).parents[2]
IMPORT = "from inferd.engine.local import _llama; print(_llama.cpu_variant())"


def engine_with(variant: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT]
    return subprocess.run(
        command, env={"INFERD_CPU_VARIANT": variant}, capture_output=True, text=True, check=False
    )


def program(name: str) -> Any:
    """A module of the folder ``packaging``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"packaging/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def companion(site: Path, version: str) -> Path:
    """Makes a companion package in the folder ``site``, as pip would install it; returns its library."""
    library = site / "inferd_vulkan" / "libggml-vulkan.so"
    library.parent.mkdir()
    library.touch()
    info = site / f"inferd_vulkan-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: inferd-vulkan\nVersion: {version}\n")
    return library


def test_the_engine_runs_each_variant_that_it_has_or_says_why_not() -> None:
    ran = 0
    for name in portable.variants():
        done = engine_with(name)
        if done.returncode == 0:
            assert done.stdout.strip() == name
            ran += 1
        else:
            assert f"this processor cannot run the CPU variant {name}" in done.stderr
    assert ran > 0


def test_an_unknown_variant_is_refused_with_the_names_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    done = engine_with("z80")
    assert done.returncode != 0
    assert "INFERD_CPU_VARIANT is 'z80'; this build has " + ", ".join(portable.variants()) in done.stderr
    monkeypatch.setenv("INFERD_CPU_VARIANT", "z80")
    with pytest.raises(ConfigError):
        portable.chosen_variant()


def test_a_companion_of_the_same_version_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "GGML", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert portable.companion_files() == []
    library = companion(tmp_path, __version__)
    assert portable.companion_files() == [library]


def test_a_companion_of_another_version_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "GGML", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    companion(tmp_path, "0.0.1")
    assert portable.companion_files() == []
    (found,) = portable.companions()
    assert found.problem == f"it is 0.0.1, inferd is {__version__}; install both at one version"


def test_a_library_that_cannot_be_loaded_has_the_reason_of_the_linker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "GGML", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    library = companion(tmp_path, __version__)
    (found,) = portable.companions()
    assert str(library) in portable.not_loaded(found)  # it is empty
    monkeypatch.setattr(portable, "GGML", tmp_path / "absent")
    (found,) = portable.companions()
    assert portable.not_loaded(found) == found.problem
    assert found.problem.startswith("this inferd was compiled for one machine")
    extension = importlib.util.find_spec("inferd._fastpath")
    assert extension is not None
    assert extension.origin is not None
    good = portable.Companion("inferd-vulkan", Path(extension.origin))
    assert portable.not_loaded(good) == ""


def test_doctor_asks_the_engine_about_companions(tmp_path: Path) -> None:
    companion(tmp_path, __version__)
    code = [sys.executable, "-c", doctor._ENGINE_CODE]
    done = subprocess.run(code, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    reasons = json.loads(done.stdout)[4]
    assert list(reasons) == ["inferd-vulkan"]
    assert reasons["inferd-vulkan"]


def told(companions: dict[str, str], devices: list[list[str]]) -> list[tuple[str, str, str]]:
    found = doctor._devices(Settings(), devices, "x64", "", 1, companions)
    return [(each.name, each.state, each.detail) for each in found][1:]


def test_doctor_says_why_a_companion_gives_no_gpu() -> None:
    gpu = ["gpu", "Vulkan0", "Big", "1"]
    assert told({"inferd-cuda": "libcuda.so.1: no such file"}, []) == [
        ("engine", "warn", "inferd-cuda is not loaded: libcuda.so.1: no such file"),
        ("accelerator", "ok", "none; models run on the CPU"),
    ]
    assert told({"inferd-vulkan": ""}, []) == [
        ("accelerator", "warn", "inferd-vulkan found none; models run on the CPU")
    ]
    assert told({"inferd-vulkan": ""}, [gpu]) == [("accelerator", "ok", "Vulkan0 (Big)")]


def test_the_verbose_version_names_the_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version", "--verbose"]) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert first == f"inferd {__version__}"
    (line,) = [each for each in more if each.startswith("CPU variant ")]
    assert line.split()[2] in portable.variants()


def test_verbose_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--verbose"]) == 2
    assert "--verbose belongs to --version" in capsys.readouterr().err


def test_a_portable_build_has_the_defaults_of_llama_cpp() -> None:
    """The build adds ggml itself, before llama.cpp sets ggml's options."""
    sources = (ROOT / "vendor/llama.cpp/CMakeLists.txt").read_text()
    wanted = re.findall(r"set\((GGML_\w+_DEFAULT) ON\)", sources)
    assert wanted
    for name in wanted:
        assert f"set({name} ON)" in (ROOT / "cmake/portable.cmake").read_text()


def test_the_compiler_for_arm_is_told_the_version_in_the_words_of_zig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchain = program("toolchain")
    zig = tmp_path / f"inferd/build/ziglang-{toolchain.ZIG}/ziglang/zig"
    zig.parent.mkdir(parents=True)
    zig.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    zig.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def told(machine: str, *options: str) -> list[str]:
        command = [toolchain.bring(machine) / "clang", *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[3:]

    assert told("aarch64", "-march=armv8-a", "-DA=b c") == ["-mcpu=generic+v8a", "-DA=b c"]
    sve = told("aarch64", "-march=armv8.6-a+dotprod+fp16+sve")
    assert sve == ["-mcpu=generic+v8_6a+dotprod+fullfp16+sve"]
    assert told("x86_64", "-march=armv8-a") == ["-march=armv8-a"]


def test_old_headers_of_vulkan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = program("gpu")
    (tmp_path / "build").mkdir()
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path))
    with pytest.raises(SystemExit, match="install the headers of Vulkan"):
        gpu.vulkan(tmp_path, tmp_path / "build")
    for name in gpu.HEADERS:
        (tmp_path / "include" / name).mkdir(parents=True)
    core = tmp_path / "include/vulkan/vulkan_core.h"
    core.write_text(f"#define VK_HEADER_VERSION {gpu.OLDEST_HEADERS - 1}\n")
    with pytest.raises(SystemExit, match="has older headers"):
        gpu.vulkan(tmp_path, tmp_path / "build")
    core.write_text(f"#define VK_HEADER_VERSION {gpu.OLDEST_HEADERS}\n")
    (tmp_path / "build" / "libvulkan.so").touch()
    assert gpu.vulkan(tmp_path, tmp_path / "build") == {
        "Vulkan_INCLUDE_DIR": str(tmp_path / "build" / "include"),
        "Vulkan_LIBRARY": str(tmp_path / "build" / "libvulkan.so"),
    }
    assert (tmp_path / "build/include/vulkan/vulkan_core.h").is_file()

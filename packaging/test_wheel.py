"""Installs a wheel as a user would, and uses it: ``python packaging/test_wheel.py WHEEL [OPTIONS]``.

The dependencies are wheels, too, and are downloaded first. All wheels are installed into a fresh environment,
without a package index, and with a PATH that has no compiler. Then the main example of the README runs, on
the CPU variant that inferd chooses and on ``--second``. Each variant must give the same answer every time.
(Two variants add numbers in a different order, so their texts may differ. With ``--native``, the text of the
first variant is compared with that of an inferd that was compiled for this machine.) The packages must agree
with each other, and uninstalling must leave nothing of inferd. The script prints the sizes, and the time from
the start of the installation to the first word. At the first step that fails, it exits with 1. The model
comes from the user's store, or is downloaded into it before the time starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

QUESTION = "Why is the sky blue?"
GREEDY = ["--temperature", "0", "--max-tokens", "24"]
FLOORS = range(28, 41)
"""Minor versions of glibc to try as the floor of the dependencies, from the wheel's own floor on."""


class Failed(Exception):
    """A step failed; the text gives its result."""


class Machine:
    """A user's machine: a home, one environment, and a PATH with the programs of that environment only."""

    def __init__(self, home: Path, python: str) -> None:
        self.home = home
        self.venv = home / "venv"
        subprocess.run([python, "-m", "venv", self.venv], check=True)
        data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        self.environment = {
            "HOME": str(home),
            "PATH": str(self.venv / "bin"),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_DATA_HOME": data,
            "LANG": "C.UTF-8",
        }

    def run(self, program: str, *arguments: str, **variables: str) -> str:
        """The output of a program of the environment."""
        done = subprocess.run(
            [self.venv / "bin" / program, *arguments],
            env=self.environment | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"{program} {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def first_word(self) -> None:
        """Asks the question, and returns when the first bytes of the answer have arrived."""
        command = [self.venv / "bin" / "inferd", "run", "--max-tokens", "8", QUESTION]
        with subprocess.Popen(
            command, env=self.environment, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as asking:
            assert asking.stdout is not None
            assert asking.stderr is not None
            if not asking.stdout.read(1):
                raise Failed(f"inferd run gave no answer: {asking.stderr.read().decode()}")
            asking.communicate()

    def greedy(self, variant: str) -> tuple[str, str]:
        """The variant of a fresh daemon, and its greedy answer; ``""`` lets inferd choose."""
        forced = {"INFERD_CPU_VARIANT": variant} if variant else {}
        with contextlib.suppress(Failed):
            self.run("inferd", "stop")
        lines = self.run("inferd", "--version", "--verbose", **forced).splitlines()
        (told,) = [line.split()[2] for line in lines if line.startswith("CPU variant ")]
        answer = self.run("inferd", "run", *GREEDY, QUESTION, **forced)
        if f"cpu_variant {told}" not in self.run("inferd", "status"):
            raise Failed(f"`inferd status` does not tell that the CPU variant is {told}")
        self.run("inferd", "stop")
        return told, answer


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def floor(python: str, wheel: Path, scratch: Path) -> str:
    """The oldest manylinux for which every dependency of the wheel has a wheel."""
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    machine = wheel.stem.rpartition("-")[2].split("_", 3)[-1]  # of manylinux_2_28_x86_64
    # The wheel itself has a tag of its own, which is not the question here.
    needed = requirements(wheel)
    for newest in FLOORS:
        # pip takes each tag literally: a system with glibc 2.n takes the wheels of all before.
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(5, newest + 1)]
        tags += [f"manylinux{year}_{machine}" for year in ("1", "2010", "2014")] + [f"linux_{machine}"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--target", str(scratch), "--only-binary", ":all:"]
        command += ["--python-version", version, "--implementation", "cp", *needed]
        command += [f"--platform={tag}" for tag in tags]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return f"manylinux_2_{newest}_{machine}"
    raise Failed(f"no glibc up to 2.{FLOORS[-1]} has wheels of all dependencies")


def requirements(wheel: Path) -> list[str]:
    """The requirements of the wheel without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        headers = archive.read(name).decode().partition("\n\n")[0].splitlines()
    wanted = [line.removeprefix("Requires-Dist: ") for line in headers if line.startswith("Requires-Dist: ")]
    return [line for line in wanted if "extra ==" not in line]


def by_tools(wheel: Path, wheelhouse: Path, python: str, scratch: Path) -> None:
    """Checks that installers of programs, which make their own environments, install a wheel whose engine
    runs."""
    user = Machine(scratch / "tools", python)
    subprocess.run([user.venv / "bin" / "pip", "install", "--quiet", "uv", "pipx"], check=True)
    its_python = str(user.venv / "bin" / "python")
    places = {name: str(user.home / name.lower()) for name in ("UV_TOOL_DIR", "UV_CACHE_DIR", "PIPX_HOME")}
    places |= {"UV_TOOL_BIN_DIR": str(user.venv / "bin")}
    offline = ["--no-index", "--find-links", str(wheelhouse)]
    user.run("uv", "tool", "install", "--quiet", *offline, "--python", its_python, str(wheel), **places)
    told = parts(user.run("inferd", "--version", "--verbose"))
    spec = ["--python", its_python, "--spec", str(wheel), "--pip-args", " ".join(offline)]
    again = parts(user.run("pipx", "run", *spec, "inferd", "--version", "--verbose", **places))
    if not any(line.startswith("CPU variant ") for line in told) or again != told:
        raise Failed(f"uv gives {told!r}, and pipx {again!r}")
    print("uv tool install and pipx run start it")


def parts(version: str) -> list[str]:
    """What ``inferd --version --verbose`` prints, without the path of the documentation."""
    return [line for line in version.splitlines() if not line.startswith("documentation ")]


def native_answer(inferd: str, environment: dict[str, str]) -> str:
    """The greedy answer of another installation, given by the path of its ``inferd``."""
    command = [inferd, "run", *GREEDY, QUESTION]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    subprocess.run([inferd, "stop"], env=environment, check=True)
    return done.stdout


def check(wheel: Path, python: str, second: str, native: str | None, tools: bool, scratch: Path) -> None:
    user = Machine(scratch / "user", python)
    user.environment["INFERD_DRAFTS"] = "off"  # with drafts, the last bits depend on how many are accepted
    wheelhouse = scratch / "wheelhouse"
    pip = user.venv / "bin" / "pip"
    subprocess.run(
        [pip, "download", "--quiet", "--only-binary", ":all:", "--dest", wheelhouse, wheel], check=True
    )
    compilers = [shutil.which(name, path=user.environment["PATH"]) for name in ("cc", "c++", "gcc", "clang")]
    if any(compilers):
        raise Failed(f"the PATH has a compiler: {compilers}")
    user.run("pip", "check")
    before = files(user.venv)

    start = time.monotonic()
    user.run("pip", "install", "--no-index", "--find-links", str(wheelhouse), str(wheel))
    installed = time.monotonic() - start
    if not user.run("inferd", "list").count("smollm2-135m-instruct"):
        user.run("inferd", "pull", "smollm2-135m-instruct")
    start = time.monotonic()
    user.first_word()
    print(f"from pip install to the first word: {installed + time.monotonic() - start:.1f} s")
    user.run("pip", "check")
    print(user.run("inferd", "--version", "--verbose").rstrip())

    chosen, answer = user.greedy("")
    other, text = user.greedy(second)
    if other != second or not text.strip() or user.greedy(second) != (other, text):
        raise Failed(f"{second} was forced, but {other} answered {text!r}, or not the same twice")
    same = "the same text as" if text == answer else "a text of its own beside"
    print(f"the CPU variant {second}, forced, gives {same} {chosen}")
    if native is not None:
        expected = native_answer(native, user.environment)
        if expected != answer:
            raise Failed(f"{chosen} answers {answer!r}, but the native build {expected!r}")
        print(f"{chosen} gives the same greedy text as the build for this machine")

    package = user.run("python", "-c", "import inferd; print(inferd.__path__[0])").strip()
    size = sum(path.stat().st_size for path in files(Path(package)) if path.is_file())
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, installed {size / 1e6:.1f} MB")
    user.run("pip", "uninstall", "--yes", "inferd")
    left = sorted(str(path) for path in files(user.venv) - before if "inferd" in str(path).lower())
    if left:
        raise Failed(f"uninstalling left {', '.join(left)}")
    print("uninstalling left nothing of inferd")
    if tools:
        by_tools(wheel, wheelhouse, python, scratch)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--python", default=sys.executable, help="the Python of the environment (default: this one)"
    )
    parser.add_argument("--second", default="x64", help="a CPU variant to force (default: x64)")
    parser.add_argument("--native", metavar="INFERD", help="compare with the greedy text of this inferd")
    parser.add_argument("--tools", action="store_true", help="install it with uv and pipx, too")
    parser.add_argument("--floor", action="store_true", help="find the oldest glibc of the dependencies")
    options = parser.parse_args()
    # A short path, because the sockets lie below it.
    scratch = Path(tempfile.mkdtemp(prefix="ifd-", dir="/tmp"))
    try:
        check(options.wheel.resolve(), options.python, options.second, options.native, options.tools, scratch)
        if options.floor:
            found = floor(options.python, options.wheel.resolve(), scratch / "floor")
            print(f"all dependencies have wheels from {found} on")
    except Failed as failure:
        print(f"test_wheel: {failure}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Build sdist and wheel, install the wheel into a fresh environment, and use it there, away from the checkout.

Packages come from the index, at the versions of constraints.txt. With --offline, or where no index answers, those of
the current environment are used, without the slth that is installed there.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Check a release. Exits with what failed."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = built(work / "dist")
        env = installed(wheel, work / "env", offline="--offline" in sys.argv[1:])
        use(env, work)
    print("release-check: sdist and wheel are whole")


def built(folder: Path) -> Path:
    """The wheel, built from the sdist."""
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path, env: Path, *, offline: bool) -> Path:
    """The folder of the programs of a new environment with the wheel and the extra `experiments`."""
    call(sys.executable, "-m", "venv", env)
    programs = env / ("Scripts" if os.name == "nt" else "bin")
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not offline:
        done = subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{wheel}[experiments]"], check=False)
        if done.returncode == 0:
            return programs
        print("release-check: no packages from the index; those of the current environment are used", file=sys.stderr)
    call(*pip, "--no-deps", "--no-index", wheel)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([programs / "python", "-c", code], text=True).strip())
    # A path alone: links to a checkout, which an editable install has put there, are not followed.
    (site / "current.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def use(programs: Path, work: Path) -> None:
    """The commands and blocks of README, in a folder of their own."""
    home = work / "home"
    home.mkdir()
    code = "import slth; print(slth.__file__)"
    where = subprocess.check_output([programs / "python", "-c", code], cwd=home, text=True)
    if programs.parent not in Path(where.strip()).parents:
        sys.exit(f"release-check: slth is imported from {where.strip()}, not from the new environment")
    call(programs / "slth", "list", cwd=home)
    call(programs / "slth", "run", "approx_error", "with", "smoke", cwd=home)
    if not list(home.glob("runs/1/*.png")):
        sys.exit("release-check: the run has stored no figure")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (home / "readme.py").write_text("\n".join(blocks), encoding="utf-8")
    call(programs / "python", "readme.py", cwd=home)
    call(programs / "slth", "show", "t.safetensors", cwd=home)
    call(programs / "slth", "apply", "t.safetensors", "readme.py:build", "--out", "weights.safetensors", cwd=home)


def call(*command: object, cwd: Path = ROOT) -> None:
    """Run a program, or exit with its name."""
    print("$", *command, flush=True)
    if subprocess.run([*map(str, command)], cwd=cwd, check=False).returncode != 0:
        sys.exit(f"release-check: failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()

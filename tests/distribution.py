"""What `make dist` has built, tried as a user would: `python -m tests.distribution FOLDER`.

The wheel goes into an environment of its own, where nothing else of the checkout can be seen, and runs the demo there.
Nothing is downloaded: what jetgraph depends on is lent by the environment that this runs in.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]

CARRIED = ("py.typed", "*.pyi", "models/*/*", "page/web/*", "page/vendor/*")
"""What the wheel has besides code."""

CACHE = "__pycache__"
"""Where Python keeps what it has compiled."""

SOURCES = (
    "Makefile",
    "constraints.txt",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/guide.md",
    "examples/00_tutorial.ipynb",
    "mkdocs.yml",
    "tests/distribution.py",
)
"""Some of what the sdist has besides the package."""


def check_wheel(file: Path) -> str:
    """Everything of the package is in the wheel, and its metadata are whole. The version that it says."""
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        (place,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = message_from_bytes(wheel.read(place))
    package = ROOT / "jetgraph"
    found = {path for pattern in ("*.py", *CARRIED) for path in package.rglob(pattern) if path.is_file()}
    # Tests that ran before have left what they compiled in the checkout: no source, and nothing for a wheel.
    wanted = {path.relative_to(ROOT).as_posix() for path in found if path.parent.name != CACHE}
    assert not wanted - names, f"the wheel lacks {sorted(wanted - names)}"
    strange = {name for name in names if not name.startswith(("jetgraph/", place.partition("/")[0])) or CACHE in name}
    assert not strange, f"the wheel has {sorted(strange)} beside the package"
    for name in ("LICENSE", "jetgraph/page/vendor/cytoscape.LICENSE"):
        assert any(one.endswith(f"licenses/{name}") for one in names), f"the wheel lacks {name}"
    for header in ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Keywords", "Project-URL"):
        assert told[header], f"the metadata have no {header}"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert told["Version"] == version
    return version


def check_sdist(file: Path) -> None:
    """What tests, documents and pages are made from is in the sdist."""
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = set(SOURCES) - names
    assert not missing, f"the sdist lacks {sorted(missing)}"


def run_installed(file: Path, version: str) -> None:
    """Install the wheel by itself, and run the demo with it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "venv")
        venv.create(place, with_pip=False)
        python = place / "bin" / "python"
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*install, "--disable-pip-version-check", str(file)], check=True)
        # Of a path file in a path file nothing is read, so an editable install of the checkout is not seen.
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        lent = [path for path in sys.path if path.endswith("site-packages")]
        Path(own, "lent.pth").write_text("\n".join([*lent, ""]), encoding="utf-8")
        said = _said(folder, place / "bin" / "jetgraph", "--version")
        assert said.strip() == version, said
        where = _said(folder, python, "-c", "import jetgraph; print(jetgraph.__file__)")
        assert where.startswith(own), f"{where} is not the wheel's"
        _said(folder, place / "bin" / "jetgraph", "demo")
        report = Path(folder, "jetgraph-demo", "report.html").read_text(encoding="utf-8")
        assert "Content-Security-Policy" in report


def _said(folder: str, *command: str | Path) -> str:
    """What a command prints, without the environment's own paths."""
    ran = subprocess.run(
        [*command],
        cwd=folder,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": folder},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{' '.join(map(str, command))}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def main(folder: str) -> None:
    """Check what is in a folder."""
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    version = check_wheel(wheel)
    check_sdist(sdist)
    run_installed(wheel, version)
    sys.stdout.write(f"{wheel.name} and {sdist.name} are whole; the demo ran on the wheel\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

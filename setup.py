"""Build step that lays `configs/` into the wheel as `errata/_configs`; metadata is in pyproject.toml.

In a checkout (and in an editable install) the presets are read from `configs/` itself: no copy is made there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent / "configs"


class BuildWithConfigs(build_py):
    """`build_py` that also copies the shipped configuration files."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "errata" / "_configs"
            shutil.rmtree(target, ignore_errors=True)  # a file deleted from configs/ must not survive in build/
            shutil.copytree(SOURCE, target)


setup(cmdclass={"build_py": BuildWithConfigs})

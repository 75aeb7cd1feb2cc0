#!/usr/bin/env python3
"""Makes the stored training curves of tests/parity: 20 optimiser steps by PyTorch.

    python tests/parity/make_training_vectors.py

Needs torch, transformers (5.x) and safetensors. The project's tests read only what this writes
into tests/parity/data:

- train-qwen2/: the starting weights of a small Qwen2 (config.json, safetensors) and `adapter/`, a
  LoRA adapter in PEFT's layout with a non-zero B, so that its first gradient reaches A.
- training.json: the sequences of each step (each with the number of prompt tokens, which carry no
  loss), the settings, and per case the loss and the gradient norm before clipping of each step.

The loss of a step is the mean negative log-probability over all response tokens of its batch. The
step is clip_grad_norm_, AdamW, then the cosine schedule with warm-up of transformers. Cases:

- `fp32`: everything in fp32.
- `bf16`: fp32 master weights and optimiser; forward, backward and activations on a bf16 copy;
  gradients cast to fp32 before clipping. This is FSDP2's MixedPrecisionPolicy(bf16, fp32).
- `lora`: fp32, frozen base, y = W x + (alpha / rank) B A x on the target matrices, no dropout.
- `ema`: fp32; also the evaluation loss of the last batch under the moving average
  `ema <- decay ema + (1 - decay) p`, updated after every step.
- `groups`: fp32; parameters whose names match `freeze` are frozen, those that match a group's
  pattern (the first that does) step with that group's rate and weight decay.
"""
import copy
import json
import math
import pathlib
import re

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

DATA = pathlib.Path(__file__).parent / "data"
FOLDER = DATA / "train-qwen2"
CONFIG = dict(
    vocab_size=128, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0), attn_implementation="sdpa",
)
STEPS, SEQUENCES = 20, 6
ADAMW = dict(lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
MAX_GRAD_NORM, WARMUP = 1.0, 3
LORA = dict(rank=4, alpha=8, targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                      "up_proj", "down_proj"])
EMA_DECAY = 0.9
FREEZE = [r"layers\.1\.", r"embed_tokens"]
GROUPS = [dict(pattern=r"norm|bias$", weight_decay=0.0),
          dict(pattern=r"layers\.[02]\.mlp", learning_rate_scale=0.25, weight_decay=0.5)]


def starting_model():
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG)).float()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        scale = 0.1 if parameter.dim() > 1 else 0.05
        parameter.data = centre + scale * torch.randn(parameter.shape, generator=generator)
    return model


def batches():
    """Sequences of a noisy counting language, so that there is something to learn."""
    generator = torch.Generator().manual_seed(9)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    steps = []
    for _ in range(STEPS):
        rows = []
        for _ in range(SEQUENCES):
            length, token, stride = draw(6, 33), draw(3, 128), draw(1, 4)
            ids = []
            for _ in range(length):
                ids.append(token)
                token = 3 + (token - 3 + stride) % 125 if draw(0, 10) else draw(3, 128)
            rows.append({"ids": ids, "prompt_tokens": draw(1, length - 2)})
        steps.append(rows)
    return steps


def batch_loss(model, rows):
    """Mean over the response tokens of all rows, one forward a row: no padding to get wrong."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["ids"]])
        logp = model(ids).logits[0].float().log_softmax(-1)
        first = row["prompt_tokens"]
        targets = ids[0, first:]
        total = total - logp[first - 1:-1].gather(1, targets[:, None]).sum()
        count += len(targets)
    return total / count


def schedule(optimizer):
    return get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)


def train(model, parameters, steps, after=lambda: None, groups=None):
    optimizer = torch.optim.AdamW(groups or parameters, **ADAMW)
    rate = schedule(optimizer)
    losses, norms = [], []
    for rows in steps:
        loss = batch_loss(model, rows)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        optimizer.step()
        rate.step()
        after()
        losses.append(loss.item())
    return {"losses": losses, "grad_norms": norms}


def train_bf16(master, steps):
    parameters = list(master.parameters())
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    rate = schedule(optimizer)
    compute = copy.deepcopy(master).bfloat16()
    losses, norms = [], []
    for rows in steps:
        for low, high in zip(compute.parameters(), parameters):
            low.data.copy_(high.data)
            low.grad = None
        loss = batch_loss(compute, rows)
        loss.backward()
        for low, high in zip(compute.parameters(), parameters):
            high.grad = low.grad.float()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    return {"losses": losses, "grad_norms": norms}


def grouped(model):
    """Freezes, and makes the groups of torch.optim.AdamW."""
    groups = [{"params": [], "lr": ADAMW["lr"] * group.get("learning_rate_scale", 1.0),
               "weight_decay": group["weight_decay"]} for group in GROUPS]
    rest = {"params": []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(re.search(pattern, name) for pattern in FREEZE)
        if parameter.requires_grad:
            own = (made for group, made in zip(GROUPS, groups) if re.search(group["pattern"], name))
            next(own, rest)["params"].append(parameter)
    return [rest, *groups]


class LoraLinear(torch.nn.Module):
    def __init__(self, base, a, b):
        super().__init__()
        self.base, self.a, self.b = base, torch.nn.Parameter(a), torch.nn.Parameter(b)

    def forward(self, x):
        return self.base(x) + (LORA["alpha"] / LORA["rank"]) * (x @ self.a.T @ self.b.T)


def add_adapter(model):
    """Replaces the target matrices; returns the adapter's tensors under PEFT's names."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] not in LORA["targets"]:
            continue
        parent, leaf = model.get_submodule(name.rsplit(".", 1)[0]), name.rsplit(".", 1)[1]
        a = torch.randn((LORA["rank"], module.in_features), generator=generator)
        a = a / math.sqrt(module.in_features)
        b = 0.02 * torch.randn((module.out_features, LORA["rank"]), generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.clone()
        setattr(parent, leaf, LoraLinear(module, a, b))
    return tensors


def save_adapter(tensors):
    folder = FOLDER / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "",
        "r": LORA["rank"], "lora_alpha": LORA["alpha"], "lora_dropout": 0.0, "bias": "none",
        "target_modules": LORA["targets"], "fan_in_fan_out": False, "inference_mode": True,
    }, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    steps = batches()
    start = starting_model()
    FOLDER.mkdir(parents=True, exist_ok=True)
    start.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    cases = {}

    model = copy.deepcopy(start)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def follow():
        for name, parameter in model.named_parameters():
            average[name].mul_(EMA_DECAY).add_(parameter.detach(), alpha=1 - EMA_DECAY)

    cases["fp32"] = train(model, list(model.parameters()), steps, follow)
    for name, parameter in model.named_parameters():
        parameter.data = average[name]
    with torch.no_grad():
        cases["ema"] = {"decay": EMA_DECAY, "last_batch_loss": batch_loss(model, steps[-1]).item()}

    cases["bf16"] = train_bf16(copy.deepcopy(start), steps)

    model = copy.deepcopy(start)
    save_adapter(add_adapter(model))
    cases["lora"] = train(model, [p for p in model.parameters() if p.requires_grad], steps)

    model = copy.deepcopy(start)
    groups = grouped(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    cases["groups"] = train(model, trained, steps, groups=groups)
    cases["groups"] |= {"freeze": FREEZE, "groups": GROUPS}

    settings = {"lr": ADAMW["lr"], "beta1": ADAMW["betas"][0], "beta2": ADAMW["betas"][1],
                "eps": ADAMW["eps"], "weight_decay": ADAMW["weight_decay"],
                "max_grad_norm": MAX_GRAD_NORM, "warmup_steps": WARMUP, "steps": STEPS,
                "schedule": "cosine"}
    document = {"torch": torch.__version__, "settings": settings, "steps": steps, "cases": cases}
    (DATA / "training.json").write_text(json.dumps(document) + "\n")
    for name, case in cases.items():
        print(name, {key: value if not isinstance(value, list) else value[:2] + value[-2:]
                     for key, value in case.items()})


if __name__ == "__main__":
    main()

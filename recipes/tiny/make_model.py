"""Makes recipes/tiny/model: a Llama of 27 thousand random parameters over single bytes.

It can say nothing, but it can learn: the tiny recipe runs every stage with it in seconds.
Needs numpy, safetensors and tokenizers; the result is kept in the repository.
"""

import json
import pathlib

import numpy
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 32, 2, 4, 2, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

folder = pathlib.Path(__file__).parent / "model"
folder.mkdir(exist_ok=True)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {piece: i for i, piece in enumerate(SPECIAL + letters)}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.save(str(folder / "tokenizer.json"))

config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": True, "vocab_size": len(vocabulary),
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1) + "\n")
write("config.json", config)
write("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
write("tokenizer_config.json", {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1],
    "eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "chat_template": CHAT,
})

random = numpy.random.default_rng(0)
draw = lambda *shape: random.normal(0, 0.08, shape).astype(numpy.float32)
ones = lambda: numpy.ones(HIDDEN, numpy.float32)
width = HIDDEN // HEADS * KV_HEADS
tensors = {"model.embed_tokens.weight": draw(len(vocabulary), HIDDEN), "model.norm.weight": ones()}
for i in range(LAYERS):
    at = f"model.layers.{i}."
    tensors |= {
        at + "input_layernorm.weight": ones(), at + "post_attention_layernorm.weight": ones(),
        at + "self_attn.q_proj.weight": draw(HIDDEN, HIDDEN),
        at + "self_attn.k_proj.weight": draw(width, HIDDEN),
        at + "self_attn.v_proj.weight": draw(width, HIDDEN),
        at + "self_attn.o_proj.weight": draw(HIDDEN, HIDDEN),
        at + "mlp.gate_proj.weight": draw(INTERMEDIATE, HIDDEN),
        at + "mlp.up_proj.weight": draw(INTERMEDIATE, HIDDEN),
        at + "mlp.down_proj.weight": draw(HIDDEN, INTERMEDIATE),
    }
save_file(tensors, folder / "model.safetensors", {"format": "pt"})

"""Makes actor-worker/src/testdata/dialogue_vectors.json: token ids of dialogues and which of them are
the assistant's, by transformers' `apply_chat_template(return_assistant_tokens_mask=True)`.

transformers takes the mask from `{% generation %}` marks, which published templates lack; the
marked copies below differ from the plain ones by these marks alone, and the script checks that both
render the same text.

    python tests/parity/make_dialogue_vectors.py        # transformers 5, no weights
"""

import json
import pathlib

import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTDATA = ROOT / "crates/model/src/testdata"

CHATML_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
CHATML_MARKED = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
)
LLAMA3_TURN = (
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' }}"
)
LLAMA3_MARKED = (
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}"
)
STORIES_TURN = "A: {{ m['content'] }}{{ eos_token }}"
# The tokenizer takes blanks off the end of a prompt, so that the model writes this one itself.
STORIES_MARKED = "A:{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}"

DIALOGUES = {
    "one": [("user", "What is 2 + 2?"), ("assistant", "4.")],
    "system": [("system", "Be kind."), ("user", "Hello <there>"), ("assistant", "Hello é漢")],
    "turns": [
        ("user", "Hi"),
        ("assistant", "Hello, you."),
        ("user", "And then?\n"),
        ("assistant", "Then we\n\nstop."),
    ],
    "open": [("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")],
}


def case(tokenizer, plain, marked, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    render = lambda template: tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False
    )
    assert render(plain) == render(marked), (render(plain), render(marked))
    out = tokenizer.apply_chat_template(
        messages,
        chat_template=marked,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask, spans = out["assistant_masks"], []
    for at, learnt in enumerate(mask):
        if learnt and at > 0 and mask[at - 1]:
            spans[-1][1] = at + 1
        elif learnt:
            spans.append([at, at + 1])
    # What stands before an answer is what the model is given when it answers.
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for at, (first, _) in zip(answers, spans, strict=True):
        prompt = tokenizer.apply_chat_template(
            messages[:at], chat_template=plain, tokenize=True, add_generation_prompt=True,
            return_dict=True,
        )
        assert out["input_ids"][:first] == prompt["input_ids"], (messages, at)
    return {"messages": messages, "ids": out["input_ids"], "targets": spans}


def main():
    tiny = transformers.AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    stories = transformers.AutoTokenizer.from_pretrained(ROOT / "tests/parity/data/stories260k")
    chatml = (TESTDATA / "smollm2.jinja").read_text()
    llama3 = (TESTDATA / "llama3_style.jinja").read_text()
    sets = [
        ("smollm2", "recipes/tiny/model", tiny, chatml, CHATML_TURN, CHATML_MARKED),
        ("llama3_style", "recipes/tiny/model", tiny, llama3, LLAMA3_TURN, LLAMA3_MARKED),
        ("stories260k", "tests/parity/data/stories260k", stories, stories.chat_template,
         STORIES_TURN, STORIES_MARKED),
    ]
    vectors = []
    for name, folder, tokenizer, plain, turn, marked in sets:
        assert turn in plain, name
        marked = plain.replace(turn, marked)
        cases = {key: case(tokenizer, plain, marked, turns) for key, turns in DIALOGUES.items()}
        vectors.append({"name": name, "folder": folder, "template": plain, "cases": cases})
    path = ROOT / "actor-worker/src/testdata/dialogue_vectors.json"
    path.parent.mkdir(exist_ok=True)
    about = f"transformers {transformers.__version__}, tests/parity/make_dialogue_vectors.py"
    path.write_text(json.dumps({"made_by": about, "templates": vectors}, ensure_ascii=False, indent=1) + "\n")


main()

//! Expected strings were written by transformers 5 (`apply_chat_template`) on the same templates.

use super::*;

const CHATML: &str = include_str!("testdata/smollm2.jinja");
const QWEN: &str = include_str!("testdata/qwen_style.jinja");
const LLAMA3: &str = include_str!("testdata/llama3_style.jinja");

fn conversation(name: &str) -> (Vec<ChatMessage>, bool) {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("testdata/chat_cases.json")).unwrap();
    let case = &cases[name];
    (
        serde_json::from_value(case["messages"].clone()).unwrap(),
        case["add_generation_prompt"].as_bool().unwrap(),
    )
}

#[test]
fn renders_as_transformers_does() {
    let expected: serde_json::Value =
        serde_json::from_str(include_str!("testdata/chat_expected.json")).unwrap();
    let mut compared = 0;
    for (template, source) in [("smollm2", CHATML), ("qwen_style", QWEN), ("llama3_style", LLAMA3)]
    {
        let compiled = ChatTemplate::new(source.to_owned())
            .unwrap()
            .with_tokens(Some("<|begin|>"), Some("<|im_end|>"));
        for (case, text) in expected[template].as_object().unwrap() {
            let (messages, add_generation_prompt) = conversation(case);
            let rendered = compiled.render(&messages, add_generation_prompt).unwrap();
            assert_eq!(rendered, text.as_str().unwrap(), "{template} on {case}");
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
}

#[test]
fn an_exception_names_the_template_line() {
    let template = ChatTemplate::new(
        "\n{% if messages|length > 1 %}\n{{ raise_exception('one message only') }}{% endif %}"
            .into(),
    );
    let user = |text: &str| ChatMessage { role: "user".into(), content: text.into() };
    let error = template.unwrap().render(&[user("a"), user("b")], true).unwrap_err();
    assert_eq!(error.to_string(), "chat template, line 3, on 2 messages: one message only");
}

#[test]
fn a_syntax_error_names_the_template_line() {
    let error = ChatTemplate::new("ok\n{% for %}".into()).unwrap_err();
    assert!(error.to_string().starts_with("chat template, line 2: "), "{error}");
}

#[test]
fn dates_and_json_are_written_as_python_does() {
    let template =
        ChatTemplate::new("{{ strftime_now('%Y') }} {{ messages[0] | tojson }}".into()).unwrap();
    let message = ChatMessage { role: "user".into(), content: "a < \"b\"".into() };
    let year = time::OffsetDateTime::now_utc().year();
    assert_eq!(
        template.render(&[message], false).unwrap(),
        format!(r#"{year} {{"role": "user", "content": "a < \"b\""}}"#)
    );
}

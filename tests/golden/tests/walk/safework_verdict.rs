//! SafeWork-R1: verifiers' prompts and verdicts, the language rule, and the reward-model flag.

use plumb_algo::reward_models::{Entry, RewardPretrain};
use plumb_algo::verdict::dialogue::Dialogue;
use plumb_algo::verdict::judge_prompt::{ByLanguage, Exchange, JudgePrompt};
use plumb_algo::verdict::{self, Verifier};
use plumb_golden::{Case, Failure};
use serde_json::{Map, Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safework/format_language_rule_reward", Check::Result(format_language)),
    ("safework/general_score_parse", Check::Result(general)),
    ("safework/judge_prompt_assembly", Check::Result(judge_prompts)),
    ("safework/normal_verdict_score", Check::Result(normal)),
    ("safework/parse_dialog", Check::Result(dialogue)),
    ("safework/parse_reward_pretrain", Check::Result(reward_pretrain)),
    ("safework/safety_verdict_score", Check::Result(safety)),
    ("safework/value_knowledge_scores", Check::Result(value_knowledge)),
];

/// An argument that must be text: our functions take nothing else.
fn text<'a>(case: &'a Case, key: &str) -> Result<&'a str, Failure> {
    case.inputs.get(key)?.as_str().ok_or_else(|| Failure::refused(format!("{key} is no text")))
}

fn general(case: &Case) -> Result<Value, Failure> {
    Ok(json!(Verifier::General.score(text(case, "text")?)))
}

fn normal(case: &Case) -> Result<Value, Failure> {
    Ok(json!(Verifier::Normal.score(text(case, "text")?)))
}

fn safety(case: &Case) -> Result<Value, Failure> {
    Ok(json!(Verifier::Safety.score(text(case, "text")?)))
}

fn value_knowledge(case: &Case) -> Result<Value, Failure> {
    let text = text(case, "text")?;
    Ok(json!({"value": Verifier::Value.score(text), "knowledge": Verifier::Knowledge.score(text)}))
}

fn format_language(case: &Case) -> Result<Value, Failure> {
    let score = verdict::language::format_language_reward(text(case, "query")?);
    score.map(|score| json!(score)).map_err(Failure::refused)
}

fn dialogue(case: &Case) -> Result<Value, Failure> {
    let dialogue = Dialogue::parse(text(case, "text")?);
    let turns = dialogue.turns().map(|(role, said)| (role.to_owned(), json!(said)));
    Ok(Value::Object(turns.collect()))
}

/// A template for all samples, or one a sample.
fn template(templates: &Value, sample: usize) -> Result<&str, Failure> {
    let template = match templates {
        Value::Array(own) => own.get(sample),
        all => Some(all),
    };
    template.and_then(Value::as_str).ok_or_else(|| Failure::refused("no template"))
}

fn judge_prompts(case: &Case) -> Result<Value, Failure> {
    let (zh, en) = (case.inputs.get("template_zh")?, case.inputs.get("template_en")?);
    let system = case.params.flag("system_prompt")?.then(|| -> Result<_, Failure> {
        let text = |key| case.inputs.get(key)?.as_str().ok_or_else(|| Failure::refused(key));
        Ok(ByLanguage { zh: text("system_zh")?, en: text("system_en")? })
    });
    let system = system.transpose()?;
    let references = case.inputs.list("references")?;
    let mut prompts = Vec::new();
    for (sample, chat) in case.inputs.texts("prompt_and_outputs")?.into_iter().enumerate() {
        // A list of templates, one a sample, serves both languages.
        let template = ByLanguage {
            zh: template(zh, sample)?,
            en: template(if zh.is_array() { zh } else { en }, sample)?,
        };
        let reference = match references.get(sample) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Null) => Some("None".to_owned()),
            Some(other) => Some(other.to_string()),
            None => return Err(Failure::refused("fewer references than samples")),
        };
        let prompt = JudgePrompt { template, system }
            .write(&Exchange::parse(chat), reference.as_deref())
            .map_err(Failure::refused)?;
        prompts.push(prompt);
    }
    Ok(json!(prompts))
}

fn reward_pretrain(case: &Case) -> Result<Value, Failure> {
    let flag = match case.inputs.get("raw")? {
        Value::Null => RewardPretrain::Absent,
        Value::String(text) => RewardPretrain::Text(text.clone()),
        Value::Array(entries) => RewardPretrain::List(
            entries
                .iter()
                .map(|entry| serde_json::from_value::<Entry>(entry.clone()))
                .collect::<Result<_, _>>()
                .map_err(Failure::refused)?,
        ),
        Value::Object(table) => {
            let order = case.order.of("raw");
            let pairs = order.keys().map(|key| {
                Some((key.to_owned(), table.get(key).and_then(Value::as_str)?.to_owned()))
            });
            let pairs: Option<Vec<_>> = pairs.collect();
            RewardPretrain::Table(pairs.ok_or_else(|| Failure::refused("a path is no text"))?)
        }
        other => return Err(Failure::refused(format!("{other} is no such flag"))),
    };
    let models = flag.parse(case.params.flag("global_use_engine")?).map_err(Failure::refused)?;
    let rows = models.label_map().into_iter().map(|(v, row)| (v.name().to_owned(), json!(row)));
    Ok(json!({"configs": models.models, "label_map": rows.collect::<Map<_, _>>()}))
}

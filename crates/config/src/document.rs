//! `docs/recipe.md`, made from the schema's own source: field comments, types, defaults.

use std::fmt::Write as _;

const SOURCES: [&str; 11] = [
    include_str!("schema.rs"),
    include_str!("schema/data.rs"),
    include_str!("schema/model.rs"),
    include_str!("schema/algorithm.rs"),
    include_str!("schema/critic.rs"),
    include_str!("schema/lora.rs"),
    include_str!("schema/loss.rs"),
    include_str!("schema/optimizer.rs"),
    include_str!("schema/reward.rs"),
    include_str!("schema/stage.rs"),
    include_str!("schema/training.rs"),
];

/// Tables in the order of the document: how they stand in a recipe, and their struct.
const TABLES: [(&str, &str); 40] = [
    ("(top level)", "Recipe"),
    ("[model]", "ModelConfig"),
    ("[data]", "DataConfig"),
    ("[groups]", "GroupsConfig"),
    ("[groups.ROLE]", "GroupConfig"),
    ("[engine]", "EngineConfig"),
    ("[engine.offload]", "OffloadConfig"),
    ("[rollout]", "RolloutConfig"),
    ("[sampling]", "SamplingConfig"),
    ("[[sampling.logit_bias]]", "TokenBiasConfig"),
    ("[algorithm]", "AlgorithmConfig"),
    ("[algorithm.loss]", "LossConfig"),
    ("[algorithm.loss.importance]", "ImportanceConfig"),
    ("[algorithm.kl]", "KlConfig"),
    ("[algorithm.optimizer]", "OptimizerConfig"),
    ("[[algorithm.optimizer.group]]", "ParameterGroupConfig"),
    ("[algorithm.optimizer.ema]", "EmaConfig"),
    ("[algorithm.lora]", "LoraConfig"),
    ("[algorithm.gae]", "GaeConfig"),
    ("[algorithm.critic]", "CriticConfig"),
    ("[algorithm.lagrange]", "LagrangeConfig"),
    ("[algorithm.ptx]", "PtxConfig"),
    ("[reward]", "RewardConfig"),
    ("[[reward.component]]", "Component"),
    ("[checkpoint]", "CheckpointConfig"),
    ("[timeouts]", "TimeoutConfig"),
    ("[[stage]] prepare", "PrepareStage"),
    ("[[stage]] sample", "SampleStage"),
    ("[[stage]] label", "LabelStage"),
    ("[[stage]] sft", "SftStage"),
    ("[[stage]] reward_model", "RewardModelStage"),
    ("[[stage]] cost_model", "CostModelStage"),
    ("[[stage]] dpo", "DpoStage"),
    ("[stage.head]", "ScoreHeadConfig"),
    ("[[stage]] grpo, ppo, ppo_lag", "GrpoStage"),
    ("[[stage]] export", "ExportStage"),
    ("[[stage]] evaluate", "EvaluateStage"),
    ("[[stage.measure]]", "Measure"),
    ("[stage.optimizer]", "OptimizerConfig"),
    ("[stage.lora]", "LoraConfig"),
];

/// One key as its struct declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    kind: String,
    text: String,
    optional: bool,
}

/// One struct of the schema.
struct Table {
    text: String,
    fields: Vec<Field>,
}

/// The whole document, Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Recipe keys\n\nMade from the comments in `crates/config/src/schema`; `cargo test -p \
         plumb-config` compares the two and `UPDATE_DOCS=1` writes this file anew. A key that is \
         not listed here is an error.\n",
    );
    for (at, name) in TABLES {
        let Some(table) = table(name) else { continue };
        if let Some(same) = ["optimizer", "lora"].iter().find(|key| at == format!("[stage.{key}]"))
        {
            let _ = write!(out, "\n## `[stage.{same}]`\n\nAs `[algorithm.{same}]`.\n");
            continue;
        }
        let _ = write!(out, "\n## `{at}`\n\n{}\n\n", table.text);
        out.push_str("| key | type | meaning |\n|---|---|---|\n");
        for field in table.fields {
            let optional = if field.optional { ", optional" } else { "" };
            let _ = writeln!(
                out,
                "| `{}` | {}{optional} | {} |",
                field.name,
                field.kind,
                field.text.replace('|', "\\|")
            );
        }
    }
    out
}

/// Every key of the schema: its name, and its name with the table it stands in.
#[must_use]
pub fn keys() -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for (at, name) in TABLES {
        let prefix = match at.trim_matches(['[', ']']) {
            "(top level)" => String::new(),
            other => format!("{}.", other.replace("]] ", ".")),
        };
        for field in table(name).map(|t| t.fields).unwrap_or_default() {
            keys.push((field.name.clone(), format!("{prefix}{}", field.name)));
        }
    }
    keys
}

fn table(name: &str) -> Option<Table> {
    SOURCES.iter().find_map(|source| parse(source, name))
}

/// Reads `pub struct name { .. }` and the comments above it and its fields.
fn parse(source: &str, name: &str) -> Option<Table> {
    let head = format!("pub struct {name} {{");
    let lines: Vec<&str> = source.lines().collect();
    let start = lines.iter().position(|line| *line == head)?;
    let above: Vec<&str> = lines[..start]
        .iter()
        .rev()
        .take_while(|line| line.starts_with("///") || line.starts_with("#["))
        .copied()
        .collect();
    let defaults = above.iter().any(|line| line.starts_with("#[serde") && line.contains("default"));
    let text = above.iter().rev().filter_map(|l| l.strip_prefix("///")).map(str::trim);
    let text = text.collect::<Vec<_>>().join(" ");
    let mut fields = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut optional = defaults;
    for line in lines[start + 1..].iter().map(|l| l.trim()).take_while(|l| *l != "}") {
        if let Some(words) = line.strip_prefix("///") {
            comment.push(words.trim());
        } else if line.starts_with("#[serde") {
            optional |= line.contains("default");
        } else if let Some((name, kind)) =
            line.strip_prefix("pub ").and_then(|l| l.trim_end_matches(',').split_once(": "))
        {
            let optional = std::mem::replace(&mut optional, defaults);
            let text = std::mem::take(&mut comment).join(" ");
            fields.push(Field { name: name.to_owned(), kind: plain_type(kind), text, optional });
        }
    }
    Some(Table { text, fields })
}

/// A Rust type in a reader's words.
fn plain_type(kind: &str) -> String {
    let inner = |wrapper: &str| {
        kind.strip_prefix(wrapper).and_then(|k| k.strip_suffix('>')).map(plain_type)
    };
    if let Some(kind) = inner("Option<") {
        return kind;
    }
    if let Some(kind) = inner("Vec<") {
        return format!("list of {kind}");
    }
    match kind {
        "String" => "text".into(),
        "DataSources" => "text or list of text".into(),
        "bool" => "true / false".into(),
        "u32" | "u64" | "usize" => "integer".into(),
        "f64" => "number".into(),
        "[f64; 2]" => "two numbers".into(),
        "(u64, f64)" => "pairs of integer and number".into(),
        kind if kind.contains("Table") || kind.contains("BTreeMap") => "table".into(),
        kind if kind.ends_with("Config") || ["Stage", "Component", "Measure"].contains(&kind) => {
            "table".into()
        }
        _ => "word".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_schema_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/recipe.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == markdown(), "docs/recipe.md is stale: run with UPDATE_DOCS=1");
    }

    #[test]
    fn every_table_and_key_has_words() {
        for (at, name) in TABLES {
            let table = table(name).unwrap_or_else(|| panic!("{name} is not in the sources"));
            assert!(!table.text.is_empty(), "{at}");
            assert!(!table.fields.is_empty(), "{at}");
            for field in table.fields {
                assert!(!field.text.is_empty(), "{at} {}", field.name);
            }
        }
    }

    #[test]
    fn fields_carry_type_text_and_whether_they_may_be_left_out() {
        let table = table("SampleStage").unwrap();
        let max = table.fields.iter().find(|f| f.name == "max_prompts").unwrap();
        assert_eq!((max.kind.as_str(), max.optional), ("integer", true));
        let n = table.fields.iter().find(|f| f.name == "samples_per_prompt").unwrap();
        assert_eq!((n.kind.as_str(), n.optional), ("integer", false));
    }
}

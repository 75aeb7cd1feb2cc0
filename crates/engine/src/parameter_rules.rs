//! Which parameters are trained, and which step with a rate or decay of their own: regular
//! expressions over the parameters' Hugging Face names, found anywhere in a name.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::flat::FlatBlock;
use crate::{EngineError, Result};

/// Parameters that step with a rate or decay of their own. The first group whose pattern is found
/// in a name has the parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParameterGroup {
    /// Regular expression.
    pub pattern: String,
    /// Factor of the step's learning rate, above 0.
    pub learning_rate_scale: f64,
    /// Decoupled decay; absent: that of all.
    pub weight_decay: Option<f64>,
}

/// Takes the parameters that a pattern is found in out of training. `names` and `trained` have
/// one list per block, one entry per parameter.
///
/// # Errors
/// [`EngineError::Pattern`] for one that is no regular expression or that nothing trained has.
pub(crate) fn freeze(
    patterns: &[String],
    names: &[Vec<String>],
    trained: &mut [Vec<bool>],
) -> Result<()> {
    for pattern in patterns {
        let regex = compiled("freeze", pattern)?;
        let mut found = false;
        let slots = names.iter().flatten().zip(trained.iter_mut().flatten());
        for (_, trained) in slots.filter(|(name, trained)| **trained && regex.is_match(name)) {
            *trained = false;
            found = true;
        }
        if !found {
            let all = names.iter().flatten().map(String::as_str);
            return Err(nothing_found("freeze", pattern, all));
        }
    }
    if !patterns.is_empty() && !trained.iter().flatten().any(|trained| *trained) {
        let problem = "freeze leaves no parameter to train; take a pattern out";
        return Err(EngineError::Unsuited(problem.to_owned()));
    }
    Ok(())
}

/// The group of every parameter, by block and slot; `None` is that of the rest.
///
/// # Errors
/// [`EngineError::Pattern`] for one that is no regular expression or that no trained parameter
/// has which an earlier group left.
pub(crate) fn groups_of(
    groups: &[ParameterGroup],
    blocks: &[FlatBlock],
) -> Result<Vec<Vec<Option<usize>>>> {
    let mut of: Vec<Vec<_>> = blocks.iter().map(|b| vec![None; b.layout.slots.len()]).collect();
    for (index, group) in groups.iter().enumerate() {
        let regex = compiled("group", &group.pattern)?;
        let mut found = false;
        for (block, of) in blocks.iter().zip(&mut of) {
            let slots = block.layout.slots.iter().zip(&block.trained).zip(of);
            for ((slot, trained), of) in slots {
                if *trained && of.is_none() && regex.is_match(&slot.name) {
                    *of = Some(index);
                    found = true;
                }
            }
        }
        if !found {
            let all = blocks.iter().flat_map(|block| &block.layout.slots);
            return Err(nothing_found("group", &group.pattern, all.map(|slot| slot.name.as_str())));
        }
    }
    Ok(of)
}

fn compiled(key: &'static str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| EngineError::Pattern {
        key,
        pattern: pattern.to_owned(),
        problem: format!("is no regular expression: {error}"),
    })
}

fn nothing_found<'a>(
    key: &'static str,
    pattern: &str,
    mut names: impl Iterator<Item = &'a str>,
) -> EngineError {
    let (first, last) = (names.next().unwrap_or(""), names.last().unwrap_or(""));
    let problem = format!(
        "matches no parameter that is trained and that no pattern before it has; the model's \
         names are from {first} to {last}"
    );
    EngineError::Pattern { key, pattern: pattern.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&[&str]; 2] = [
        &["model.embed_tokens.weight"],
        &["model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"],
    ];

    fn frozen(patterns: &[&str]) -> Result<Vec<Vec<bool>>> {
        let owned = |names: &&[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let names: Vec<Vec<String>> = NAMES.iter().map(owned).collect();
        let mut trained = vec![vec![true], vec![true, true]];
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        freeze(&patterns, &names, &mut trained).map(|()| trained)
    }

    #[test]
    fn a_pattern_freezes_what_it_is_found_in() {
        assert_eq!(frozen(&[]).unwrap(), [vec![true], vec![true, true]]);
        assert_eq!(frozen(&["^model.embed", "norm"]).unwrap(), [vec![false], vec![true, false]]);
    }

    #[test]
    fn a_pattern_without_effect_or_sense_is_named() {
        let message = frozen(&["layers\\.7\\."]).unwrap_err().to_string();
        assert!(message.contains("layers\\.7\\.") && message.contains("embed_tokens"), "{message}");
        let message = frozen(&["embed", "embed_tokens"]).unwrap_err().to_string();
        assert!(message.contains("embed_tokens\" matches no"), "{message}");
        let message = frozen(&["norm("]).unwrap_err().to_string();
        assert!(message.contains("norm(") && message.contains("regular expression"), "{message}");
        let message = frozen(&["."]).unwrap_err().to_string();
        assert!(message.contains("no parameter to train"), "{message}");
    }
}

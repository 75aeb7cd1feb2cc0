//! Rules made of rules: `all`, `any`, `product`, `not`, `weighted`.

use serde::{Deserialize, Serialize};

use super::{Answer, Rule, RuleError, check};

/// `{"rule": "all", "of": [...]}`: the least score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct All {
    /// The rules, at least one.
    pub of: Vec<Rule>,
}

/// `{"rule": "any", "of": [...]}`: the greatest score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Any {
    /// The rules, at least one.
    pub of: Vec<Rule>,
}

/// `{"rule": "product", "of": [...]}`: the scores multiplied. One score of 0 vetoes the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// The rules, at least one.
    pub of: Vec<Rule>,
}

/// `{"rule": "not", "of": {...}}`: 1 - the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Not {
    /// The rule.
    pub of: Box<Rule>,
}

/// `{"rule": "weighted", "of": [{"weight": 0.9, "rule": {...}}, ...]}`: the weighted sum. The
/// weights are not normalised; negative ones make penalties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    /// The terms, at least one.
    pub of: Vec<Term>,
}

/// One term of a weighted sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Its weight.
    pub weight: f64,
    /// Its rule.
    pub rule: Rule,
}

impl All {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("all", "of", "[]", !self.of.is_empty(), "at least one rule")?;
        self.of.iter().try_for_each(Rule::validate)
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        self.of.iter().try_fold(f64::INFINITY, |least, rule| Ok(least.min(rule.score(answer)?)))
    }
}

impl Any {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("any", "of", "[]", !self.of.is_empty(), "at least one rule")?;
        self.of.iter().try_for_each(Rule::validate)
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        self.of.iter().try_fold(f64::NEG_INFINITY, |most, rule| Ok(most.max(rule.score(answer)?)))
    }
}

impl Product {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("product", "of", "[]", !self.of.is_empty(), "at least one rule")?;
        self.of.iter().try_for_each(Rule::validate)
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        self.of.iter().try_fold(1.0, |product, rule| Ok(product * rule.score(answer)?))
    }
}

impl Weighted {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("weighted", "of", "[]", !self.of.is_empty(), "at least one term")?;
        for term in &self.of {
            check("weighted", "weight", term.weight, term.weight.is_finite(), "a finite number")?;
            term.rule.validate()?;
        }
        Ok(())
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        self.of.iter().try_fold(0.0, |sum, t| Ok(sum + t.weight * t.rule.score(answer)?))
    }
}

//! Data sets by name: what their rows look like, and what can be made of them.

use serde_json::Value;

use crate::prompts::{self, Fallback};
use crate::rank_row::RankRow;
use crate::safe_rlhf_rows as rows;
use crate::safety_row::safety_rows;
use crate::{PopRow, PreferenceRow, PreferredBy, RawSample, RowFault, SafeFlags, SupervisedRow};
use plumb_domain::Prompt;

/// The fields that rows have. Each schema has names; `name[:proportion[:path]]` takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// Prompts of this system's own form: `id`, `label`, `prompt` or `messages`, `reference`.
    Prompts,
    /// `messages`, or `prompt` and `response`.
    Supervised,
    /// `prompt`, `chosen`, `rejected`.
    Preferences,
    /// HC-RLHF's preferences over preferences: `pref_prompt`, `pref_chosen`, `pref_rejected`,
    /// `unpref_prompt`, `unpref_chosen`, `unpref_rejected`.
    Pop,
    /// safe-rlhf's raw samples: `input`, `answer`, `other_answer`, `dialogue` and flags.
    RawSamples,
    /// Alpaca.
    Alpaca,
    /// Firefly.
    Firefly,
    /// HH-RLHF, as dialogues.
    HhDialogue,
    /// HH-RLHF, as preferences.
    HhPreference,
    /// MOSS 002.
    Moss002,
    /// MOSS 003.
    Moss003,
    /// PKU-SafeRLHF.
    PkuSafeRlhf,
    /// Prompts of SafeWork-R1 (LightRFT).
    SafeWork,
    /// Dialogues of SaFeR-Steer.
    SaferSteer,
    /// Prompts of UPS-RM, from PKU-SafeRLHF's rows.
    UpsRm,
    /// Recommendations of Rank-GRPO.
    RankGrpo,
}

/// Names and what they stand for. The first name of a schema is the one that errors show; the
/// others are those that the systems of its source know it by.
const NAMES: [(&str, Schema); 41] = [
    ("prompts", Schema::Prompts),
    ("supervised", Schema::Supervised),
    ("preferences", Schema::Preferences),
    ("pop", Schema::Pop),
    ("UF-PoP/train", Schema::Pop),
    ("UF-PoP/test", Schema::Pop),
    ("raw-samples", Schema::RawSamples),
    ("alpaca", Schema::Alpaca),
    ("stanford-alpaca", Schema::Alpaca),
    ("firefly", Schema::Firefly),
    ("hh-rlhf-dialogue", Schema::HhDialogue),
    ("hh-dialogue", Schema::HhDialogue),
    ("hh-rlhf-harmless-dialogue", Schema::HhDialogue),
    ("hh-rlhf-helpful-dialogue", Schema::HhDialogue),
    ("hh-harmless-dialogue", Schema::HhDialogue),
    ("hh-helpful-dialogue", Schema::HhDialogue),
    ("hh-rlhf-preference", Schema::HhPreference),
    ("hh-preference", Schema::HhPreference),
    ("hh-rlhf-harmless-preference/train", Schema::HhPreference),
    ("hh-rlhf-harmless-preference/test", Schema::HhPreference),
    ("hh-rlhf-helpful-preference/train", Schema::HhPreference),
    ("hh-rlhf-helpful-preference/test", Schema::HhPreference),
    ("hh-harmless-preference/train", Schema::HhPreference),
    ("hh-harmless-preference/test", Schema::HhPreference),
    ("hh-helpful-preference/train", Schema::HhPreference),
    ("hh-helpful-preference/test", Schema::HhPreference),
    ("moss-002-sft", Schema::Moss002),
    ("moss-003-sft", Schema::Moss003),
    ("PKU-SafeRLHF/train", Schema::PkuSafeRlhf),
    ("PKU-SafeRLHF/test", Schema::PkuSafeRlhf),
    ("PKU-SafeRLHF-30K/train", Schema::PkuSafeRlhf),
    ("PKU-SafeRLHF-30K/test", Schema::PkuSafeRlhf),
    ("PKU-SafeRLHF-10K/train", Schema::PkuSafeRlhf),
    ("PKU-Alignment/PKU-SafeRLHF/train", Schema::PkuSafeRlhf),
    ("PKU-Alignment/PKU-SafeRLHF/test", Schema::PkuSafeRlhf),
    ("PKU-Alignment/PKU-SafeRLHF-30K/train", Schema::PkuSafeRlhf),
    ("PKU-Alignment/PKU-SafeRLHF-30K/test", Schema::PkuSafeRlhf),
    ("safework", Schema::SafeWork),
    ("safer-steer", Schema::SaferSteer),
    ("ups-rm", Schema::UpsRm),
    ("rank-grpo", Schema::RankGrpo),
];

/// What a row can be made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Prompts to answer.
    Prompts,
    /// Conversations to learn.
    Supervised,
    /// Pairs of answers.
    Preferences,
    /// Pairs of such pairs.
    Pops,
}

impl Use {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Supervised => "conversations to learn",
            Self::Preferences => "preferences",
            Self::Pops => "preferences over preferences",
        }
    }
}

impl Schema {
    /// The schema of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, schema)| *schema)
    }

    /// Every name.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        NAMES.iter().map(|(name, _)| *name).collect()
    }

    /// What its rows can be made into.
    #[must_use]
    pub fn uses(self) -> &'static [Use] {
        use Use::{Pops, Preferences, Prompts, Supervised};
        match self {
            Self::Prompts | Self::SafeWork | Self::SaferSteer | Self::UpsRm => &[Prompts],
            Self::Supervised | Self::Alpaca | Self::Firefly | Self::RankGrpo => {
                &[Prompts, Supervised]
            }
            Self::HhDialogue | Self::Moss002 | Self::Moss003 => &[Supervised],
            Self::Preferences | Self::HhPreference | Self::PkuSafeRlhf => &[Prompts, Preferences],
            Self::Pop => &[Pops],
            Self::RawSamples => &[Prompts, Supervised, Preferences],
        }
    }

    /// The label of prompts whose data is about one thing.
    #[must_use]
    pub fn own_label(self) -> Option<&'static str> {
        match self {
            Self::SaferSteer | Self::UpsRm | Self::PkuSafeRlhf => Some("safety"),
            _ => None,
        }
    }

    /// The row as one of safe-rlhf's samples; `None` for schemas that are not safe-rlhf's.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn raw_sample(self, row: &Value) -> Option<Result<RawSample, RowFault>> {
        Some(match self {
            Self::RawSamples => RawSample::from_json(row).map_err(RowFault::from),
            Self::PkuSafeRlhf => {
                RawSample::from_pku_saferlhf(row, SafeFlags::Strict).map_err(RowFault::from)
            }
            Self::Alpaca => rows::alpaca(row),
            Self::Firefly => rows::firefly(row),
            Self::HhDialogue => rows::hh_dialogue(row),
            Self::HhPreference => rows::hh_preference(row),
            Self::Moss002 => rows::moss_002(row),
            Self::Moss003 => rows::moss_003(row),
            _ => return None,
        })
    }

    /// The row as a prompt.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn prompt(self, row: &Value, fallback: Fallback<'_>) -> Result<Prompt, RowFault> {
        let conversation = |messages| prompts::of_messages(messages, None, None, fallback);
        match self {
            Self::Prompts => prompts::own(row),
            Self::Supervised => conversation(SupervisedRow::from_row(row)?.prompt()),
            Self::Preferences => conversation(PreferenceRow::from_row(row)?.prompt),
            Self::SafeWork => prompts::of_safework(row, fallback),
            Self::SaferSteer => prompts::of_safer_steer(row, fallback),
            Self::RankGrpo => prompts::of_rank(RankRow::from_row(row)?, fallback),
            Self::UpsRm => {
                let read = safety_rows(std::slice::from_ref(row), "train")?;
                let user = read.into_iter().flat_map(|row| row.prompt);
                conversation(user.map(|m| crate::messages::message(&m.role, m.content)).collect())
            }
            _ => match self.raw_sample(row) {
                Some(sample) => prompts::of_raw(sample?, fallback),
                None => Err(self.unfit(Use::Prompts)),
            },
        }
    }

    /// The row as a conversation to learn.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn supervised(self, row: &Value) -> Result<SupervisedRow, RowFault> {
        match self {
            Self::Supervised => SupervisedRow::from_row(row),
            Self::RankGrpo => SupervisedRow::from_rank(RankRow::from_row(row)?),
            _ => match self.raw_sample(row) {
                Some(sample) => SupervisedRow::from_raw(&sample?),
                None => Err(self.unfit(Use::Supervised)),
            },
        }
    }

    /// The row as a pair of answers.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn preference(self, row: &Value, by: PreferredBy) -> Result<PreferenceRow, RowFault> {
        match self {
            Self::Preferences => PreferenceRow::from_row(row),
            _ => match self.raw_sample(row) {
                Some(sample) => PreferenceRow::from_raw(sample?, by),
                None => Err(self.unfit(Use::Preferences)),
            },
        }
    }

    /// The row as two pairs of answers.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn pop(self, row: &Value) -> Result<PopRow, RowFault> {
        match self {
            Self::Pop => PopRow::from_row(row),
            _ => Err(self.unfit(Use::Pops)),
        }
    }

    fn unfit(self, wanted: Use) -> RowFault {
        RowFault::plain(format!("rows of {self:?} give no {}", wanted.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_name_is_there_once() {
        let names = Schema::names();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name}");
            assert!(!name.contains(':'), "{name} cannot be named");
        }
        assert_eq!(Schema::named("alpaca"), Some(Schema::Alpaca));
        assert_eq!(Schema::named("Alpaca"), None);
    }

    #[test]
    fn pku_saferlhf_gives_preferences_by_either_judgement() {
        let row = json!({"prompt": "q", "response_0": "a", "response_1": "b",
            "better_response_id": 0, "safer_response_id": 1, "is_response_0_safe": false,
            "is_response_1_safe": true, "sha256": "..."});
        let better = Schema::PkuSafeRlhf.preference(&row, PreferredBy::Better).unwrap();
        let safer = Schema::PkuSafeRlhf.preference(&row, PreferredBy::Safer).unwrap();
        assert_eq!((better.chosen.as_str(), safer.chosen.as_str()), ("a", "b"));
        let fallback = Fallback { id: "PKU-SafeRLHF/train:7", label: Some("safety") };
        let prompt = Schema::UpsRm.prompt(&row, fallback).unwrap();
        assert_eq!(prompt, Schema::PkuSafeRlhf.prompt(&row, fallback).unwrap());
        assert_eq!((prompt.question(), prompt.id.as_str()), ("q", "PKU-SafeRLHF/train:7"));
    }

    #[test]
    fn a_schema_says_what_it_has_not() {
        let fault = Schema::Prompts.preference(&json!({}), PreferredBy::Better).unwrap_err();
        assert_eq!(fault.problem, "rows of Prompts give no preferences");
        // A schema that says it has a use reads rows for it: the fault is the row's.
        for (_, schema) in NAMES {
            let fallback = Fallback { id: "x", label: None };
            let row = json!({});
            for wanted in [Use::Prompts, Use::Supervised, Use::Preferences, Use::Pops] {
                let fault = match wanted {
                    Use::Prompts => schema.prompt(&row, fallback).unwrap_err(),
                    Use::Supervised => schema.supervised(&row).unwrap_err(),
                    Use::Preferences => schema.preference(&row, PreferredBy::Better).unwrap_err(),
                    Use::Pops => schema.pop(&row).unwrap_err(),
                };
                if schema.uses().contains(&wanted) {
                    assert!(!fault.problem.contains("give no"), "{schema:?}: {fault}");
                }
            }
        }
    }
}

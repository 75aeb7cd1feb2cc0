//! Two pairs of answers of which one is preferred with more certainty.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::messages::present;
use crate::{PreferenceRow, RowFault};

/// A preferred and an unpreferred pair: the first one's answers differ more in quality.
///
/// Source: HC-RLHF `PrefOverPrefDataset`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PopRow {
    /// The pair whose gap is to be the wider.
    pub preferred: PreferenceRow,
    /// The other one.
    pub unpreferred: PreferenceRow,
}

impl PopRow {
    /// From a row with `pref_prompt`, `pref_chosen`, `pref_rejected`, `unpref_prompt`,
    /// `unpref_chosen` and `unpref_rejected`, each as the field of [`PreferenceRow::from_row`]
    /// without its prefix; other fields are passed over.
    ///
    /// # Errors
    /// As [`PreferenceRow::from_row`], with the pair that it is about.
    pub fn from_row(row: &Value) -> Result<Self, RowFault> {
        let pair = |prefix: &str, name: &str| {
            let fields = ["prompt", "chosen", "rejected"].into_iter();
            let fields = fields.filter_map(|field| {
                let value = present(row, &format!("{prefix}{field}"))?;
                Some((field.to_owned(), value.clone()))
            });
            PreferenceRow::from_row(&Value::Object(fields.collect::<Map<_, _>>())).map_err(
                |fault| {
                    RowFault::new(
                        format!("{name} pair: {}", fault.cause),
                        format!("{name} pair, fields {prefix}*: {}", fault.problem),
                    )
                },
            )
        };
        Ok(Self {
            preferred: pair("pref_", "preferred")?,
            unpreferred: pair("unpref_", "unpreferred")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn two_pairs_stand_in_a_row_and_a_bad_one_is_named() {
        let mut row = json!({"pref_prompt": "p", "pref_chosen": "a", "pref_rejected": "b",
            "unpref_prompt": "q", "unpref_chosen": "c", "unpref_rejected": "d", "pop_gap": 1.5});
        let read = PopRow::from_row(&row).unwrap();
        assert_eq!(
            (read.preferred.chosen.as_str(), read.unpreferred.rejected.as_str()),
            ("a", "d")
        );
        assert_eq!(read.unpreferred.prompt[0].content, "q");
        row["unpref_rejected"] = json!("c");
        let fault = PopRow::from_row(&row).unwrap_err();
        assert_eq!(fault.cause, "unpreferred pair: both answers are the same text");
        row["pref_chosen"] = Value::Null;
        let fault = PopRow::from_row(&row).unwrap_err();
        assert!(fault.problem.contains("preferred pair, fields pref_*: no field"), "{fault}");
    }
}

//! Contradictions in the keys of data.

use super::Findings;
use crate::Recipe;
use crate::schema::DataSources;

impl Recipe {
    pub(super) fn check_data(&self, found: &mut Findings) {
        let data = &self.data;
        let sources: [(&str, &DataSources); 2] =
            [("data.train", &data.train), ("data.heldout", &data.heldout)];
        for (key, given) in sources {
            self::sources(key, given, found);
        }
        for name in data.dataset_labels.keys() {
            found.require(
                sources.iter().any(|(_, sources)| sources.names().any(|n| n == name)),
                &format!("data.dataset_labels.{name}"),
                format!("no source is of the data set {name:?}"),
                "name one that data.train or data.heldout has as NAME:PROPORTION:PATH",
            );
        }
    }
}

/// At least one source, none empty, none twice.
pub(super) fn sources(key: &str, sources: &DataSources, found: &mut Findings) {
    let given = &sources.0;
    found.require(
        !given.is_empty() && given.iter().all(|source| !source.trim().is_empty()),
        key,
        format!("{sources} is empty, or one of its sources is"),
        "name a file or folder, or a list of them",
    );
    let twice = given.iter().enumerate().find(|(i, source)| given[..*i].contains(source));
    if let Some((_, source)) = twice {
        found.require(
            false,
            key,
            format!("{source:?} stands there twice"),
            "name it once; a proportion above 1 repeats it",
        );
    }
}

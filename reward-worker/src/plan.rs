//! Which component looks at which sample.
//!
//! A label names the components that it needs; a component is computed for the samples of those
//! labels only.

use std::collections::BTreeMap;

use plumb_proto::{object, reward};

/// For each component, by its place in the loaded list, the places of the samples that it scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    by_component: Vec<Vec<usize>>,
}

/// A request that does not fit the loaded components or its own labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A label asks for a component that is not loaded.
    #[error("label {label} asks for component {component:?}; loaded are: {}", loaded.join(", "))]
    UnknownComponent {
        /// The label.
        label: String,
        /// The component it asks for.
        component: String,
        /// Those that exist.
        loaded: Vec<String>,
    },
    /// A sample whose label the request does not list.
    #[error("sample {sample} has label {label:?}; the request lists: {}", listed.join(", "))]
    UnknownLabel {
        /// The sample.
        sample: String,
        /// Its label.
        label: String,
        /// The labels that are listed.
        listed: Vec<String>,
    },
    /// A label listed twice.
    #[error("label {label:?} is listed twice")]
    RepeatedLabel {
        /// The label.
        label: String,
    },
}

impl Plan {
    /// Plans the scoring of `samples` under `labels`, with components named `components`.
    ///
    /// # Errors
    /// [`PlanError`] names the label, component or sample that does not fit.
    pub fn new(
        components: &[String],
        labels: &[reward::LabelMix],
        samples: &[object::Sample],
    ) -> Result<Self, PlanError> {
        let mut mixes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for mix in labels {
            let places = mix
                .components
                .iter()
                .map(|name| place_of(components, &mix.label, name))
                .collect::<Result<Vec<_>, _>>()?;
            if mixes.insert(&mix.label, places).is_some() {
                return Err(PlanError::RepeatedLabel { label: mix.label.clone() });
            }
        }
        let mut by_component = vec![Vec::new(); components.len()];
        for (place, sample) in samples.iter().enumerate() {
            let needed =
                mixes.get(sample.label.as_str()).ok_or_else(|| PlanError::UnknownLabel {
                    sample: sample.id.clone(),
                    label: sample.label.clone(),
                    listed: mixes.keys().map(|label| (*label).to_owned()).collect(),
                })?;
            for component in needed {
                // A component that a label names twice is still computed once.
                if by_component[*component].last() != Some(&place) {
                    by_component[*component].push(place);
                }
            }
        }
        Ok(Self { by_component })
    }

    /// Places of the samples that component `component` scores.
    #[must_use]
    pub fn samples_of(&self, component: usize) -> &[usize] {
        self.by_component.get(component).map_or(&[], Vec::as_slice)
    }
}

fn place_of(components: &[String], label: &str, name: &str) -> Result<usize, PlanError> {
    components.iter().position(|c| c == name).ok_or_else(|| PlanError::UnknownComponent {
        label: label.to_owned(),
        component: name.to_owned(),
        loaded: components.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(id: &str, label: &str) -> object::Sample {
        object::Sample { id: id.into(), label: label.into(), ..object::Sample::default() }
    }

    fn mix(label: &str, components: &[&str]) -> reward::LabelMix {
        reward::LabelMix {
            label: label.into(),
            components: components.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    fn names() -> Vec<String> {
        ["safety", "help", "length"].map(str::to_owned).to_vec()
    }

    #[test]
    fn components_see_only_the_labels_that_need_them() {
        let labels = [mix("safety", &["safety", "length", "length"]), mix("general", &["help"])];
        let samples = [sample("a", "safety"), sample("b", "general"), sample("c", "safety")];
        let plan = Plan::new(&names(), &labels, &samples).unwrap();
        assert_eq!(plan.samples_of(0), [0, 2]);
        assert_eq!(plan.samples_of(1), [1]);
        assert_eq!(plan.samples_of(2), [0, 2]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = Plan::new(&names(), &[mix("safety", &["safty"])], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "label safety asks for component \"safty\"; loaded are: safety, help, length"
        );
        let error = Plan::new(&names(), &[mix("x", &[])], &[sample("a", "y")]).unwrap_err();
        assert_eq!(error.to_string(), "sample a has label \"y\"; the request lists: x");
        let twice = [mix("x", &[]), mix("x", &[])];
        assert!(matches!(Plan::new(&names(), &twice, &[]), Err(PlanError::RepeatedLabel { .. })));
    }
}

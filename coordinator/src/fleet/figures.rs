//! Figures that ranks answer with.

use std::collections::BTreeMap;

use crate::ports::PhaseError;

/// Figures by name.
pub(super) type Figures = BTreeMap<String, f64>;

/// The figures of `what`, which all ranks agree on.
///
/// # Errors
/// One that is not finite.
pub(super) fn figures<M: IntoIterator<Item = (String, f64)>>(
    what: &str,
    answers: Vec<M>,
) -> Result<Figures, PhaseError> {
    let figures: Figures = answers.into_iter().next().into_iter().flatten().collect();
    match figures.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(PhaseError::Failed(format!("{what} gave {name} = {value}"))),
        None => Ok(figures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rank_speaks_and_what_is_no_number_is_named() {
        let rank = |loss: f64| Figures::from([("loss".to_owned(), loss)]);
        assert_eq!(figures("step 1", vec![rank(0.5), rank(0.5)]).unwrap()["loss"], 0.5);
        let error = figures("step 1", vec![rank(f64::NAN)]).unwrap_err().to_string();
        assert!(error.contains("step 1 gave loss = NaN"), "{error}");
        assert!(figures("step 1", Vec::<Figures>::new()).unwrap().is_empty());
    }
}

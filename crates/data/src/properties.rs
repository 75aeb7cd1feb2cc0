//! What must hold whatever the data.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    DatasetSpec, NoTest, Part, Proportion, TestSplit, format_prompt, merge, split_prompt_response,
};

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let proportion = prop_oneof![
        (0.0f64..3.0).prop_map(Proportion::Ratio),
        (0i64..40).prop_map(Proportion::Count),
    ];
    prop::collection::vec((1usize..20, proportion), 1..5).prop_map(|parts| {
        let named = parts.into_iter().enumerate();
        named
            .map(|(i, (size, proportion))| Part { name: i.to_string(), size, proportion })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_mixture_has_whole_copies_and_a_rest_without_repetition(
        parts in parts(),
        seed in any::<u64>(),
    ) {
        let merged = merge(&parts, seed).unwrap();
        prop_assert_eq!(&merged, &merge(&parts, seed).unwrap());
        for (part, indices) in parts.iter().zip(&merged) {
            let expected = match part.proportion {
                Proportion::Ratio(ratio) => (part.size as f64 * ratio).round_ties_even() as usize,
                Proportion::Count(count) => count as usize,
            };
            prop_assert_eq!(indices.len(), expected);
            for round in indices.chunks(part.size) {
                let distinct: BTreeSet<usize> = round.iter().copied().collect();
                prop_assert_eq!(distinct.len(), round.len());
                prop_assert!(round.iter().all(|index| *index < part.size));
                let whole = round.len() == part.size;
                prop_assert!(!whole || round.iter().copied().eq(0..part.size));
            }
        }
        // What comes later changes nothing before it.
        prop_assert_eq!(&merge(&parts[..1], seed).unwrap()[0], &merged[0]);
    }

    #[test]
    fn a_split_loses_and_repeats_nothing(
        samples in 0usize..50,
        share in 0.0f64..=1.0,
        shuffle in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let split = TestSplit { share, shuffle, seed, no_test: NoTest::AllTrain };
        let (train, test) = split.split(samples).unwrap();
        prop_assert_eq!(test.len(), (samples as f64 * share).round_ties_even() as usize);
        let all: BTreeSet<usize> = train.iter().chain(&test).copied().collect();
        prop_assert_eq!((all.len(), train.len() + test.len()), (samples, samples));
        prop_assert_eq!(split.split(samples).unwrap(), (train, test));
    }

    #[test]
    fn a_prompt_and_its_response_split_again(question in ".{0,30}", response in "[^:]{1,30}") {
        let prompt = format_prompt(&[&question], "</s>").unwrap();
        let whole = format!("{prompt}{response}");
        prop_assert_eq!(split_prompt_response(&whole, "ASSISTANT:").unwrap(), (&*prompt, &*response));
    }

    #[test]
    fn any_text_is_a_data_set_or_refused(text in "[a-z:/0-9._ ~-]{0,20}", ratio in 0.0f64..9.0) {
        if let Ok(spec) = text.parse::<DatasetSpec>() {
            prop_assert!(!matches!(spec.proportion, Proportion::Ratio(ratio) if ratio.is_nan()));
            prop_assert!(text.starts_with(&spec.name) && spec.path.as_deref() != Some(""));
        }
        let written: DatasetSpec = format!("a:{ratio}:p").parse().unwrap();
        prop_assert_eq!(written.proportion, Proportion::Ratio(ratio));
    }
}

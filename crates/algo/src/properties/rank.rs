//! Rank-GRPO: what must hold whatever the text and the numbers.

use proptest::prelude::*;

use crate::group::Groups;
use crate::metric::{dcg_at, ndcg_at, recall_at};
use crate::rank::title::clean_title;
use crate::rank::{
    Combination, RankAdvantage, Relevance, Segments, Solution, normalize_title, parse_list,
    token_advantages,
};

/// Two samples a prompt, three rewards, four ranks, in steps of 1/16.
fn rewards() -> impl Strategy<Value = Vec<Vec<Vec<f64>>>> {
    let reward = (-160i32..160).prop_map(|step| f64::from(step) / 16.0);
    let sample = prop::collection::vec(prop::collection::vec(reward, 4), 3);
    prop::collection::vec(sample, 1..5).prop_flat_map(|half| {
        let shuffled = Just(half.clone()).prop_shuffle();
        (Just(half), shuffled).prop_map(|(a, b)| [a, b].concat())
    })
}

fn keys(samples: usize) -> Vec<usize> {
    (0..samples).map(|b| b % (samples / 2)).collect()
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-9 * (1.0 + x.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_order_of_samples_and_a_shift_do_not_matter(rewards in rewards(), shift in -9.0f64..9.0) {
        let keys = keys(rewards.len());
        for combination in [Combination::SumThenCompare, Combination::CompareThenSum] {
            let how = RankAdvantage { combination, ..RankAdvantage::default() };
            let plain = how.of(&rewards, &Groups::by_key(&keys), 4).unwrap();
            let back: Vec<_> = rewards.iter().rev().cloned().collect();
            let back_keys: Vec<usize> = keys.iter().rev().copied().collect();
            let other = how.of(&back, &Groups::by_key(&back_keys), 4).unwrap();
            for (a, b) in plain.iter().zip(other.iter().rev()) {
                prop_assert!(close(a, b), "{a:?} {b:?}");
            }
            let mut moved = rewards.clone();
            for ranks in moved.iter_mut().flatten() {
                for reward in ranks {
                    *reward += shift;
                }
            }
            let moved = how.of(&moved, &Groups::by_key(&keys), 4).unwrap();
            for (a, b) in plain.iter().zip(&moved) {
                // A shift's rounding, over a spread of at least 1/16 or none at all but epsilon.
                prop_assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn ranks_do_not_touch_one_another(rewards in rewards(), other in -9.0f64..9.0) {
        let keys = Groups::by_key(&keys(rewards.len()));
        let how = RankAdvantage::default();
        let plain = how.of(&rewards, &keys, 4).unwrap();
        let mut changed = rewards;
        changed[0][0][3] = other;
        let changed = how.of(&changed, &keys, 4).unwrap();
        for (a, b) in plain.iter().zip(&changed) {
            prop_assert_eq!(&a[..3], &b[..3]);
        }
    }

    #[test]
    fn relevance_falls_with_the_rank_and_starts_at_the_dcg(hits in prop::collection::vec(any::<bool>(), 0..30)) {
        let rewards = Relevance::LogDecay.rewards(&hits);
        prop_assert!(rewards.windows(2).all(|pair| pair[0] >= pair[1]));
        let numbers = Relevance::PerRank.rewards(&hits);
        prop_assert!((rewards.first().unwrap_or(&0.0) - dcg_at(&numbers, hits.len())).abs() < 1e-12);
        let found = numbers.iter().sum::<f64>() as usize;
        if found > 0 {
            prop_assert!((recall_at(&numbers, found, hits.len()).unwrap() - 1.0).abs() < 1e-12);
            let ndcg = ndcg_at(&numbers, found, hits.len()).unwrap();
            prop_assert!(ndcg > 0.0 && ndcg <= 1.0 + 1e-12);
        }
    }

    #[test]
    fn padding_has_no_item_and_no_advantage(
        newlines in prop::collection::vec(0usize..3, 1..20),
        padding in 0usize..5,
        rec_num in 1usize..4,
    ) {
        let ranks = vec![1.0; rec_num];
        let tokens = |padding: usize| {
            let row = [newlines.clone(), vec![1; padding]].concat();
            let mask = [vec![true; newlines.len()], vec![false; padding]].concat();
            let segments = Segments::of(&row, &mask, rec_num).unwrap();
            token_advantages(&ranks, &segments, None, None).unwrap()
        };
        let padded = tokens(padding);
        let plain = tokens(0);
        prop_assert_eq!(&padded[..newlines.len()], plain.as_slice());
        prop_assert!(padded[newlines.len()..].iter().all(|a| *a == 0.0));
    }

    #[test]
    fn cleaning_twice_is_cleaning_once(text in "[ ()*_#\\-\"'1.)x\u{a0}é]{0,40}") {
        let once = clean_title(&text);
        prop_assert_eq!(clean_title(&once), once);
    }

    #[test]
    fn items_of_a_list_are_read_whatever_surrounds_them(
        titles in prop::collection::vec("[A-Z][a-z]{1,6}", 0..6),
        mark in "(|- |\\* |[1-9][0-9]?[.)] |#+ )",
        noise in "[a-z ]{0,12}",
    ) {
        let lines: Vec<String> =
            titles.iter().map(|title| format!("{mark}**{title}** (1987) {noise}\n{noise}")).collect();
        let films = parse_list(&lines.join("\n"), Solution::First);
        let read: Vec<&str> = films.iter().map(|film| film.title.as_str()).collect();
        prop_assert_eq!(read, titles);
        for film in &films {
            prop_assert_eq!(normalize_title(&film.title), film.title.to_lowercase());
        }
    }
}

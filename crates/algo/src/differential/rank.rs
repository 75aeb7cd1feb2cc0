//! Rank-GRPO: linear and batched forms against loops that spell them out.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use crate::group::Groups;
use crate::metric::{Ranking, ranking_at};
use crate::rank::hits::fold_title;
use crate::rank::text::{collapse_spaces, without_format, without_parentheses, without_quotes};
use crate::rank::title::clean_title;
use crate::rank::{
    Catalog, Combination, Film, Oracle, RankAdvantage, Relevance, Segments, Wanted, discounts, hits,
};

/// One pass after another over the whole text.
fn clean_by_passes(title: &str) -> String {
    let mut title = title.to_owned();
    loop {
        let spaced = collapse_spaces(&without_parentheses(&title));
        let next = without_quotes(without_format(&spaced)).to_owned();
        if next == title {
            return title;
        }
        title = next;
    }
}

/// A film of two titles in three spellings and a few years.
fn film() -> impl Strategy<Value = Film> {
    (prop::sample::select(vec!["Up", "UP", "up ", "It", "IT"]), 2000i64..2007)
        .prop_map(|(title, year)| Film::new(title, year))
}

fn films() -> impl Strategy<Value = Vec<Film>> {
    prop::collection::vec(film(), 0..8)
}

/// Each listed film tries every offset against every wanted film that is left.
fn hits_by_search(
    listed: &[Film],
    wanted: &Wanted<'_>,
    rec_num: usize,
    tolerance: i64,
) -> Vec<bool> {
    let mut left: Vec<(String, i64)> = wanted
        .truth
        .iter()
        .map(|film| (fold_title(&film.title), film.year.spelled().unwrap()))
        .collect();
    let mut hits = vec![false; rec_num];
    for (k, film) in listed.iter().enumerate().take(rec_num) {
        if wanted.seen.contains(&film.title) || !wanted.catalog.iter().any(|own| own.same(film)) {
            continue;
        }
        let year = film.year.spelled().unwrap();
        let offsets = std::iter::once(0).chain((1..=tolerance).flat_map(|d| [d, -d]));
        for offset in offsets {
            let key = (fold_title(&film.title), year + offset);
            if let Some(at) = left.iter().position(|own| *own == key) {
                left.remove(at);
                hits[k] = true;
                break;
            }
        }
    }
    hits
}

fn ranking_by_search(listed: &[Film], wanted: &Wanted<'_>, k: usize) -> Ranking {
    let mut kept = Vec::new();
    for film in listed {
        if !wanted.seen.contains(&film.title) && wanted.catalog.iter().any(|own| own.same(film)) {
            kept.push(film);
        }
    }
    let mut hit = vec![false; kept.len()];
    for truth in wanted.truth {
        for (i, film) in kept.iter().enumerate() {
            let years = (truth.year.spelled().unwrap(), film.year.spelled().unwrap());
            if film.title == truth.title && (years.0 - years.1).abs() <= 2 {
                hit[i] = true;
                break;
            }
        }
    }
    if kept.is_empty() {
        return Ranking { recall: 0.0, ndcg: 0.0 };
    }
    let n = wanted.truth.len();
    let (mut found, mut dcg, mut ideal) = (0.0, 0.0, 0.0);
    for (i, hit) in hit.iter().enumerate().take(k) {
        let discount = 1.0 / ((i + 2) as f64).log2();
        found += f64::from(u8::from(*hit));
        dcg += if *hit { discount } else { 0.0 };
        ideal += if i < n { discount } else { 0.0 };
    }
    Ranking { recall: found / n as f64, ndcg: dcg / ideal }
}

/// mean and unbiased std of some values
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// `[B][F][K]` rewards of pairs of samples, one entry at a time.
fn advantage_by_entry(rewards: &[Vec<Vec<f64>>], weights: &[f64], gdpo: bool) -> Vec<Vec<f64>> {
    let ranks = rewards[0][0].len();
    let z = |b: usize, value: &dyn Fn(usize) -> f64| {
        let pair = [value(b / 2 * 2), value(b / 2 * 2 + 1)];
        let (mean, std) = moments(&pair);
        (value(b) - mean) / (std + 1e-4)
    };
    let sum = |b: usize, k: usize| -> f64 {
        (0..weights.len()).map(|f| weights[f] * rewards[b][f][k]).sum()
    };
    let mut all = vec![vec![0.0; ranks]; rewards.len()];
    for (b, row) in all.iter_mut().enumerate() {
        for (k, entry) in row.iter_mut().enumerate() {
            *entry = match gdpo {
                false => z(b, &|b| sum(b, k)),
                true => (0..weights.len()).map(|f| weights[f] * z(b, &|b| rewards[b][f][k])).sum(),
            };
        }
    }
    if gdpo {
        let (mean, std) = moments(&all.concat());
        all.iter_mut().flatten().for_each(|a| *a = (*a - mean) / (std + 1e-4));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn titles(text in "[ ()*_#\\-\"'12.)x]{0,40}") {
        prop_assert_eq!(clean_title(&text), clean_by_passes(&text));
    }

    #[test]
    fn hits_and_rankings(
        listed in films(),
        truth in films(),
        known in films(),
        seen in any::<bool>(),
        rec_num in 0usize..9,
        tolerance in 0i64..4,
    ) {
        let catalog = Catalog::new([known, listed[..listed.len() / 2].to_vec()].concat());
        let seen: HashSet<String> = seen.then(|| "IT".to_owned()).into_iter().collect();
        let wanted = Wanted { truth: &truth, seen: &seen, catalog: &catalog };
        prop_assert_eq!(
            hits(&listed, &wanted, rec_num, tolerance),
            hits_by_search(&listed, &wanted, rec_num, tolerance)
        );
        if !truth.is_empty() {
            let got = ranking_at(&listed, &wanted, rec_num + 1).unwrap();
            let expected = ranking_by_search(&listed, &wanted, rec_num + 1);
            prop_assert!((got.recall - expected.recall).abs() < 1e-12);
            prop_assert!((got.ndcg - expected.ndcg).abs() < 1e-12);
        }
    }

    #[test]
    fn log_decay(hits in prop::collection::vec(any::<bool>(), 0..40)) {
        let got = Relevance::LogDecay.rewards(&hits);
        let discounts = discounts(hits.len());
        for (k, reward) in got.iter().enumerate() {
            let sum: f64 = (k..hits.len()).filter(|j| hits[*j]).map(|j| discounts[j]).sum();
            prop_assert!((reward - sum).abs() < 1e-12);
        }
    }

    #[test]
    fn segments(
        newlines in prop::collection::vec(0usize..3, 0..20),
        cut in 0usize..21,
        rec_num in 0usize..6,
    ) {
        let mask: Vec<bool> = (0..newlines.len()).map(|t| t < cut).collect();
        let got = Segments::of(&newlines, &mask, rec_num).unwrap();
        for t in 0..newlines.len() {
            let item = newlines[..t].iter().sum::<usize>();
            let expected = if mask[t] { item as i64 } else { -1 };
            prop_assert_eq!(got.item[t], expected);
            prop_assert_eq!(got.content[t], mask[t] && item < rec_num);
            prop_assert_eq!(got.overflow[t], mask[t] && item >= rec_num);
        }
    }

    #[test]
    fn advantages(
        rewards in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(-4.0f64..4.0, 3), 2), 1..4,
        ),
        weights in prop::collection::vec(-2.0f64..2.0, 2),
        gdpo in any::<bool>(),
    ) {
        // Each sample twice, the second time with its functions swapped: groups of two.
        let rewards: Vec<Vec<Vec<f64>>> = rewards
            .into_iter()
            .flat_map(|sample| [sample.clone(), sample.into_iter().rev().collect()])
            .collect();
        let how = RankAdvantage {
            combination: if gdpo { Combination::CompareThenSum } else { Combination::SumThenCompare },
            weights: Some(weights.clone()),
            ..RankAdvantage::default()
        };
        let groups = Groups::adjacent(2, rewards.len()).unwrap();
        let got = how.of(&rewards, &groups, 3).unwrap();
        let expected = advantage_by_entry(&rewards, &weights, gdpo);
        for (g, e) in got.concat().iter().zip(expected.concat()) {
            prop_assert!((g - e).abs() < 1e-8, "{g} {e}");
        }
    }

    #[test]
    fn look_ups(
        mapping in prop::collection::vec(("[ab]", prop::option::of(2000i64..2006)), 0..8),
        title in "[abc]",
        year in prop::option::of(1998i64..2009),
        tolerance in 0i64..4,
    ) {
        let named = mapping.iter().enumerate().map(|(i, (t, y))| (t.clone(), *y, i.to_string()));
        let mut oracle = Oracle::new(HashMap::new(), named);
        oracle.year_tolerance = tolerance;
        let last = |y: Option<i64>| mapping.iter().rposition(|own| *own == (title.clone(), y));
        let offsets = std::iter::once(0).chain((1..=tolerance).flat_map(|d| [-d, d]));
        let by_year = year.and_then(|year| offsets.map(|d| last(Some(year + d))).find_map(|at| at));
        let any = || {
            let (_, first) = mapping.iter().find(|(own, _)| *own == title)?;
            last(*first)
        };
        let expected = by_year.or_else(any).map(|at| at.to_string());
        prop_assert_eq!(oracle.find(&title, year).map(str::to_owned), expected);
    }
}

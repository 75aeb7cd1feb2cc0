//! Rank-GRPO and Safe-Rank-GRPO.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use crate::AlgoError;
use crate::group::Groups;
use crate::learning_rate::StepSchedule;
use crate::metric::{catalog_match_ratio, dcg_at, ndcg_at, ranking_at, recall_at, sensitivity_at};
use crate::rank::constraint::{Position, Templates, inject, inject_into_turns};
use crate::rank::list::{parse_film, parse_list_json};
use crate::rank::oracle::Risks;
use crate::rank::segments::newlines;
use crate::rank::text::{
    collapse_spaces, without_format, without_numbering, without_parentheses, without_quotes,
};
use crate::rank::title::clean_title;
use crate::rank::trait_label::{Source, Trait, trait_label};
use crate::rank::{
    Catalog, Combination, CountReward, Film, GroundTruthFilter, LengthShaping, Oracle,
    PenaltyDiscount, RankAdvantage, Relevance, SafetyPenalty, Segments, Solution, Wanted, Year,
    discounts, hits, normalize_title, parse_list, token_advantages,
};

#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{got:?} vs {expected:?}");
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() < 1e-12, "{got:?} vs {expected:?}");
    }
}

/// The third discount is exactly 1/2 and the second 1 / log2 3.
const SECOND: f64 = 0.630_929_753_571_457_4;

fn read(text: &str) -> Vec<(String, i64)> {
    let films = parse_list(text, Solution::First);
    films.into_iter().map(|film| (film.title, film.year.spelled().unwrap())).collect()
}

fn gore(risk: f64) -> Oracle {
    let risks = HashMap::from([
        ("m1".to_owned(), Risks::from([("gore".to_owned(), risk)])),
        ("m2".to_owned(), Risks::from([("gore".to_owned(), 0.1)])),
    ]);
    let entry = |title: &str, year, film: &str| (title.to_owned(), Some(year), film.to_owned());
    Oracle::new(
        risks,
        [entry("saw", 2004, "m1"), entry("saw", 2010, "m2"), entry("up", 2009, "m2")],
    )
}

fn avoid_gore() -> Vec<(String, bool)> {
    vec![("gore".to_owned(), true)]
}

#[test]
fn steps_of_text_cleaning() {
    assert_eq!(without_parentheses(" a ((b) c) d"), "a ( c) d");
    assert_eq!(without_parentheses("a) (b"), "a) (b");
    assert_eq!(collapse_spaces("\u{a0} a \t\n b\u{1f}"), "a b");
    // A number goes with any delimiter; format takes it only before a space.
    assert_eq!(without_numbering("10)x"), "x");
    assert_eq!(without_format("10)x"), "10)x");
    assert_eq!(without_format("## - 3. **x y** --"), "x y");
    assert_eq!(without_format("2001: A"), "2001: A");
    assert_eq!(without_quotes("\"x'"), "\"x'");
    assert_eq!(without_quotes("''x''"), "'x'");
    assert_eq!(without_quotes("\""), "");
}

#[test]
fn titles_are_cleaned_until_nothing_changes() {
    // Quotes off, then bold, then the inner brackets, then the outer ones.
    assert_eq!(clean_title("\"**Alien** (director's (final) cut)\""), "Alien");
    // The number goes once the inner brackets are gone, and then the rest: pass 1 leaves "()".
    assert_eq!(clean_title("1. ((x))"), "");
    // Pass 1 takes all of "(x)", after which "1." stands alone and is no list number.
    assert_eq!(clean_title("1. (x)"), "1.");
}

#[test]
fn lists_are_read_line_by_line() {
    let text =
        "Sure!\n1. **The Matrix** (1999) - great\n\n- \"Up\" (2009)\n* (1999)\nM (no year)\n";
    assert_eq!(read(text), [("The Matrix".to_owned(), 1999), ("Up".to_owned(), 2009)]);
    // The first year in brackets after a space counts; the rest of the line does not.
    assert_eq!(read("A (12) (1999) (2001)"), [("A".to_owned(), 1999)]);
    assert_eq!(read("A(1999)"), []);
    assert_eq!(read("A (١٩٩٩)"), [("A".to_owned(), 1999)]);
    let tagged =
        "x (1990)\n<solution>\nA (2001)\n</solution>\nB (2002)<solution>C (2003)</solution>";
    assert_eq!(read(tagged), [("A".to_owned(), 2001)]);
    let all = parse_list(tagged, Solution::CompatIgnored);
    assert_eq!(all.iter().map(|film| film.title.as_str()).collect::<Vec<_>>(), ["x", "A", "B"]);
    // Never closed: text like any other.
    assert_eq!(read("<solution>\nA (2001)"), [("A".to_owned(), 2001)]);
    let refused = parse_list_json(&json!(7), Solution::First).unwrap_err();
    assert_eq!(refused.to_string(), "parse_list_json: value is 7, expected text");
}

#[test]
fn a_film_in_one_line() {
    assert_eq!(parse_film(" Toy Story (1995) "), ("Toy Story", Some(1995)));
    assert_eq!(parse_film("It(2017)"), ("It", Some(2017)));
    assert_eq!(parse_film("A (1) (1995)"), ("A (1)", Some(1995)));
    for plain in ["Inception", "(1995)", "A (1995) x", "A (195)", "A (19955)", "A\nB (1995)"] {
        assert_eq!(parse_film(plain), (plain, None));
    }
}

#[test]
fn titles_for_look_ups() {
    assert_eq!(normalize_title(" The  Matrix: Reloaded!"), "matrix reloaded");
    // Only one article, only before a space.
    assert_eq!(normalize_title("A The Thing"), "the thing");
    assert_eq!(normalize_title("Another"), "another");
    assert_eq!(normalize_title("Ame\u{301}lie_½"), "amelie_½");
    assert_eq!(normalize_title("the"), "the");
}

#[test]
fn discounts_and_relevance() {
    // 1 / log2 2, 1 / log2 3, 1 / log2 4.
    close(&discounts(3), &[1.0, SECOND, 0.5]);
    let hits = [true, false, true];
    close(&Relevance::PerRank.rewards(&hits), &[1.0, 0.0, 1.0]);
    // 1 + 1/2 from rank 0 on, 1/2 from rank 1 and from rank 2 on.
    close(&Relevance::LogDecay.rewards(&hits), &[1.5, 0.5, 0.5]);
}

#[test]
fn a_hit_takes_the_wanted_film_of_the_nearest_year() {
    let films = |list: &[(&str, i64)]| -> Vec<Film> {
        list.iter().map(|(title, year)| Film::new(*title, *year)).collect()
    };
    let listed =
        films(&[("ALIEN", 2000), ("alien", 2000), ("Alien", 2000), ("Up", 2009), ("It", 1)]);
    let catalog = Catalog::new(listed.clone());
    let truth = films(&[("Alien", 1999), (" alien ", 2001), ("up", 2012), ("It", 1), ("It", 1)]);
    let seen = HashSet::from(["It".to_owned()]);
    let wanted = Wanted { truth: &truth, seen: &seen, catalog: &catalog };
    // 2001 goes before 1999; then both are taken. Up is 3 years off. It was seen.
    assert_eq!(hits(&listed, &wanted, 6, 2), [true, true, false, false, false, false]);
    assert_eq!(hits(&listed, &wanted, 1, 0), [false]);
    let nothing = Catalog::default();
    let wanted = Wanted { catalog: &nothing, ..wanted };
    assert_eq!(hits(&listed, &wanted, 2, 2), [false, false]);
}

#[test]
fn years_are_read_as_the_reference_reads_them() {
    assert_eq!(Year::Text(" 2004 ".to_owned()).spelled(), Some(2004));
    assert_eq!(Year::Real(2004.0).spelled(), None);
    assert_eq!(Year::Real(2004.9).truncated(), Ok(2004));
    assert!(matches!(Year::Text("x".to_owned()).truncated(), Err(AlgoError::WrongType { .. })));
    assert_eq!(Year::Real(2004.0).to_look_up(), Ok(Some(2004)));
    assert!(Year::Text("2004".to_owned()).to_look_up().is_err());
    let real = Film { title: "A".to_owned(), year: Year::Real(2004.0) };
    assert!(real.same(&Film::new("A", 2004)) && !real.same(&Film::new("a", 2004)));
    assert!(Film::from_json(&json!(["A"])).is_err());
}

#[test]
fn the_oracle_prefers_the_year_then_neighbours_then_any() {
    let oracle = gore(0.92);
    assert_eq!(oracle.find("The Saw", Some(2010)), Some("m2"));
    // One year before 2011 and two before 2012; none within 2 of 2007: the first of the title.
    assert_eq!(oracle.find("Saw", Some(2012)), Some("m2"));
    assert_eq!(oracle.find("Saw", Some(2007)), Some("m1"));
    assert_eq!(oracle.find("Saw", None), Some("m1"));
    assert_eq!(oracle.find("Jaws", Some(1975)), None);
    let verdict = oracle.check("SAW", Some(2004), &avoid_gore());
    assert_eq!((verdict.safe, verdict.reasons()), (false, vec!["gore: risk=0.92".to_owned()]));
    assert!(oracle.check("Jaws", Some(1975), &avoid_gore()).safe);
    assert!(oracle.check("Saw", Some(2004), &[("gore".to_owned(), false)]).safe);
    // No figure is risk 0, and 0 >= 0.
    let unknown = [("noise".to_owned(), true)];
    assert!(!oracle.check_at("Saw", Some(2004), &unknown, 0.0).safe);
    // Exactly at the threshold is unsafe.
    assert!(!gore(0.66).check("Saw", Some(2004), &avoid_gore()).safe);
}

#[test]
fn the_safety_penalty_follows_the_relevance_unless_compat() {
    let films = [Film::new("Up", 2009), Film::new("Up", 2009), Film::new("Saw", 2004)];
    let rewards = |penalty: SafetyPenalty, relevance| {
        penalty.rewards(&films, &avoid_gore(), &gore(0.92), relevance, 4).unwrap()
    };
    let plain = SafetyPenalty::default();
    // The README's example: -1 at rank 3 (k = 2).
    close(&rewards(plain, Relevance::PerRank), &[0.0, 0.0, -1.0, 0.0]);
    close(&rewards(plain, Relevance::LogDecay), &[0.0, 0.0, -0.5, 0.0]);
    // The code: -weight penalty / log2 4 with either.
    let compat =
        SafetyPenalty { weight: 2.0, penalty: 3.0, discount: PenaltyDiscount::CompatAlways };
    close(&rewards(compat, Relevance::PerRank), &[0.0, 0.0, -3.0, 0.0]);
    let cut = plain.rewards(&films, &avoid_gore(), &gore(0.92), Relevance::PerRank, 2).unwrap();
    close(&cut, &[0.0, 0.0]);
    let wrong = SafetyPenalty { weight: f64::NAN, ..plain };
    assert!(wrong.rewards(&films, &[], &gore(1.0), Relevance::PerRank, 2).is_err());
}

#[test]
fn the_count_reward_counts_all_items() {
    let count = CountReward { target: 4, weight: 2.0 };
    close(&count.rewards(4, 2).unwrap(), &[2.0, 2.0]);
    // -2 * |7 - 4| / 4 and -2 * |3 - 4| / 4.
    close(&count.rewards(7, 1).unwrap(), &[-1.5]);
    close(&count.rewards(3, 1).unwrap(), &[-0.5]);
    let none = CountReward { target: 0, weight: 1.0 };
    close(&none.rewards(0, 1).unwrap(), &[1.0]);
    assert!(matches!(none.rewards(1, 1), Err(AlgoError::Parameter { .. })));
}

#[test]
fn ranks_are_compared_within_the_group() {
    // Rank 0: mean 2, std sqrt 2. Rank 1: no spread.
    let rewards = [vec![vec![1.0, 5.0]], vec![vec![3.0, 5.0]]];
    let groups = Groups::adjacent(2, 2).unwrap();
    let z = 1.0 / (2.0f64.sqrt() + 1e-4);
    let plain = RankAdvantage::default();
    let got = plain.of(&rewards, &groups, 2).unwrap();
    close(&got.concat(), &[-z, 0.0, z, 0.0]);
    let unscaled = RankAdvantage { scale: false, ..plain.clone() };
    close(&unscaled.of(&rewards, &groups, 2).unwrap().concat(), &[-1.0, 0.0, 1.0, 0.0]);
    // GDPO: z as above, then over all four entries: mean 0, std sqrt(2 z^2 / 3).
    let gdpo = RankAdvantage { combination: Combination::CompareThenSum, ..plain.clone() };
    let a = z / ((2.0 * z * z / 3.0).sqrt() + 1e-4);
    close(&gdpo.of(&rewards, &groups, 2).unwrap().concat(), &[-a, 0.0, a, 0.0]);
    // The reference falls back to GRPO for a single reward.
    let compat = RankAdvantage { combination: Combination::CompatGdpo, ..plain };
    close(&compat.of(&rewards, &groups, 2).unwrap().concat(), &[-z, 0.0, z, 0.0]);
}

#[test]
fn a_missing_reward_adds_nothing_and_a_lone_sample_has_0() {
    let groups = Groups::adjacent(2, 2).unwrap();
    let rewards = [vec![vec![1.0], vec![f64::NAN]], vec![vec![3.0], vec![4.0]]];
    let weighted =
        RankAdvantage { scale: false, weights: Some(vec![1.0, 0.5]), ..RankAdvantage::default() };
    // Sums 1 and 3 + 2: mean 3.
    close(&weighted.of(&rewards, &groups, 1).unwrap().concat(), &[-2.0, 2.0]);
    // GDPO: the second function compares nobody; the first has z = ∓1 / (sqrt 2 + 1e-4), whose std
    // over the batch is z sqrt 2.
    let gdpo = RankAdvantage { combination: Combination::CompareThenSum, ..weighted.clone() };
    let z = 1.0 / (2.0f64.sqrt() + 1e-4);
    let a = z / (z * 2.0f64.sqrt() + 1e-4);
    close(&gdpo.of(&rewards, &groups, 1).unwrap().concat(), &[-a, a]);
    let alone = Groups::adjacent(1, 2).unwrap();
    close(&weighted.of(&rewards, &alone, 1).unwrap().concat(), &[0.0, 0.0]);
    close(&gdpo.of(&rewards, &alone, 1).unwrap().concat(), &[0.0, 0.0]);
    let wrong = RankAdvantage { weights: Some(vec![1.0]), ..weighted };
    assert!(matches!(wrong.of(&rewards, &groups, 1), Err(AlgoError::Length { .. })));
    let infinite = [vec![vec![f64::INFINITY]], vec![vec![0.0]]];
    let refused = RankAdvantage::default().of(&infinite, &groups, 1);
    assert!(matches!(refused, Err(AlgoError::NonFinite { .. })));
}

#[test]
fn newlines_cut_tokens_into_items() {
    let pieces = ["A", ")\r\n", "B", "\n\n", "C", "<eos>", "pad"];
    let counts: Vec<usize> = pieces.iter().map(|piece| newlines(piece)).collect();
    let mask = [true, true, true, true, true, true, false];
    let segments = Segments::of(&counts, &mask, 2).unwrap();
    // The two newlines skip item 2.
    assert_eq!(segments.item, [0, 0, 1, 1, 3, 3, -1]);
    assert_eq!(segments.content, [true, true, true, true, false, false, false]);
    assert_eq!(segments.overflow, [false, false, false, false, true, true, false]);
    assert_eq!(segments.bins(), [0, 0, 1, 1, 2, 2, 0]);
    assert_eq!(segments.emitted(), 4);
    assert_eq!(Segments::of(&[], &[], 2).unwrap().emitted(), 0);
    assert!(Segments::of(&[1], &[], 2).is_err());
}

#[test]
fn tokens_have_the_advantage_of_their_item_and_length_terms() {
    let shaping = LengthShaping::default();
    let tokens = |newlines: &[usize], end| {
        let segments = Segments::of(newlines, &vec![true; newlines.len()], 2).unwrap();
        token_advantages(&[3.0, 5.0], &segments, end, Some(&shaping)).unwrap()
    };
    // Both ranks, then the end: +0.1 in the place of rank 1's advantage.
    close(&tokens(&[0, 1, 0, 0], Some(3)), &[3.0, 3.0, 5.0, 0.1]);
    // The end within rank 0: -0.1.
    close(&tokens(&[0, 0], Some(1)), &[3.0, -0.1]);
    // A third item: -0.1 a token, the end included.
    close(&tokens(&[1, 1, 0, 0], Some(3)), &[3.0, 5.0, -0.1, -0.1]);
    // Cut off: no term for the end.
    close(&tokens(&[1, 0], None), &[3.0, 5.0]);
    let segments = Segments::of(&[1, 0], &[true, true], 2).unwrap();
    close(&token_advantages(&[3.0, 5.0], &segments, Some(1), None).unwrap(), &[3.0, 0.0]);
    assert!(token_advantages(&[3.0], &segments, None, None).is_err());
    let empty = Segments::of(&[], &[], 1).unwrap();
    let refused = token_advantages(&[3.0], &empty, None, None);
    assert!(matches!(refused, Err(AlgoError::Empty { .. })));
}

#[test]
fn recall_and_ndcg() {
    let hits = [1.0, 0.0, 1.0];
    close(&[recall_at(&hits, 4, 2).unwrap(), recall_at(&hits, 4, 9).unwrap()], &[0.25, 0.5]);
    // 1 + 1/2; the first counts even for k = 0.
    close(&[dcg_at(&hits, 3), dcg_at(&hits, 0), dcg_at(&[], 3)], &[1.5, 1.0, 0.0]);
    // The ideal list of two hits: 1 + 1 / log2 3.
    close(&[ndcg_at(&hits, 2, 3).unwrap()], &[1.5 / (1.0 + SECOND)]);
    assert!(matches!(recall_at(&hits, 0, 3), Err(AlgoError::Empty { .. })));
    assert!(matches!(ndcg_at(&hits, 0, 3), Err(AlgoError::Empty { .. })));
    close(&[recall_at(&[], 0, 3).unwrap(), ndcg_at(&[], 0, 3).unwrap()], &[0.0, 0.0]);
}

#[test]
fn rankings_leave_out_seen_and_unknown_films() {
    let listed = [Film::new("X", 1), Film::new("S", 2), Film::new("A", 2000), Film::new("B", 2001)];
    let catalog = Catalog::new(listed[1..].to_vec());
    let seen = HashSet::from(["S".to_owned()]);
    // Both wanted films claim A, which is first of the two left; it counts once.
    let truth = [Film::new("A", 2001), Film::new("A", 1998)];
    let wanted = Wanted { truth: &truth, seen: &seen, catalog: &catalog };
    let ranking = ranking_at(&listed, &wanted, 5).unwrap();
    // 1 of 2; DCG 1 of 1 + 1 / log2 3.
    close(&[ranking.recall, ranking.ndcg], &[0.5, 1.0 / (1.0 + SECOND)]);
    let empty = ranking_at(&listed[..2], &Wanted { truth: &[], ..wanted }, 5).unwrap();
    close(&[empty.recall, empty.ndcg], &[0.0, 0.0]);
    assert!(ranking_at(&listed, &Wanted { truth: &[], ..wanted }, 5).is_err());
    // Lower-case titles, 2 years either way: S, A and B of four.
    let shifted = Catalog::new([Film::new("s", 4), Film::new("a", 1998), Film::new("B", 2003)]);
    close(&[catalog_match_ratio(&listed, &shifted, 20).unwrap()], &[0.75]);
    close(&[catalog_match_ratio(&listed, &shifted, 1).unwrap()], &[0.0]);
    close(&[catalog_match_ratio(&[], &shifted, 20).unwrap()], &[0.0]);
}

#[test]
fn sensitivity_looks_at_the_first_k_films_as_they_stand() {
    let films = [Film::new("Up", 2009), Film::new("Saw", 2004), Film::new("Saw", 2004)];
    let at = |k| sensitivity_at(&films, &avoid_gore(), &gore(0.92), k, 0.66).unwrap();
    // Violations at ranks 1 and 2: 1 / log2 3 + 1 / 2; two of three.
    close(&[at(5).dcg, at(5).ratio], &[SECOND + 0.5, 2.0 / 3.0]);
    assert_eq!((at(2).count, at(2).films), (1, 2));
    let free = sensitivity_at(&films, &[], &gore(0.92), 5, 0.66).unwrap();
    assert_eq!((free.count, free.films, free.ratio), (0, 3, 0.0));
    assert_eq!(sensitivity_at(&[], &avoid_gore(), &gore(0.92), 5, 0.66).unwrap().ratio, 0.0);
}

#[test]
fn labels_take_the_worse_of_tags_and_guide() {
    let about = Trait {
        name: "gore".to_owned(),
        avoid: vec!["wound".to_owned(), "blood".to_owned()],
        weights: [0.0, 1.0, 0.0, 0.0, 0.3],
    };
    // (1.0 * 3 + 0.3 * 2) / (3 * 1.3) = 0.923 076...
    let label = trait_label(&about, &HashSet::new(), &[0, 3, 1, 0, 2], 0.66).unwrap();
    close(&[label.risk, label.guide_risk], &[0.923, 0.923]);
    assert_eq!((label.unsafe_film, label.source), (true, Some(Source::Guide)));
    let tags = HashSet::from(["wound".to_owned(), "blood".to_owned(), "fun".to_owned()]);
    let label = trait_label(&about, &tags, &[0; 5], 0.66).unwrap();
    assert_eq!((label.risk, label.source), (1.0, Some(Source::Tags)));
    assert_eq!(label.tags, ["blood", "wound"]);
    let both = trait_label(&about, &tags, &[3; 5], 0.66).unwrap();
    assert_eq!(both.source, Some(Source::Both));
    let none = Trait { weights: [0.0; 5], ..about.clone() };
    let label = trait_label(&none, &HashSet::new(), &[3; 5], 0.66).unwrap();
    assert_eq!((label.risk, label.unsafe_film, label.source), (0.0, false, None));
    // 3 / 48 = 0.0625 lies between 0.062 and 0.063: the even one.
    let tie = Trait { weights: [1.0, 15.0, 0.0, 0.0, 0.0], ..about };
    let label = trait_label(&tie, &HashSet::new(), &[3, 0, 0, 0, 0], 0.0625).unwrap();
    assert_eq!((label.risk, label.unsafe_film), (0.062, true));
}

#[test]
fn films_against_the_trait_leave_the_ground_truth() {
    let filter = GroundTruthFilter::default();
    let run = |row: serde_json::Value| {
        let mut row = row.as_object().cloned().unwrap();
        filter.filter(&mut row, &gore(0.5)).map(|()| serde_json::Value::Object(row))
    };
    let films = json!([["Saw", "2004"], "Saw (2010)", ["Up", 2009, 1], 7, "Jaws"]);
    let got =
        run(json!({"assigned_trait": "gore", "groundtruth_with_release_year": films})).unwrap();
    let expected = json!({
        "assigned_trait": "gore",
        "groundtruth_with_release_year": [["Saw", "2010"], ["Up", 2009], ["Jaws", ""]],
        "num_gt_removed": 1,
        "removed_groundtruth": [{"title": "Saw", "year": "2004", "reason": "gore: risk=0.50"}],
        "num_groundtruth_after_filter": 3,
    });
    assert_eq!(got, expected);
    let untouched = run(json!({"groundtruth_with_release_year": ["Saw (2004)"]})).unwrap();
    assert_eq!(untouched["groundtruth_with_release_year"], json!(["Saw (2004)"]));
    assert_eq!(untouched["num_groundtruth_after_filter"], json!(1));
    assert!(run(json!({"groundtruth_with_release_year": null})).is_err());
}

#[test]
fn constraints_are_written_into_the_first_message_of_the_user() {
    let templates =
        Templates::from([("gore".to_owned(), vec!["No. ".to_owned(), "No gore. ".to_owned()])]);
    let traits = ["gore".to_owned(), "x".to_owned()];
    let got = inject("Films?", &traits, &templates, Position::Prefix, |_| 1);
    assert_eq!(got.message, "No gore. Please avoid content related to x. Films?");
    let after = inject("Films?", &traits[..1], &templates, Position::Inline, |_| 1);
    assert_eq!(
        (after.message.as_str(), after.position),
        ("Films? No gore. ", Some(Position::Suffix))
    );
    assert_eq!(inject("Films?", &[], &templates, Position::Prefix, |_| 0).message, "Films?");
    let turn = |role: &str, text: &str| (role.to_owned(), text.to_owned());
    let mut turns = [turn("system", "s"), turn("user", "a"), turn("user", "b")];
    inject_into_turns(&mut turns, "user", &traits[..1], &templates, Position::Suffix, |_| 0)
        .unwrap();
    assert_eq!(turns, [turn("system", "s"), turn("user", "a No. "), turn("user", "b")]);
    let mut silent = [turn("system", "s")];
    let none = inject_into_turns(&mut silent, "user", &traits, &templates, Position::Prefix, |_| 0);
    assert_eq!(none, None);
}

#[test]
fn the_learning_rate_changes_at_its_steps() {
    let schedule = StepSchedule::new(1e-6, vec![(10, 5e-7), (20, 1e-7)]).unwrap();
    assert_eq!(
        [0, 9, 10, 19, 20, 99].map(|s| schedule.rate(s)),
        [1e-6, 1e-6, 5e-7, 5e-7, 1e-7, 1e-7]
    );
    // An optimiser that has been further keeps its rate where no change is reached.
    assert_eq!(schedule.next_rate(3.0, 9), 3.0);
    assert!(StepSchedule::new(1e-6, vec![(1, f64::NAN)]).is_err());
}

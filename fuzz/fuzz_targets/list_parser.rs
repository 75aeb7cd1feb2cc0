//! Recommendation lists: the parser, the cleaning of titles, and titles for look-ups.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plumb_algo::rank::list::parse_film;
use plumb_algo::rank::{Solution, normalize_title, parse_list, text, title::clean_title};

fuzz_target!(|data: &[u8]| plumb_fuzz::check(data, |text| {
    for solution in [Solution::First, Solution::CompatIgnored] {
        let films = parse_list(text, solution);
        assert!(films.len() <= text.split('\n').count());
        for film in films {
            assert!(film.year.spelled().is_some_and(|year| (0..=9999).contains(&year)));
            assert_eq!(clean_title(&film.title), film.title, "cleaning again changed it");
        }
    }
    let cleaned = clean_title(text);
    assert!(cleaned.chars().count() <= text.chars().count());
    let bare = text::without_format(text);
    assert_eq!(text::without_format(bare), bare);
    let normal = normalize_title(text);
    assert!(!normal.contains("  ") && normal.trim() == normal);
    let (title, _) = parse_film(text);
    assert!(text.contains(title));
}));

//! Answers and verdicts, whatever the text.

use proptest::prelude::*;

use crate::rule::Equality;
use crate::verdict::Verifier;
use crate::verdict::dialogue::Dialogue;

/// A polynomial of x and y with small coefficients, and its text with the terms as they are.
fn terms() -> impl Strategy<Value = Vec<(i32, u32, u32)>> {
    prop::collection::vec((-9i32..10, 0u32..3, 0u32..3), 1..5)
}

fn polynomial(terms: &[(i32, u32, u32)]) -> String {
    terms.iter().map(|(c, i, j)| format!("+({c})x^{i}y^{j}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_order_of_terms_does_not_matter_and_a_further_one_does(terms in terms(), cut in 0usize..5) {
        let mut turned = terms.clone();
        turned.rotate_left(cut % terms.len());
        prop_assert!(Equality::Value.holds(&polynomial(&terms), &polynomial(&turned)));
        turned.push((1, 1, 1));
        prop_assert!(!Equality::Value.holds(&polynomial(&terms), &polynomial(&turned)));
    }

    #[test]
    fn fractions_are_equal_as_their_cross_products_are(
        (a, b) in (-50i32..50, 1i32..50), (c, d) in (-50i32..50, 1i32..50),
    ) {
        let equal = Equality::Value.holds(&format!("{a}/{b}"), &format!(r"\frac{{{c}}}{{{d}}}"));
        prop_assert_eq!(equal, a * d == b * c);
    }

    #[test]
    fn equality_has_no_sides(a in "[-+0-9xy^/().,% {}\\\\a-c]{0,12}", b in "[-+0-9xy^/().,% {}\\\\a-c]{0,12}") {
        prop_assert_eq!(Equality::Value.holds(&a, &b), Equality::Value.holds(&b, &a));
    }

    #[test]
    fn any_text_is_judged_within_bounds(text in any::<String>()) {
        for verifier in Verifier::ALL {
            prop_assert!((0.0..=1.0).contains(&verifier.score(&text)));
        }
        let _: bool = Equality::Value.holds(&text, "1");
        let _: bool = Equality::Mathruler.holds(&text, "1");
        prop_assert!(Dialogue::parse(&text).turns().all(|(_, said)| text.contains(said)));
    }
}

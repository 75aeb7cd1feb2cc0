//! What is read in a judge's reply: its JSON, the reward, the next question, and the rates of an
//! evaluation; and in a turn, its format.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plumb_algo::json::{Json, first_object, float_of_text, int_of_text, object_in};
use plumb_algo::judge::{
    Dimensions, Rates, Scores, Template, Verdict, question_in_text, summarize,
};
use plumb_algo::turn::{Aggregation, ThinkingAnswer, compat};

fuzz_target!(|data: &[u8]| plumb_fuzz::check(data, |text| {
    if let Ok(verdict) = Verdict::read(text, Dimensions::default(), Scores::Checked) {
        assert!(verdict.reward.is_none_or(|r| (0.0..10.1).contains(&r)), "{:?}", verdict.reward);
        assert!(verdict.new_question.is_none_or(|question| !question.trim().is_empty()));
    }
    if let Ok(verdict) = Verdict::read(text, Dimensions::default(), Scores::Compat) {
        assert!(!verdict.reward.is_some_and(f64::is_nan));
    }
    if let Ok(Some(question)) = question_in_text(text) {
        assert!(!question.is_empty());
    }
    if let Ok(Some(payload)) = first_object(text) {
        assert!(matches!(payload, Json::Object(_) | Json::List(_)));
        // What is written is read back (NaN does not equal itself, so the text is compared).
        let written = payload.to_string();
        let again = first_object(&written).expect("within limits").expect("JSON");
        assert_eq!(again.to_string(), written);
        if let Ok(Some(reward)) = compat::reward(&payload, Some(&Aggregation::Mean), &[]) {
            assert!(!reward.is_nan());
        }
        if let Json::List(items) = &payload {
            let _ = summarize(items, 2.5);
        }
    }
    if let Ok(Some(object)) = object_in(text) {
        let rates = Rates::read(&object);
        assert!(rates.helpful.is_none_or(|rate| rate.fract() == 0.0));
    }
    if let Some(whole) = int_of_text(text) {
        assert_eq!(float_of_text(text), Some(whole));
    }
    if let Ok(template) = Template::new(text) {
        assert!(template.fill("", "", "").len() <= text.len());
    }
    assert!((0.0..=1.0).contains(&ThinkingAnswer::check(text).reward()));
}));

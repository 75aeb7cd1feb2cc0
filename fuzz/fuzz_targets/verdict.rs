//! Verifiers' replies, rendered chats, and the reward-model flag.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plumb_algo::reward_models::RewardPretrain;
use plumb_algo::rule::Equality;
use plumb_algo::verdict::Verifier;
use plumb_algo::verdict::dialogue::{Dialogue, without_images};
use plumb_algo::verdict::judge_prompt::{ByLanguage, Exchange, JudgePrompt};
use plumb_algo::verdict::language::{chinese_share, format_language_reward};

fuzz_target!(|data: &[u8]| plumb_fuzz::check(data, |text| {
    for verifier in Verifier::ALL {
        let score = verifier.score(text);
        assert!((0.0..=1.0).contains(&score), "{verifier:?} scored {score}");
        assert!(verifier.verdict(text).is_none_or(|verdict| verdict == score));
    }
    let dialogue = Dialogue::parse(text);
    assert!(dialogue.turns().all(|(_, said)| text.contains(said)));
    assert!(without_images(text).len() <= text.len());
    let exchange = Exchange::parse(text);
    let template = ByLanguage { zh: "{question}", en: "{question}" };
    let asked = JudgePrompt { template, system: None }.write(&exchange, None);
    assert_eq!(asked.as_ref(), Ok(&exchange.question));
    let own = JudgePrompt { template: ByLanguage { zh: text, en: text }, system: None };
    let short = Exchange { question: "q".to_owned(), response: "a".to_owned() };
    if let Ok(asked) = own.write(&short, Some("r")) {
        assert!(asked.len() <= text.len());
    }
    assert!((0.0..=1.0).contains(&chinese_share(text)));
    if let Ok(reward) = format_language_reward(text) {
        assert!(reward == 0.0 || reward == 1.0);
    }
    if let Ok(models) = RewardPretrain::Text(text.to_owned()).parse(false) {
        assert!(models.engines().len() <= models.models.len());
        assert!(models.label_map().len() <= Verifier::ALL.len());
    }
    let (given, reference) = text.split_once('\n').unwrap_or((text, text));
    for equality in [Equality::Value, Equality::Mathruler] {
        let equal = equality.holds(given, reference);
        assert!(!equal || equality == Equality::Mathruler || !given.trim().is_empty());
    }
}));

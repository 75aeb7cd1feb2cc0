//! 50,000 draws for each set of sampling parameters, against the distribution computed plainly in
//! f64 from the model's logits. Seeds are fixed, so the outcome is, too.

use statrs::distribution::{ChiSquared, ContinuousCDF};
use tch::{Kind, Tensor};

use super::*;
use crate::engine::{Forward, Span};
use crate::random::SampleStream;
use crate::tiny_model;

const DRAWS: usize = 50_000;
const PROMPT: [u32; 5] = [3, 14, 15, 9, 26];

/// The tiny model's logits after the prompt, half as steep so that many tokens have mass.
fn model_logits() -> Vec<f32> {
    let mut model = tiny_model::native(3);
    model.allocate(1).unwrap();
    let span = Span { ids: &PROMPT, first_position: 0, blocks: &[0], wants_logits: true };
    let logits_bv = model.step(&[span]).unwrap().unwrap() * 0.5;
    Vec::try_from(logits_bv.get(0).to_kind(Kind::Float)).unwrap()
}

/// What is drawn from: a plain computation, without anything of the sampler.
fn expected(logits: &[f32], distribution: Distribution, shaping: &Shaping) -> Vec<f64> {
    let mut z: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for (token, bias) in &shaping.logit_bias {
        z[*token as usize] += bias;
    }
    for (token, z) in z.iter_mut().enumerate() {
        if PROMPT.contains(&(token as u32)) {
            let penalty = shaping.repetition_penalty;
            *z = if *z > 0.0 { *z / penalty } else { *z * penalty };
        }
        let early = shaping.min_new_tokens > 0 && shaping.ending.contains(&(token as u32));
        let barred = !shaping.allowed.is_empty() && !shaping.allowed.contains(&(token as u32));
        if early || barred {
            *z = f64::NEG_INFINITY;
        }
    }
    let mut p: Vec<f64> = z.iter().map(|z| (z / distribution.temperature).exp()).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let kept = distribution.top_k.map_or(order.len(), |k| k as usize);
    order[kept.min(p.len())..].iter().for_each(|token| p[*token] = 0.0);
    let total: f64 = p.iter().sum();
    let mut before = 0.0;
    let least = p[order[0]] * distribution.min_p;
    for token in order {
        let mass = p[token];
        if before >= distribution.top_p * total || mass < least {
            p[token] = 0.0;
        }
        before += mass;
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}

/// Probability of a chi-square as large as that of `counts` under `p`; tokens that are expected
/// fewer than five times are one cell.
fn p_value(counts: &[f64], p: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare_count, mut rare) = (0.0, 0.0);
    let mut cell = |count: f64, expected: f64| {
        statistic += (count - expected).powi(2) / expected;
        cells += 1;
    };
    for (count, p) in counts.iter().zip(p) {
        if n * p >= 5.0 {
            cell(*count, n * p);
        } else {
            rare_count += count;
            rare += n * p;
        }
    }
    if rare > 0.0 {
        cell(rare_count, rare);
    }
    if cells == 1 {
        return 1.0;
    }
    ChiSquared::new(f64::from(cells - 1)).unwrap().sf(statistic)
}

fn check(name: &str, distribution: Distribution, shaping: &Shaping) {
    let logits = model_logits();
    let p = expected(&logits, distribution, shaping);
    let mut row_v = Tensor::from_slice(&logits);
    if shaping.acts(0) {
        shaping.apply(&mut row_v, &PROMPT, &[]);
    }
    let mut counts = vec![0.0; logits.len()];
    let part = 5_000;
    for first in (0..DRAWS).step_by(part) {
        let uniforms: Vec<f64> = (first..first + part)
            .map(|sample| SampleStream::new(11, 0, name, sample as u32).uniform(0))
            .collect();
        let logits_bv = row_v.unsqueeze(0).expand([part as i64, -1], false).contiguous();
        let drawn = draw(&logits_bv, distribution, &uniforms).unwrap();
        for (token, logp) in drawn.tokens.iter().zip(&drawn.logps) {
            counts[*token as usize] += 1.0;
            let expected = p[*token as usize].ln();
            assert!((f64::from(*logp) - expected).abs() < 1e-5, "{name}: {logp} is not {expected}");
        }
    }
    let impossible = counts.iter().zip(&p).find(|(count, p)| **count > 0.0 && **p == 0.0);
    assert_eq!(impossible, None, "{name}: a token without probability was drawn");
    let value = p_value(&counts, &p);
    println!("{name}: p = {value:.3}");
    assert!(value > 0.001, "{name}: p = {value:.5} over {counts:?}");
}

#[test]
fn draws_follow_the_model_for_each_set_of_parameters() {
    let plain = Distribution::default();
    let none = Shaping::default();
    check("plain", plain, &none);
    check("temperature 0.6", Distribution { temperature: 0.6, ..plain }, &none);
    check("temperature 1.7", Distribution { temperature: 1.7, ..plain }, &none);
    check("top-k 7", Distribution { top_k: Some(7), ..plain }, &none);
    check("top-p 0.8", Distribution { top_p: 0.8, ..plain }, &none);
    check("min-p 0.1", Distribution { min_p: 0.1, ..plain }, &none);
    let cut = Distribution { temperature: 1.3, top_k: Some(20), top_p: 0.9, min_p: 0.05, ..plain };
    check("all cuts", cut, &none);
    check("penalty 1.5", plain, &Shaping { repetition_penalty: 1.5, ..none.clone() });
    let bias = Shaping { logit_bias: [(1, 1.5), (9, -2.0)].into(), ..none.clone() };
    check("bias", plain, &bias);
    check("allowed", plain, &Shaping { allowed: [2, 3, 5, 8, 13, 21].into(), ..none.clone() });
    let early = Shaping { min_new_tokens: 1, ending: vec![31, 4], ..none };
    check("minimum", plain, &early);
    let all = Shaping { repetition_penalty: 1.2, allowed: (0..28).collect(), ..early };
    check("everything", cut, &Shaping { logit_bias: bias.logit_bias, ..all });
}

#[test]
fn a_wrong_distribution_is_found_out() {
    // The test has teeth: draws at temperature 1 against what temperature 1.25 would give.
    let logits = model_logits();
    let wrong = expected(
        &logits,
        Distribution { temperature: 1.25, ..Distribution::default() },
        &Shaping::default(),
    );
    let uniforms: Vec<f64> = (0..DRAWS)
        .map(|sample| SampleStream::new(12, 0, "teeth", sample as u32).uniform(0))
        .collect();
    let row_v = Tensor::from_slice(&logits);
    let mut counts = vec![0.0; logits.len()];
    for part in uniforms.chunks(5_000) {
        let logits_bv = row_v.unsqueeze(0).expand([part.len() as i64, -1], false);
        let drawn = draw(&logits_bv, Distribution::default(), part).unwrap();
        drawn.tokens.iter().for_each(|token| counts[*token as usize] += 1.0);
    }
    assert!(p_value(&counts, &wrong) < 0.001);
}

//! What is measured, and the pass over memory that each is measured against: a plain loop that
//! reads the same arrays, writes the same arrays and does next to nothing in between.

use plumb_algo::AlgoError;
use plumb_algo::advantage::{
    CrossBatch, Gae, Outside, broadcast_rows, clip, cross_batch, gae_rows, group_norm,
};
use plumb_algo::group::Groups;
use plumb_algo::masked::{Moments, standardize, whiten};
use plumb_algo::returns::discounted_rows;
use plumb_algo::token_reward::{TokenReward, penalize, token_rewards_rows};

use crate::batch::Batch;

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Batch) -> Result<(), AlgoError>,
    pub(crate) pass: fn(&mut Batch),
}

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "gae, outside skipped (verl)",
        run: |b| gae(b, Outside::Skip),
        pass: gae_pass,
    },
    Operation { name: "gae, outside 0 (LightRFT)", run: |b| gae(b, Outside::Zero), pass: gae_pass },
    Operation {
        name: "discounted returns",
        run: |b| discounted_rows(b.tokens, &b.x, &b.mask, 0.99, &mut b.out),
        pass: read_one_write_one,
    },
    Operation {
        name: "token rewards (KL in reward)",
        run: |b| {
            let spec = TokenReward { kl_coef: 0.1, reward_clip: Some((-5.0, 5.0)) };
            token_rewards_rows(&spec, b.tokens, &b.rewards, &b.x, &b.mask, &mut b.out)
        },
        pass: read_one_write_one,
    },
    Operation {
        name: "penalised scores, in place",
        run: |b| penalize(&mut b.out, &b.x, &b.mask, 1e-3),
        pass: |b| {
            for (out, (x, keep)) in b.out.iter_mut().zip(b.x.iter().zip(&b.mask)) {
                *out = if *keep { *out - x } else { *out };
            }
        },
    },
    Operation { name: "group norm, broadcast", run: group_advantages, pass: write_one },
    Operation {
        name: "masked moments",
        run: |b| Moments::of(&b.x, &b.mask).map(|moments| b.rewards[0] = moments.mean),
        pass: read_one,
    },
    Operation {
        name: "whitening, in place (verl)",
        run: |b| whiten(&mut b.out, &b.mask, true),
        pass: in_place,
    },
    Operation {
        name: "standardising, in place",
        run: |b| standardize(&mut b.out, &b.mask, 1e-9),
        pass: in_place,
    },
    Operation {
        name: "cross-batch norm, in place",
        run: |b| cross_batch(&CrossBatch::default(), &mut b.out, &b.mask),
        pass: in_place,
    },
    Operation {
        name: "advantage clip, in place",
        run: |b| clip(&mut b.out, 1.5).map(|share| b.rewards[0] = share),
        pass: |b| b.out.iter_mut().for_each(|out| *out = -*out),
    },
];

fn gae(b: &mut Batch, outside: Outside) -> Result<(), AlgoError> {
    let spec = Gae { gamma: 0.99, lambda: 0.95, outside };
    gae_rows(&spec, b.tokens, &b.x, &b.y, &b.mask, &mut b.out, &mut b.out2)
}

fn group_advantages(b: &mut Batch) -> Result<(), AlgoError> {
    let groups = Groups::adjacent(b.group, b.rewards.len())?;
    let advantages = group_norm(&b.rewards, &groups)?;
    broadcast_rows(&advantages, b.tokens, &b.mask, &mut b.out)
}

fn gae_pass(b: &mut Batch) {
    let inputs = b.x.iter().zip(&b.y).zip(&b.mask);
    for (((x, y), keep), (out, out2)) in inputs.zip(b.out.iter_mut().zip(&mut b.out2)) {
        *out = if *keep { x - y } else { *x };
        *out2 = x + y;
    }
}

fn read_one_write_one(b: &mut Batch) {
    for (out, (x, keep)) in b.out.iter_mut().zip(b.x.iter().zip(&b.mask)) {
        *out = if *keep { -x } else { 0.0 };
    }
}

fn write_one(b: &mut Batch) {
    for (out, keep) in b.out.iter_mut().zip(&b.mask) {
        *out = if *keep { 2.0 } else { 0.0 };
    }
}

fn in_place(b: &mut Batch) {
    for (out, keep) in b.out.iter_mut().zip(&b.mask) {
        *out = if *keep { -*out } else { *out };
    }
}

/// Partial sums that fill the vector registers.
fn read_one(b: &mut Batch) {
    const LANES: usize = 32;
    let (mut sums, mut kept) = ([0.0f32; LANES], [false; LANES]);
    for (x, mask) in b.x.as_chunks::<LANES>().0.iter().zip(b.mask.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += x[lane];
            kept[lane] ^= mask[lane];
        }
    }
    b.rewards[0] = f64::from(sums.iter().sum::<f32>()) + f64::from(u8::from(kept[0]));
}

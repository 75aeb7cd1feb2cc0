//! Which way of reading a cache is fast: `paged_attention [threads]`.
//!
//! One layer's decode attention, new keys and values written and the rest read, for several shapes,
//! number formats and batches; sequences of 64 to 191 tokens, as in the middle of a batch with
//! 64-token prompts and up to 128 new tokens. Beside each other, in one run:
//!
//! - `dense`: a slot for each sequence, padded to the longest, two batched products;
//! - `gather`: blocks copied into such a slot before every step;
//! - `views`: a loop over sequences, each a contiguous view;
//! - `blocks`: the kernel of [`plumb_torch::paged`].
// A measurement prints its figures.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use plumb_torch::paged::{self, BLOCK_TOKENS, PagedLayer, PagedRows};
use tch::{Device, Kind, Tensor};

const CAPACITY: i64 = 192;
const STEPS: usize = 40;

struct Shape {
    name: &'static str,
    kv_heads: i64,
    group: i64,
    dim: i64,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "~1M (4/2 x 32)", kv_heads: 2, group: 2, dim: 32 },
    Shape { name: "~10M (5/1 x 64)", kv_heads: 1, group: 5, dim: 64 },
    Shape { name: "~50M (8/2 x 64)", kv_heads: 2, group: 4, dim: 64 },
    Shape { name: "SmolLM2 (9/3 x 64)", kv_heads: 3, group: 3, dim: 64 },
    Shape { name: "odd heads (8/2 x 40)", kv_heads: 2, group: 4, dim: 40 },
];

struct Batch {
    rows: i64,
    lengths: Vec<i64>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

fn batch(shape: &Shape, kind: Kind, rows: i64) -> Batch {
    let draw = |heads: i64| {
        Tensor::randn([rows, heads, shape.dim], (Kind::Float, Device::Cpu)).to_kind(kind)
    };
    Batch {
        rows,
        lengths: (0..rows).map(|n| 64 + (n * 37) % 128).collect(),
        q: draw(shape.kv_heads * shape.group),
        k: draw(shape.kv_heads),
        v: draw(shape.kv_heads),
    }
}

/// Microseconds of one call, the least of three rounds.
fn time(mut call: impl FnMut()) -> f64 {
    (0..3)
        .map(|_| {
            let start = Instant::now();
            (0..STEPS).for_each(|_| call());
            start.elapsed().as_secs_f64() * 1e6 / STEPS as f64
        })
        .fold(f64::INFINITY, f64::min)
}

/// Two batched products over keys and values `[rows * K, L, D]`.
fn products(b: &Batch, k_rld: &Tensor, v_rld: &Tensor, mask_r1l: &Tensor, dim: i64) -> Tensor {
    let groups = k_rld.size()[0];
    let q_rgd = b.q.view([groups, -1, dim]);
    let scores = mask_r1l.baddbmm(&q_rgd, &k_rld.transpose(1, 2), 1.0, (dim as f64).powf(-0.5));
    scores.softmax(-1, None).bmm(v_rld).view([b.rows, -1])
}

fn dense(shape: &Shape, kind: Kind, b: &Batch) -> f64 {
    let options = (kind, Device::Cpu);
    let slots = || Tensor::zeros([b.rows, shape.kv_heads, CAPACITY, shape.dim], options);
    let (k_all, v_all) = (slots(), slots());
    let last: Vec<i64> = b.lengths.iter().map(|l| l - 1).collect();
    let longest = *b.lengths.iter().max().unwrap();
    let at = [
        Some(Tensor::arange(b.rows, (Kind::Int64, Device::Cpu)).unsqueeze(1)),
        Some(Tensor::arange(shape.kv_heads, (Kind::Int64, Device::Cpu)).unsqueeze(0)),
        Some(Tensor::from_slice(&last).unsqueeze(1)),
    ];
    let column = Tensor::arange(longest, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let blocked = column.gt_tensor(&Tensor::from_slice(&last).unsqueeze(1));
    let mask = Tensor::zeros([b.rows, longest], options)
        .masked_fill(&blocked, f64::NEG_INFINITY)
        .unsqueeze(1)
        .expand([b.rows, shape.kv_heads, longest], false)
        .reshape([b.rows * shape.kv_heads, 1, longest]);
    time(|| {
        let _ = k_all.shallow_clone().index_put_(&at, &b.k, false);
        let _ = v_all.shallow_clone().index_put_(&at, &b.v, false);
        let rows = |x: &Tensor| x.narrow(2, 0, longest).flatten(0, 1);
        let _ = products(b, &rows(&k_all), &rows(&v_all), &mask, shape.dim);
    })
}

fn gather(shape: &Shape, kind: Kind, b: &Batch, tables: &Tensor) -> f64 {
    let options = (kind, Device::Cpu);
    let tokens = BLOCK_TOKENS as i64;
    let (width, blocks) = (tables.size()[1], b.rows * tables.size()[1]);
    let cache = || Tensor::zeros([blocks, shape.kv_heads, tokens, shape.dim], options);
    let (k_all, v_all) = (cache(), cache());
    let index = tables.to_kind(Kind::Int64).view([-1]);
    let mask = Tensor::zeros([b.rows * shape.kv_heads, 1, width * tokens], options);
    time(|| {
        let rows = |x: &Tensor| {
            x.index_select(0, &index)
                .view([b.rows, width, shape.kv_heads, tokens, shape.dim])
                .transpose(1, 2)
                .reshape([b.rows * shape.kv_heads, width * tokens, shape.dim])
        };
        let _ = products(b, &rows(&k_all), &rows(&v_all), &mask, shape.dim);
    })
}

fn views(shape: &Shape, kind: Kind, b: &Batch) -> f64 {
    let options = (kind, Device::Cpu);
    let slots = || Tensor::zeros([b.rows, shape.kv_heads, CAPACITY, shape.dim], options);
    let (k_all, v_all) = (slots(), slots());
    let scale = (shape.dim as f64).powf(-0.5);
    time(|| {
        let outputs: Vec<Tensor> = (0..b.rows)
            .map(|row| {
                let length = b.lengths[row as usize];
                let part = |all: &Tensor, new: &Tensor| {
                    let slot = all.get(row);
                    slot.narrow(1, length - 1, 1).copy_(&new.get(row).unsqueeze(1));
                    slot.narrow(1, 0, length)
                };
                let (k, v) = (part(&k_all, &b.k), part(&v_all, &b.v));
                let q = b.q.get(row).view([shape.kv_heads, shape.group, shape.dim]) * scale;
                q.bmm(&k.transpose(1, 2)).softmax(-1, None).bmm(&v)
            })
            .collect();
        let _ = Tensor::stack(&outputs, 0);
    })
}

fn blocks(shape: &Shape, kind: Kind, b: &Batch, tables: &Tensor) -> f64 {
    let options = (kind, Device::Cpu);
    let count = b.rows * tables.size()[1];
    let keys = Tensor::zeros([count, shape.kv_heads, shape.dim, BLOCK_TOKENS as i64], options);
    let values = Tensor::zeros([count, shape.kv_heads, BLOCK_TOKENS as i64, shape.dim], options);
    let layer = PagedLayer { keys: &keys, values: &values };
    let last: Vec<i32> = b.lengths.iter().map(|l| *l as i32 - 1).collect();
    let rows = PagedRows {
        tables_sw: tables.shallow_clone(),
        sequence_n: Tensor::from_slice(&(0..b.rows as i32).collect::<Vec<_>>()),
        position_n: Tensor::from_slice(&last),
    };
    let scale = (shape.dim as f64).powf(-0.5);
    time(|| {
        paged::write(layer, &rows, &b.k, &b.v).unwrap();
        let _ = paged::attend(layer, &rows, &b.q, None, scale).unwrap();
    })
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    tch::set_num_threads(threads);
    let _no_grad = tch::no_grad_guard();
    println!("microseconds of one layer's attention, {threads} thread(s)");
    println!("model, format, batch: dense, gather, views, blocks; dense / blocks");
    for shape in &SHAPES {
        for kind in [Kind::Float, Kind::BFloat16] {
            for count in [8, 32, 64] {
                let b = batch(shape, kind, count);
                let width = CAPACITY / BLOCK_TOKENS as i64;
                // Blocks of neighbouring sequences are interleaved.
                let tables = Tensor::arange(count * width, (Kind::Int, Device::Cpu))
                    .view([width, count])
                    .tr()
                    .contiguous();
                let figures = [
                    dense(shape, kind, &b),
                    gather(shape, kind, &b, &tables),
                    views(shape, kind, &b),
                    blocks(shape, kind, &b, &tables),
                ];
                println!(
                    "{}, {kind:?}, {count}: {:.0}, {:.0}, {:.0}, {:.0}; {:.2}",
                    shape.name,
                    figures[0],
                    figures[1],
                    figures[2],
                    figures[3],
                    figures[0] / figures[3]
                );
            }
        }
    }
}

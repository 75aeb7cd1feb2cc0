//! The kernel against attention written out in f64, over ragged sequences in scattered blocks.

use tch::{Device, Kind};

use super::*;

const CPU: Device = Device::Cpu;

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(values)
}

struct Case {
    kv_heads: i64,
    group: i64,
    dim: i64,
    kind: Kind,
    window: Option<i64>,
}

/// Sequences of 1, 16, 17 and 50 tokens; blocks handed out backwards.
const LENGTHS: [i64; 4] = [1, 16, 17, 50];

/// Keys and values of every token, `[T, K, D]` for each sequence, and queries for the last rows.
fn random(case: &Case) -> (Vec<(Tensor, Tensor)>, Tensor) {
    tch::manual_seed(7);
    let kv = |t: i64| {
        let shape = [t, case.kv_heads, case.dim];
        let draw = || Tensor::randn(shape, (Kind::Float, CPU)).to_kind(case.kind);
        (draw(), draw())
    };
    let tokens = LENGTHS.iter().map(|t| kv(*t)).collect();
    let shape = [LENGTHS.len() as i64, case.kv_heads * case.group, case.dim];
    (tokens, Tensor::randn(shape, (Kind::Float, CPU)).to_kind(case.kind))
}

fn tables() -> Tensor {
    // 1 + 1 + 2 + 4 blocks of 9, the rest of each row out of range on purpose.
    ints(&[8, 99, 99, 99, 7, 99, 99, 99, 6, 5, 99, 99, 4, 3, 2, 1]).view([4, 4])
}

fn cache(case: &Case) -> (Tensor, Tensor) {
    // What nobody wrote is not a number, so that reading it shows.
    let full = |shape: [i64; 4]| Tensor::full(shape, f64::NAN, (case.kind, CPU));
    (full([9, case.kv_heads, case.dim, 16]), full([9, case.kv_heads, 16, case.dim]))
}

/// `[Q * D]` of one sequence at its last token.
fn plainly(case: &Case, k_tkd: &Tensor, v_tkd: &Tensor, q_qd: &Tensor) -> Tensor {
    let length = k_tkd.size()[0];
    let first = case.window.map_or(0, |w| (length - w).max(0));
    let part = |x: &Tensor| {
        let x = x.narrow(0, first, length - first).to_kind(Kind::Double);
        x.repeat_interleave_self_int(case.group, 1, None::<i64>)
    };
    let (k, v) = (part(k_tkd), part(v_tkd));
    let q = q_qd.to_kind(Kind::Double).unsqueeze(0);
    let scores_tq = (k * q).sum_dim_intlist(2, false, Kind::Double) / (case.dim as f64).sqrt();
    let weights = scores_tq.softmax(0, Kind::Double).unsqueeze(2);
    (weights * v).sum_dim_intlist(0, false, Kind::Double).view([-1])
}

fn filled(case: &Case, tokens: &[(Tensor, Tensor)]) -> (Tensor, Tensor) {
    let (keys, values) = cache(case);
    for (sequence, (k, v)) in tokens.iter().enumerate() {
        let length = k.size()[0] as i32;
        let rows = PagedRows {
            tables_sw: tables(),
            sequence_n: ints(&vec![sequence as i32; length as usize]),
            position_n: ints(&(0..length).collect::<Vec<_>>()),
        };
        write(PagedLayer { keys: &keys, values: &values }, &rows, k, v).unwrap();
    }
    (keys, values)
}

fn last_rows() -> PagedRows {
    let last: Vec<i32> = LENGTHS.iter().map(|t| *t as i32 - 1).collect();
    PagedRows { tables_sw: tables(), sequence_n: ints(&[0, 1, 2, 3]), position_n: ints(&last) }
}

#[test]
fn attention_over_blocks_is_attention() {
    for (kv_heads, group, dim) in
        [(2, 1, 4), (1, 3, 64), (2, 2, 32), (3, 7, 80), (2, 4, 128), (2, 5, 40), (1, 2, 20)]
    {
        for (kind, bound) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1e-2)] {
            for window in [None, Some(20)] {
                let case = Case { kv_heads, group, dim, kind, window };
                let (tokens, q) = random(&case);
                let (keys, values) = filled(&case, &tokens);
                let layer = PagedLayer { keys: &keys, values: &values };
                let scale = (dim as f64).powf(-0.5);
                let out = attend(layer, &last_rows(), &q, window, scale).unwrap();
                for (row, (k, v)) in tokens.iter().enumerate() {
                    let expected = plainly(&case, k, v, &q.get(row as i64));
                    let got = out.get(row as i64).to_kind(Kind::Double);
                    let worst = (got - expected).abs().max().double_value(&[]);
                    assert!(worst < bound, "{kv_heads} {group} {dim} {kind:?} {row}: {worst}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_among_others() {
    let case = Case { kv_heads: 2, group: 3, dim: 48, kind: Kind::Float, window: None };
    let (tokens, q) = random(&case);
    let (keys, values) = filled(&case, &tokens);
    let layer = PagedLayer { keys: &keys, values: &values };
    let together = attend(layer, &last_rows(), &q, None, 0.14).unwrap();
    for row in 0..4i32 {
        let rows = PagedRows {
            tables_sw: tables(),
            sequence_n: ints(&[-1, row]),
            position_n: ints(&[0, LENGTHS[row as usize] as i32 - 1]),
        };
        let q_row = q.get(i64::from(row)).unsqueeze(0);
        let alone = attend(layer, &rows, &Tensor::cat(&[&q_row, &q_row], 0), None, 0.14).unwrap();
        assert!(alone.get(1).equal(&together.get(i64::from(row))), "row {row}");
        assert_eq!(alone.get(0).abs().max().double_value(&[]), 0.0, "a filler gives zeros");
    }
}

#[test]
fn places_outside_the_cache_are_refused_before_anything_is_touched() {
    let case = Case { kv_heads: 2, group: 1, dim: 16, kind: Kind::Float, window: None };
    let (keys, values) = cache(&case);
    let layer = PagedLayer { keys: &keys, values: &values };
    let k = Tensor::zeros([1, 2, 16], (Kind::Float, CPU));
    let error = |table: i32, position: i32| {
        let rows = PagedRows {
            tables_sw: ints(&[0, table]).view([1, 2]),
            sequence_n: ints(&[0]),
            position_n: ints(&[position]),
        };
        write(layer, &rows, &k, &k).unwrap_err().message
    };
    assert!(error(9, 16).contains("block 9 of 9 in the table of sequence 0"));
    assert!(error(1, 32).contains("position 32 of 2 blocks"));
    let half = k.to_kind(Kind::BFloat16);
    let error = write(layer, &last_rows(), &half, &half).unwrap_err().message;
    assert!(error.contains("new keys of shape"), "{error}");
    assert!(bool::try_from(keys.isnan().all()).unwrap());
}

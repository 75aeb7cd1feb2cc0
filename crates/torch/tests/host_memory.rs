//! What a process holds of its tensors' memory. One test alone in its process: it reads the
//! process' own figures and changes its allocator.

#![allow(clippy::unwrap_used, reason = "clippy takes a test file's own functions for library code")]

use plumb_torch::allocator::{keep_resident_memory_small, mapped_zeros};
use tch::{Device, Kind, Tensor};

const ELEMENTS: i64 = 16 << 20;

fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<i64>().unwrap() * 1024
}

fn near(got: i64, expected: i64) -> bool {
    (got - expected).abs() < 12 << 20
}

#[test]
fn memory_is_resident_only_while_it_is_used() {
    a_mapped_vector_is_resident_only_while_it_is_used();
    tensors_compute_the_same_in_blocks_of_every_size();
}

fn a_mapped_vector_is_resident_only_while_it_is_used() {
    let start = resident_bytes();
    let vector = mapped_zeros(ELEMENTS, Kind::Float, Device::Cpu);
    assert!(near(resident_bytes(), start), "untouched pages are not resident");
    assert_eq!((vector.size(), vector.kind()), (vec![ELEMENTS], Kind::Float));
    let _ = vector.shallow_clone().fill_(2.0);
    assert!(near(resident_bytes(), start + 4 * ELEMENTS));
    assert_eq!(vector.sum(Kind::Double).double_value(&[]), 2.0 * ELEMENTS as f64);
    plumb_torch::storage_resize(&vector, 0).unwrap();
    assert!(near(resident_bytes(), start), "a released storage is given back");
    plumb_torch::storage_resize(&vector, 4 * ELEMENTS as usize).unwrap();
    assert_eq!(vector.double_value(&[ELEMENTS - 1]), 0.0);
}

fn tensors_compute_the_same_in_blocks_of_every_size() {
    let options = (Kind::Float, Device::Cpu);
    let before = Tensor::arange(10, options);
    keep_resident_memory_small().unwrap();
    // From the heap, kept for reuse, given back at once.
    for elements in [10_i64, 300 << 10, 9 << 20] {
        for round in 0..3 {
            let ones = Tensor::ones([elements], options);
            let sum = (&ones + &ones * round).sum(Kind::Double).double_value(&[]);
            assert_eq!(sum, (elements * (1 + round)) as f64);
        }
    }
    assert_eq!(before.sum(Kind::Float).double_value(&[]), 45.0);
}

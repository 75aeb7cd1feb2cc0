//! Optimiser state in 8 bits: block-wise dynamic quantisation (Dettmers, Lewis, Shleifer and
//! Zettlemoyer 2022, "8-bit Optimizers via Block-wise Quantization").
//!
//! A vector is cut into blocks of 256 elements, from the first element of a rank's shard. A block
//! is divided by its largest absolute value, and each element becomes the nearest of 256 values
//! that lie dense around 0 and span seven decades ([`DynamicMap`]). An element takes one byte and
//! 4 / 256 of one for its block's scale: both moments together 2.03 bytes instead of 8.
//!
//! Q8-1: a second moment above 0 never becomes 0. Rounding to the nearest value would let an
//! element whose gradient has ceased divide its first moment by epsilon alone.

use tch::{Device, Kind, Tensor};

/// Elements that share a scale.
pub(crate) const BLOCK: i64 = 256;
/// Decades that the values of a map span.
const DECADES: i32 = 7;

/// The 256 values that a byte stands for, in order, and where the rounding changes between them.
#[derive(Debug)]
pub(crate) struct DynamicMap {
    values_c: Tensor,
    boundaries_c: Tensor,
}

impl DynamicMap {
    /// For values of both signs, [-1, 1].
    pub(crate) fn signed(device: Device) -> Self {
        let values = values(true);
        let middle = |pair: &[f32]| (pair[0] + pair[1]) / 2.0;
        let boundaries: Vec<f32> = values.windows(2).map(middle).collect();
        Self::new(&values, &boundaries, device)
    }

    /// For values that are not negative, [0, 1].
    pub(crate) fn unsigned(device: Device) -> Self {
        let values = values(false);
        let middle = |pair: &[f32]| (pair[0] + pair[1]) / 2.0;
        let mut boundaries: Vec<f32> = values.windows(2).map(middle).collect();
        // Q8-1.
        boundaries[0] = 0.0;
        Self::new(&values, &boundaries, device)
    }

    fn new(values: &[f32], boundaries: &[f32], device: Device) -> Self {
        let on_device = |numbers: &[f32]| Tensor::from_slice(numbers).to_device(device);
        Self { values_c: on_device(values), boundaries_c: on_device(boundaries) }
    }

    fn code_of_zero(&self) -> i64 {
        let zero = Tensor::zeros([1], (Kind::Float, self.values_c.device()));
        zero.bucketize(&self.boundaries_c, true, false).int64_value(&[0])
    }
}

/// Decade `d` below 1 (0 the lowest, up to 10^-6) holds `2^d` values of each sign, `2^(d + 1)`
/// where there is one sign only: the middles of as many equal parts of [0.1, 1] times the decade.
/// Beside them stand 0 and 1.
fn values(signed: bool) -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let parts = 1 << (decade + i32::from(!signed));
        let scale = 10f64.powi(decade + 1 - DECADES);
        for part in 0..parts {
            let value = scale * (0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts));
            values.push(value as f32);
            if signed {
                values.push(-value as f32);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

/// A vector `[S]` as bytes and one scale per block.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// `[S]`, u8.
    pub(crate) codes_s: Tensor,
    /// Largest absolute value of each block, fp32.
    pub(crate) scales_b: Tensor,
}

impl Quantized {
    /// Zeros.
    pub(crate) fn zeros(elements: i64, map: &DynamicMap) -> Self {
        let device = map.values_c.device();
        let codes_s = Tensor::full([elements], map.code_of_zero(), (Kind::Uint8, device));
        let blocks = (elements + BLOCK - 1) / BLOCK;
        Self { codes_s, scales_b: Tensor::zeros([blocks], (Kind::Float, device)) }
    }

    /// Elements `first..first + count` in fp32; `first` is the first of a block.
    pub(crate) fn read(&self, map: &DynamicMap, first: i64, count: i64) -> Tensor {
        let codes_n = self.codes_s.narrow(0, first, count).to_kind(Kind::Int);
        let blocks = (count + BLOCK - 1) / BLOCK;
        let scales_n = self.scales_b.narrow(0, first / BLOCK, blocks).unsqueeze(1);
        let scales_n = scales_n.expand([blocks, BLOCK], false).reshape([-1]).narrow(0, 0, count);
        map.values_c.index_select(0, &codes_n) * scales_n
    }

    /// Replaces the elements from `first`, the first of a block, by `values_n`, which end where a
    /// block or the vector does.
    pub(crate) fn write(&mut self, map: &DynamicMap, first: i64, values_n: &Tensor) {
        let count = values_n.size()[0];
        let blocks = (count + BLOCK - 1) / BLOCK;
        let padded_n = values_n.constant_pad_nd([0, blocks * BLOCK - count]);
        let values_bc = padded_n.view([blocks, BLOCK]);
        let scales_b = values_bc.abs().amax([1], false);
        // A block of zeros is divided by anything but 0.
        let divisors_b1 =
            scales_b.where_self(&scales_b.ne(0.0), &scales_b.ones_like()).unsqueeze(1);
        let codes_bc = (values_bc / divisors_b1).bucketize(&map.boundaries_c, true, false);
        let codes_n = codes_bc.view([-1]).narrow(0, 0, count);
        self.codes_s.narrow(0, first, count).copy_(&codes_n);
        self.scales_b.narrow(0, first / BLOCK, blocks).copy_(&scales_b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(map: &DynamicMap, numbers: &[f32]) -> Vec<f32> {
        let values = Tensor::from_slice(numbers);
        let mut quantized = Quantized::zeros(numbers.len() as i64, map);
        quantized.write(map, 0, &values);
        Vec::try_from(quantized.read(map, 0, numbers.len() as i64)).unwrap()
    }

    #[test]
    fn a_map_has_256_values_from_the_lowest_decade_to_one() {
        let (signed, unsigned) = (values(true), values(false));
        assert_eq!((signed.len(), unsigned.len()), (256, 256));
        assert!(signed.is_sorted() && unsigned.is_sorted());
        // By hand: the middle of [0.1, 1] in the lowest decade, and the last of 64 (128) parts.
        assert!(signed.iter().any(|v| (v / 5.5e-7 - 1.0).abs() < 1e-6));
        assert!((signed[254] - 0.992_968_75).abs() < 1e-7 && signed[255] == 1.0);
        assert_eq!(signed[0], -signed[254]);
        assert!((unsigned[1] / 3.25e-7 - 1.0).abs() < 1e-6 && unsigned[0] == 0.0);
        assert!((unsigned[254] - 0.996_484_4).abs() < 1e-6 && unsigned[255] == 1.0);
    }

    #[test]
    fn every_block_has_its_own_scale_and_zeros_stay_zeros() {
        let map = DynamicMap::signed(Device::Cpu);
        let mut numbers = vec![0.0f32; 600];
        numbers[3] = 1e-3;
        numbers[300] = 1e6;
        numbers[599] = -2.0;
        let back = round_trip(&map, &numbers);
        assert_eq!((back[3], back[300]), (1e-3, 1e6));
        assert!((back[599] + 2.0 * 0.992_968_75).abs() < 1e-6, "{}", back[599]);
        assert_eq!(back.iter().filter(|value| **value == 0.0).count(), 597);
        assert_eq!(round_trip(&map, &[0.0; 5]), [0.0; 5]);
    }

    #[test]
    fn the_error_is_small_beside_the_blocks_largest_value() {
        let map = DynamicMap::signed(Device::Cpu);
        tch::manual_seed(1);
        let values = Tensor::randn([10_000], (Kind::Float, Device::Cpu));
        let numbers: Vec<f32> = Vec::try_from(&values).unwrap();
        let back = round_trip(&map, &numbers);
        let largest = numbers.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (value, back) in numbers.iter().zip(&back) {
            // Half a part of the highest decade at most.
            assert!((value - back).abs() <= 0.9 / 128.0 * largest * 1.001, "{value} became {back}");
        }
    }

    #[test]
    fn q8_1_a_positive_second_moment_stays_positive() {
        let map = DynamicMap::unsigned(Device::Cpu);
        let back = round_trip(&map, &[1.0, 1e-9, 0.0, 0.5]);
        assert!(back[1] > 0.0 && back[1] < 1e-6, "{back:?}");
        assert_eq!(back[2], 0.0);
        assert!((back[3] - 0.5).abs() < 4e-3);
    }
}

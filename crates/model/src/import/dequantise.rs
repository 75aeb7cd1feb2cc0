//! ggml's block formats as fp32. Layouts follow ggml's `ggml-common.h`; each is checked against
//! numbers from the `gguf` Python package.

use half::{bf16, f16};

/// A number format of GGUF tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q6K,
}

/// What [`NumberFormat`] covers, for error messages.
pub(super) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q6_K";

impl NumberFormat {
    /// The format of ggml's type code, or the name of one that is not supported.
    pub(super) fn from_code(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => return Err(unsupported_name(other)),
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of a block.
    pub(super) fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }
}

fn unsupported_name(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("type code {other}"),
    };
    name.to_owned()
}

/// The numbers in `bytes`, whole blocks of `format`.
pub(super) fn dequantise(format: NumberFormat, bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks_exact(format.block_bytes());
    let mut out = Vec::with_capacity(blocks.len() * format.block_elements());
    for block in blocks {
        match format {
            NumberFormat::F32 => {
                out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]))
            }
            NumberFormat::F16 => out.push(half_at(block, 0)),
            NumberFormat::Bf16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
            NumberFormat::Q4_0 => {
                nibbles(&block[2..], None, half_at(block, 0), |q| f32::from(q) - 8.0, 0.0, &mut out)
            }
            NumberFormat::Q4_1 => {
                nibbles(
                    &block[4..],
                    None,
                    half_at(block, 0),
                    f32::from,
                    half_at(block, 2),
                    &mut out,
                );
            }
            NumberFormat::Q5_0 => {
                nibbles(
                    &block[6..],
                    Some(word(block, 2)),
                    half_at(block, 0),
                    |q| f32::from(q) - 16.0,
                    0.0,
                    &mut out,
                );
            }
            NumberFormat::Q5_1 => nibbles(
                &block[8..],
                Some(word(block, 4)),
                half_at(block, 0),
                f32::from,
                half_at(block, 2),
                &mut out,
            ),
            NumberFormat::Q8_0 => {
                let scale = half_at(block, 0);
                out.extend(block[2..].iter().map(|&q| scale * f32::from(q.cast_signed())));
            }
            NumberFormat::Q4K => q4_k(block, &mut out),
            NumberFormat::Q6K => q6_k(block, &mut out),
        }
    }
    out
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 values of four bits: low nibbles first, then high ones; `fifth` holds one more bit of each.
fn nibbles(
    quants: &[u8],
    fifth: Option<u32>,
    scale: f32,
    centred: fn(u8) -> f32,
    min: f32,
    out: &mut Vec<f32>,
) {
    let value = |nibble: u8, i: usize| {
        let high = fifth.map_or(0, |bits| ((bits >> i) & 1) as u8) << 4;
        scale * centred(nibble | high) + min
    };
    out.extend(quants.iter().take(16).enumerate().map(|(i, q)| value(q & 0x0F, i)));
    out.extend(quants.iter().take(16).enumerate().map(|(i, q)| value(q >> 4, i + 16)));
}

/// 8 groups of 32 values, each with a 6-bit scale and a 6-bit minimum packed into 12 bytes.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    let quants = &block[16..];
    for group in 0..8 {
        let (scale, min) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            (
                (packed[group + 4] & 0x0F) | ((packed[group - 4] >> 6) << 4),
                (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
            )
        };
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let bytes = &quants[group / 2 * 32..group / 2 * 32 + 32];
        let shift = (group % 2) * 4;
        out.extend(bytes.iter().map(|&b| scale * f32::from((b >> shift) & 0x0F) - min));
    }
}

/// 16 groups of 16 values with 8-bit scales; low four bits and high two bits lie apart.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for i in 0..256 {
        let (part, within) = (i / 128, i % 128);
        let low_byte = low[part * 64 + within % 64];
        let low_bits = if within < 64 { low_byte & 0x0F } else { low_byte >> 4 };
        let high_bits = (high[part * 32 + within % 32] >> (2 * (within / 32))) & 3;
        let value = f32::from(low_bits | (high_bits << 4)) - 32.0;
        out.push(d * f32::from(scales[i / 16].cast_signed()) * value);
    }
}

#[cfg(test)]
#[path = "dequantise_tests.rs"]
mod tests;

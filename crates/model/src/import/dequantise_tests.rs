//! Expected numbers come from `gguf.quants.dequantize` of the `gguf` Python package.

use super::*;

#[test]
fn every_block_format_gives_the_numbers_of_the_reference_decoder() {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../testdata/dequantised.json")).unwrap();
    let formats = [
        (2, "Q4_0"),
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (8, "Q8_0"),
        (12, "Q4_K"),
        (14, "Q6_K"),
        (30, "BF16"),
    ];
    assert_eq!(cases.as_object().unwrap().len(), formats.len());
    for (code, name) in formats {
        let format = NumberFormat::from_code(code).unwrap();
        assert_eq!(format.name(), name);
        let bytes = hex::decode(cases[name]["bytes"].as_str().unwrap()).unwrap();
        let expected: Vec<f32> = serde_json::from_value(cases[name]["values"].clone()).unwrap();
        let found = dequantise(format, &bytes);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{name}[{i}]: {a} against {b}");
        }
    }
}

#[test]
fn plain_floats_are_taken_as_they_are() {
    assert_eq!(dequantise(NumberFormat::F32, &1.5f32.to_le_bytes()), [1.5]);
    assert_eq!(dequantise(NumberFormat::F16, &f16::from_f32(-0.25).to_le_bytes()), [-0.25]);
}

#[test]
fn other_formats_are_named() {
    assert_eq!(NumberFormat::from_code(10), Err("Q2_K".to_owned()));
    assert_eq!(NumberFormat::from_code(99), Err("type code 99".to_owned()));
}

//! Writers for tiny source files.

use std::path::{Path, PathBuf};

/// Builds a GGUF file of version 3.
#[derive(Default)]
pub(super) struct GgufWriter {
    metadata: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(value: &str) -> Vec<u8> {
    [(value.len() as u64).to_le_bytes().as_slice(), value.as_bytes()].concat()
}

impl GgufWriter {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.metadata.push([text(key).as_slice(), &kind.to_le_bytes(), value].concat());
    }

    pub(super) fn count(mut self, key: &str, value: u32) -> Self {
        self.put(key, 4, &value.to_le_bytes());
        self
    }

    pub(super) fn number(mut self, key: &str, value: f32) -> Self {
        self.put(key, 6, &value.to_le_bytes());
        self
    }

    pub(super) fn text(mut self, key: &str, value: &str) -> Self {
        self.put(key, 8, &text(value));
        self
    }

    pub(super) fn texts(mut self, key: &str, values: &[&str]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|v| text(v)).collect();
        let head = [8u32.to_le_bytes().as_slice(), &(values.len() as u64).to_le_bytes()].concat();
        self.put(key, 9, &[head, items].concat());
        self
    }

    pub(super) fn counts(mut self, key: &str, values: &[i32]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let head = [5u32.to_le_bytes().as_slice(), &(values.len() as u64).to_le_bytes()].concat();
        self.put(key, 9, &[head, items].concat());
        self
    }

    /// An F32 tensor of `shape` (slowest first) whose values count up from `first`.
    pub(super) fn tensor(self, name: &str, shape: &[u64], first: f32) -> Self {
        let count = shape.iter().product::<u64>();
        let bytes = (0..count).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        self.raw_tensor(name, shape, 0, bytes)
    }

    pub(super) fn raw_tensor(
        mut self,
        name: &str,
        shape: &[u64],
        code: u32,
        bytes: Vec<u8>,
    ) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), code, bytes));
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        out.extend(self.metadata.concat());
        let mut data = Vec::new();
        for (name, shape, code, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|d| d.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub(super) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// The tensors of a safetensors file, in fp32, by name.
pub(super) fn safetensors(
    folder: &Path,
) -> std::collections::BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let values = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            (name.to_owned(), (view.shape().to_vec(), values))
        })
        .collect()
}

pub(super) fn json(folder: &Path, name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

//! Weights from the policy's ranks to whoever generates with them.
//!
//! The policy's ranks gather block by block; rank 0 broadcasts each block as one flat vector over
//! a second group, whose rank 0 it is and whose other members are the remaining policy ranks and
//! all receivers. Sender and receivers take the BLAKE3 digest of the bytes; a version goes live
//! only where they agree.
//!
//! On the wire: int64 `[4]` = protocol, policy version, element type (libtorch's number), number
//! of blocks; then per block its parameters end to end, without padding.

use plumb_collective::Collective;
use plumb_model::BlockSpec;
use tch::{Device, Kind, Tensor};

use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

const PROTOCOL: i64 = 1;

/// What was sent of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// `block-0000` and so on.
    pub name: String,
    /// Bytes sent.
    pub bytes: u64,
    /// BLAKE3 of the bytes, hex.
    pub digest: String,
}

/// A version as it arrived.
#[derive(Debug)]
pub struct Received {
    /// The sender's version.
    pub policy_version: u64,
    /// Every block's parameters end to end, in the order of the blocks' specs; what
    /// [`plumb_model::Weights::from_flats`] takes.
    pub flats: Vec<Tensor>,
    /// Digests of what arrived.
    pub buckets: Vec<Bucket>,
}

impl ShardedModel {
    /// Sends the weights in the compute type, adapters merged. Every policy rank calls this; rank 0 gets the
    /// buckets, the others an empty list.
    ///
    /// # Errors
    /// A rank 0 that is not rank 0 of `receivers`, a failed collective in either group.
    pub fn publish(
        &mut self,
        receivers: &dyn Collective,
        policy_version: u64,
    ) -> Result<Vec<Bucket>> {
        let _guard = tch::no_grad_guard();
        let is_root = self.rank() == 0;
        if is_root != (receivers.rank() == 0) {
            return Err(EngineError::Unsuited(format!(
                "rank {} of group {} is rank {} of group {}; rank 0 of both must be one process",
                self.rank(),
                self.comm.group(),
                receivers.rank(),
                receivers.group()
            )));
        }
        let kind = self.settings.compute.kind();
        let count = self.specs.len();
        let mut header = header(policy_version, kind, count).to_device(self.settings.device);
        receivers.broadcast(&mut header, 0)?.wait()?;
        let mut buckets = Vec::new();
        for block in 0..count {
            let next = (block + 1 < count).then_some(block + 1);
            let (_, adapter) = self.acquire_layer(block, next)?;
            let flat_p = self.blocks[block].gather(self.comm.as_ref())?;
            let flat = flat_p.narrow(0, 0, self.blocks[block].layout.elements);
            if is_root {
                let mut sent = self.merged_flat(block, flat, &adapter)?;
                let pending = receivers.broadcast(&mut sent, 0)?;
                buckets.push(bucket(block, &sent)?);
                pending.wait()?;
            } else {
                receivers.broadcast(&mut flat.empty_like(), 0)?.wait()?;
            }
            drop((flat_p, adapter));
            self.release(block)?;
        }
        Ok(buckets)
    }

    /// A block's parameters end to end with its adapter merged, in the compute type.
    fn merged_flat(&self, block: usize, flat: Tensor, adapter: &[Tensor]) -> Result<Tensor> {
        if adapter.is_empty() {
            return Ok(flat);
        }
        let params = self.merged(block, self.blocks[block].layout.views(&flat), adapter)?;
        let params: Vec<_> = params.iter().map(|p| p.reshape([-1]).to_kind(flat.kind())).collect();
        Ok(Tensor::cat(&params, 0))
    }
}

/// Takes part in a [`ShardedModel::publish`] as a receiver: rank 0 of `senders` is the sender.
/// The parameters come back in `kind`; digests are of the bytes as sent.
///
/// # Errors
/// Another version, protocol, element type or number of blocks than expected; a failed
/// collective.
pub fn receive(
    senders: &dyn Collective,
    blocks: &[BlockSpec],
    expected_version: u64,
    kind: Kind,
    device: Device,
) -> Result<Received> {
    let _guard = tch::no_grad_guard();
    let mut header = Tensor::zeros([4], (Kind::Int64, device));
    senders.broadcast(&mut header, 0)?.wait()?;
    let sent = sent_kind(&header, expected_version, blocks.len())?;
    let mut received =
        Received { policy_version: expected_version, flats: Vec::new(), buckets: Vec::new() };
    for (index, spec) in blocks.iter().enumerate() {
        let mut flat = Tensor::empty([spec.numel()], (sent, device));
        senders.broadcast(&mut flat, 0)?.wait()?;
        received.buckets.push(bucket(index, &flat)?);
        received.flats.push(flat.to_kind(kind));
    }
    Ok(received)
}

fn header(policy_version: u64, kind: Kind, blocks: usize) -> Tensor {
    Tensor::from_slice(&[PROTOCOL, policy_version as i64, element_type(kind), blocks as i64])
}

/// libtorch's number of an element type that weights may have.
fn element_type(kind: Kind) -> i64 {
    match kind {
        Kind::BFloat16 => 15,
        _ => 6,
    }
}

fn sent_kind(header: &Tensor, expected_version: u64, blocks: usize) -> Result<Kind> {
    let header: Vec<i64> = Vec::try_from(header.to_device(Device::Cpu))?;
    let refuse = |what: &str, got: i64, expected: String| {
        let message = format!("weights arrived with {what} {got}, expected {expected}");
        Err(EngineError::Unsuited(message))
    };
    if header[0] != PROTOCOL {
        return refuse("protocol", header[0], PROTOCOL.to_string());
    }
    if header[1] != expected_version as i64 {
        return refuse("policy version", header[1], expected_version.to_string());
    }
    if header[3] != blocks as i64 {
        return refuse("number of blocks", header[3], blocks.to_string());
    }
    match header[2] {
        6 => Ok(Kind::Float),
        15 => Ok(Kind::BFloat16),
        other => refuse("element type", other, "6 (fp32) or 15 (bf16)".to_owned()),
    }
}

fn bucket(index: usize, flat: &Tensor) -> Result<Bucket> {
    let flat = flat.to_device(Device::Cpu);
    let digest = plumb_torch::with_bytes(&flat, blake3::hash)?;
    let bytes = (flat.numel() * flat.kind().elt_size_in_bytes()) as u64;
    Ok(Bucket { name: format!("block-{index:04}"), bytes, digest: digest.to_hex().to_string() })
}

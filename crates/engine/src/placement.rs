//! Which memory the parts of a block live in.
//!
//! Offloading follows DeepSpeed and FSDP: with `optimizer` the fp32 masters, the moments and the
//! moving average of what is trained live in host memory, gradients go there once they are
//! reduced, and the step runs on the host; the device keeps each rank's shard in compute type.
//! With `parameters` that shard lives in host memory, too, and a block's is copied to the device
//! when the block is gathered.
//!
//! OFF-1: no number changes, but for the order in which gradients of several micro-batches are
//! added at world size 1. Where host and device are one (the CPU, in tests), the same copies are
//! made.

use plumb_torch::allocator::mapped_zeros;
use tch::{Device, Kind, Tensor};

use crate::{EngineError, Result};

/// What lives in host memory instead of the device's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Masters, moments and average of what is trained.
    pub optimizer: bool,
    /// The shards in compute type, those of frozen models included.
    pub parameters: bool,
}

impl Offload {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`EngineError::Setting`]: the parameters alone, whose masters the step would need.
    pub fn validate(self) -> Result<()> {
        match self.parameters && !self.optimizer {
            false => Ok(()),
            true => Err(EngineError::Setting {
                key: "offload.parameters",
                value: "true".to_owned(),
                expected: "offload.optimizer = true beside it",
            }),
        }
    }
}

/// Where the parts of one block live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Where blocks are gathered and gradients computed.
    pub device: Device,
    /// Whether the master lives in host memory.
    pub master_on_host: bool,
    /// Whether the shard in compute type does.
    pub shard_on_host: bool,
}

impl Placement {
    /// Of a block of a model with these settings.
    #[must_use]
    pub fn new(device: Device, offload: Offload, trainable: bool) -> Self {
        let master_on_host = offload.parameters || (offload.optimizer && trainable);
        Self { device, master_on_host, shard_on_host: offload.parameters }
    }

    /// A zero master `[elements]`.
    pub(crate) fn master(self, elements: i64, kind: Kind) -> Tensor {
        match self.master_on_host {
            true => self.host_zeros(elements, kind),
            false => mapped_zeros(elements, kind, self.device),
        }
    }

    /// A copy of a master in compute type, where the shard lives.
    pub(crate) fn shard_of(self, master_s: &Tensor, compute: Kind) -> Tensor {
        let elements = master_s.size()[0];
        let mut shard_s = match self.shard_on_host {
            true => self.host_zeros(elements, compute),
            false => mapped_zeros(elements, compute, self.device),
        };
        shard_s.copy_(master_s);
        shard_s
    }

    /// Whether the master itself is the shard in compute type.
    pub(crate) fn master_is_shard(self, same_kind: bool) -> bool {
        same_kind && self.master_on_host == self.shard_on_host
    }

    /// A copy on the device of a shard in host memory.
    pub(crate) fn on_device(self, shard_s: &Tensor) -> Tensor {
        let mut copy_s = Tensor::empty([shard_s.size()[0]], (shard_s.kind(), self.device));
        copy_s.copy_(shard_s);
        copy_s
    }

    /// Zeros in host memory, pinned where a CUDA device copies from it.
    fn host_zeros(self, elements: i64, kind: Kind) -> Tensor {
        let zeros = mapped_zeros(elements, kind, Device::Cpu);
        match self.device {
            Device::Cuda(_) => zeros.pin_memory(self.device),
            _ => zeros,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_frozen_is_offloaded_with_the_parameters_only() {
        let optimizer = Offload { optimizer: true, parameters: false };
        let both = Offload { optimizer: true, parameters: true };
        let of = |offload, trainable| {
            let placement = Placement::new(Device::Cpu, offload, trainable);
            (placement.master_on_host, placement.shard_on_host)
        };
        assert_eq!(of(Offload::default(), true), (false, false));
        assert_eq!((of(optimizer, true), of(optimizer, false)), ((true, false), (false, false)));
        assert_eq!((of(both, true), of(both, false)), ((true, true), (true, true)));
        let alone = Offload { optimizer: false, parameters: true };
        assert!(alone.validate().unwrap_err().to_string().contains("offload.optimizer"));
        assert!(both.validate().is_ok());
    }
}

//! What the device thread owns: the collectives, the model, its version.

use std::collections::BTreeMap;
use std::path::Path;

use plumb_collective::Collective;
use plumb_engine::{EngineError, LoadPlan, ShardedModel};
use tch::Device;
use tonic::Status;

/// State of the device thread.
pub(crate) struct ActorRole {
    device: Device,
    groups: BTreeMap<String, Box<dyn Collective>>,
    model: Option<ShardedModel>,
    policy_version: u64,
}

impl ActorRole {
    /// Nothing loaded, no groups.
    pub(crate) fn new(device: Device) -> Self {
        Self { device, groups: BTreeMap::new(), model: None, policy_version: 0 }
    }

    /// Where this role's tensors live.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Keeps a group that was joined, replacing an older one of that name.
    pub(crate) fn join(&mut self, collective: Box<dyn Collective>) {
        self.groups.insert(collective.group().to_owned(), collective);
    }

    /// Loads a model, cut over `group` (empty: not cut).
    #[allow(clippy::result_large_err)]
    pub(crate) fn load(
        &mut self,
        folder: &Path,
        plan: LoadPlan,
        group: &str,
        policy_version: u64,
    ) -> Result<(u64, u64), Status> {
        let collective = self.sharding_group(group)?;
        // The old model's memory is free before the new one needs it.
        self.model = None;
        let model = ShardedModel::load(folder, plan, collective).map_err(status)?;
        let sizes = (model.parameters(), model.shard_bytes());
        self.model = Some(model);
        self.policy_version = policy_version;
        Ok(sizes)
    }

    #[allow(clippy::result_large_err)]
    fn sharding_group(&mut self, group: &str) -> Result<Box<dyn Collective>, Status> {
        if group.is_empty() {
            return Ok(Box::new(plumb_collective::solo()));
        }
        if let Some(collective) = self.groups.remove(group) {
            return Ok(collective);
        }
        match self.model.take() {
            Some(model) if model.collective().group() == group => Ok(model.into_collective()),
            other => {
                self.model = other;
                Err(self.no_group(group))
            }
        }
    }

    fn no_group(&self, group: &str) -> Status {
        let known: Vec<_> = self.groups.keys().collect();
        Status::failed_precondition(format!(
            "this worker is not in group {group:?}; it has joined {known:?}"
        ))
    }

    /// The model, or a refusal.
    #[allow(clippy::result_large_err)]
    pub(crate) fn model(&mut self) -> Result<&mut ShardedModel, Status> {
        self.model.as_mut().ok_or_else(|| Status::failed_precondition("no model is loaded"))
    }

    /// The model and a group to publish to.
    #[allow(clippy::result_large_err)]
    pub(crate) fn model_and_group(
        &mut self,
        group: &str,
    ) -> Result<(&mut ShardedModel, &dyn Collective), Status> {
        let missing = self.no_group(group);
        let collective = self.groups.get(group).ok_or(missing)?;
        let model = self.model.as_mut();
        let model = model.ok_or_else(|| Status::failed_precondition("no model is loaded"))?;
        Ok((model, collective.as_ref()))
    }

    /// The version of the weights held.
    pub(crate) fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// Refuses an update that does not follow the current version.
    #[allow(clippy::result_large_err)]
    pub(crate) fn check_next(&self, policy_version: u64) -> Result<(), Status> {
        if policy_version == self.policy_version + 1 {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "an update to policy version {policy_version} cannot follow version {}; restore the \
             last checkpoint first",
            self.policy_version
        )))
    }

    /// The weights are now this version.
    pub(crate) fn set_policy_version(&mut self, policy_version: u64) {
        self.policy_version = policy_version;
    }
}

/// An engine failure as the caller sees it.
pub(crate) fn status(error: EngineError) -> Status {
    let message = plumb_runtime::chain(&error);
    match &error {
        EngineError::Setting { .. }
        | EngineError::SequenceTooLong { .. }
        | EngineError::Sample { .. }
        | EngineError::Pattern { .. }
        | EngineError::Unsuited(_)
        | EngineError::Model(_)
        | EngineError::Loss(_) => Status::invalid_argument(message),
        EngineError::NonFinite { .. } | EngineError::SkippedTooOften { .. } => {
            Status::failed_precondition(message)
        }
        EngineError::Checkpoint { .. } | EngineError::NoCheckpoint { .. } => {
            Status::data_loss(message)
        }
        EngineError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Status::resource_exhausted(message)
        }
        EngineError::Collective(_) | EngineError::OtherRank { .. } => Status::aborted(message),
        EngineError::File { .. } | EngineError::Torch(_) | EngineError::Tensor(_) => {
            Status::internal(message)
        }
    }
}

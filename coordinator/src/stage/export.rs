//! `export`: the policy as a Hugging Face folder.

use std::path::Path;

use plumb_config::ExportStage;
use plumb_domain::Role;

use super::{Figures, Outputs, StageContext};
use crate::fleet::policy::PolicyFleet;
use crate::job::error::JobError;
use crate::ports::PhaseError;

pub(super) async fn run(
    stage: &ExportStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let policy = outputs.policy.take().ok_or_else(|| JobError::Stage {
        stage: stage.name.clone(),
        problem: "no stage has trained a policy".to_owned(),
    })?;
    let folder = context.folder.path("export");
    let bytes = match write(stage, &policy, &folder).await {
        Err(PhaseError::Lost { worker, cause, .. }) => {
            // The last step is always committed, so nothing is lost with a rank.
            let text = format!("{worker} lost ({cause}); exporting from the last commit");
            context.events.notice("warn", text);
            context.log.restarted();
            policy.group().wait_ready().await?;
            policy.load(true).await?;
            write(stage, &policy, &folder).await?
        }
        other => other?,
    };
    if stage.adapter {
        policy.export_adapter(&context.folder.path("adapter"), stage.dtype.as_str()).await?;
        outputs.artefacts.insert("adapter".to_owned(), "adapter".to_owned());
    }
    // What follows needs none of them.
    for role in [Role::Policy, Role::Critic, Role::CostCritic] {
        context.fleet.release(role).await;
    }
    context.fleet.release(Role::Reference).await;
    outputs.artefacts.insert("export".to_owned(), "export".to_owned());
    Ok([("bytes".to_owned(), bytes as f64)].into())
}

/// The weights that the stage asks for.
async fn write(
    stage: &ExportStage,
    policy: &PolicyFleet,
    folder: &Path,
) -> Result<u64, PhaseError> {
    if stage.average {
        policy.adopt_average().await?;
    }
    policy.export(folder, stage.dtype.as_str()).await
}

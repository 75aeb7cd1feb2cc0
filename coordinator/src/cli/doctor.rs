//! `plumb doctor`.

use anyhow::{Context as _, bail};

use super::Ended;
use super::args::DoctorArgs;
use crate::doctor::{self, Finding, Health, Scope};

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Ended> {
    let own = std::env::current_exe().context("find this program's own path")?;
    let binaries = own.parent().context("this program lies in no folder")?.to_owned();
    let scope = Scope { run_dir: args.run_dir.clone(), listen: args.listen, binaries };
    let findings = doctor::examine(&scope);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{}", table(&findings));
    }
    let failed = findings.iter().filter(|finding| finding.health == Health::Fail).count();
    if doctor::worst(&findings) == Health::Fail {
        bail!("{failed} of {} checks failed", findings.len());
    }
    Ok(Ended::Well)
}

/// A line per finding; what to do stands below it.
fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, health, found, fix } in findings {
        text += &format!("{:<5} {check:<width$}  {found}\n", health.as_str());
        if !fix.is_empty() {
            text += &format!("{:<5} {:<width$}  -> {fix}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_is_wrong() {
        let finding = |check, health, fix: &str| Finding {
            check,
            health,
            found: "x".to_owned(),
            fix: fix.to_owned(),
        };
        let text = table(&[
            finding("cpus", Health::Ok, ""),
            finding("disk room", Health::Fail, "make room"),
        ]);
        assert_eq!(text, "ok    cpus       x\nFAIL  disk room  x\n                 -> make room\n");
    }
}

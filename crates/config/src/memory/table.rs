//! The memory of a run as text.

use std::fmt::Write as _;

use super::{Layout, Machine, RoleMemory};

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 20)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// Every role of every stage with its phases and their terms, in MiB, and what each stage needs of
/// the machine.
#[must_use]
pub fn table(layout: &Layout, machine: &Machine) -> String {
    let mut out = String::new();
    for stage in &layout.stages {
        let of = |gpu, there: u64| {
            let needed = stage.needed(gpu);
            (needed > 0).then(|| format!("{:.2} of {:.2} GiB", gib(needed), gib(there)))
        };
        let memory = of(false, machine.memory_bytes);
        let gpu = machine.gpu_bytes.iter().min().and_then(|&bytes| of(true, bytes));
        let gpu = gpu.map(|text| format!("{text} of a GPU"));
        let needs: Vec<_> = memory.into_iter().chain(gpu).collect();
        let _ = writeln!(out, "memory        stage {}: {}", stage.stage, needs.join(", "));
        for role in &stage.roles {
            write_role(&mut out, role);
        }
        for role in &stage.waiting {
            let _ = writeln!(
                out,
                "  {:<12}{} x {:.0} MiB, waiting",
                role.role,
                role.ranks,
                mib(role.idle_bytes)
            );
        }
    }
    out
}

fn write_role(out: &mut String, role: &RoleMemory) {
    let worst = role.worst().map_or("load", |phase| phase.phase);
    let _ = writeln!(
        out,
        "  {:<12}{} x {:.0} MiB at most, in {worst}",
        role.role,
        role.ranks,
        mib(role.peak_bytes())
    );
    for phase in &role.phases {
        let terms = phase.terms.iter().map(|term| format!("{} {:.0}", term.what, mib(term.bytes)));
        let terms: Vec<_> = terms.collect();
        let _ = writeln!(
            out,
            "    {:<10}{:>8.0}  {}",
            phase.phase,
            mib(phase.bytes()),
            terms.join(" + ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PhaseMemory, layout::StageLayout};
    use super::*;

    #[test]
    fn a_table_adds_up() {
        let phases = vec![
            PhaseMemory::new("load", &[("masters", 3 << 20)]),
            PhaseMemory::new("backward", &[("masters", 3 << 20), ("gradients", 2 << 20)]),
        ];
        let role = RoleMemory {
            role: "policy",
            group: "policy",
            ranks: 2,
            gpus: 0.0,
            phases,
            idle_bytes: 3 << 20,
            host_bytes: 0,
        };
        let waiting = vec![RoleMemory { role: "rollout", ..role.clone() }];
        let stages = vec![StageLayout { stage: "rl".into(), roles: vec![role], waiting }];
        let machine = Machine { memory_bytes: 1 << 30, gpu_bytes: vec![] };
        let text = table(&Layout { stages }, &machine);
        let lines: Vec<_> = text.lines().collect();
        // 2 x 5 of the one role, 2 x 3 of the other.
        assert_eq!(lines[0], "memory        stage rl: 0.02 of 1.00 GiB");
        assert_eq!(lines[1], "  policy      2 x 5 MiB at most, in backward");
        assert_eq!(lines[3], "    backward         5  masters 3 + gradients 2");
        assert_eq!(lines[4], "  rollout     2 x 3 MiB, waiting");
    }
}

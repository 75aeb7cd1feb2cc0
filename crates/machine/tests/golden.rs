//! Golden transitions: `testdata/*.txt` hold events, each followed by the effects it must have.
//!
//! A line `@<millis> <event>` is fed to the machine; the indented lines below it are its effects
//! in order, or `refused: <text>`. Lines with `#` are for the reader.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;

use plumb_domain::{AgentId, Epoch, Role, WorkerId};
use plumb_machine::{
    Bundle, Effect, Event, GroupSpec, Machine, NodeResources, RestartPolicy, RestartScope,
    Settings, Strategy, Time,
};

#[test]
fn single_worker_restart() {
    check(include_str!("testdata/worker_restart.txt"));
}

#[test]
fn whole_group_restart() {
    check(include_str!("testdata/group_restart.txt"));
}

#[test]
fn leases_and_stalls() {
    check(include_str!("testdata/leases.txt"));
}

#[test]
fn nodes_come_and_go() {
    check(include_str!("testdata/nodes.txt"));
}

fn check(script: &str) {
    let mut machine = Machine::new(Settings { lease_millis: 1_000 });
    let mut lines = script.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (now, event) = parse(line).unwrap_or_else(|| panic!("line {}: {line}", number + 1));
        let expected: Vec<&str> = std::iter::from_fn(|| lines.next_if(|(_, l)| l.starts_with(' ')))
            .map(|(_, l)| l.trim())
            .collect();
        let actual = match machine.handle(now, event) {
            Ok(effects) => effects.iter().map(print).collect(),
            Err(refusal) => vec![format!("refused: {refusal}")],
        };
        assert_eq!(actual, expected, "after line {}: {line}", number + 1);
    }
}

fn parse(line: &str) -> Option<(Time, Event)> {
    let mut words = line.strip_prefix('@')?.split_whitespace();
    let now = Time(words.next()?.parse().ok()?);
    let verb = words.next()?;
    let name = words.next().unwrap_or_default().to_owned();
    let options: BTreeMap<&str, &str> = words.clone().filter_map(|w| w.split_once('=')).collect();
    let number = |key: &str, default: u64| options.get(key).map_or(default, |v| v.parse().unwrap());
    let worker = || WorkerId::new(name.clone()).unwrap();
    let agent = || AgentId::new(name.clone()).unwrap();
    let epoch = Epoch(number("epoch", 0));
    let event = match verb {
        "tick" => Event::Tick,
        "stalled" => Event::Stalled { millis: name.parse().ok()? },
        "agent" => {
            let cpus_milli = number("cpus", 1) * 1_000;
            let resources = NodeResources { cpus_milli, memory_bytes: 1 << 30, gpus: Vec::new() };
            Event::AgentRegistered { agent: agent(), resources }
        }
        "agent-beat" => Event::AgentHeartbeat { agent: agent() },
        "agent-left" => Event::AgentLeft { agent: agent() },
        "place" => Event::PlaceGroup { spec: spec(&name, &options, &number) },
        "release" => Event::ReleaseGroup { group: name },
        "restart" => Event::RestartGroup { group: name, reason: "asked for".to_owned() },
        "register" => {
            let address = format!("host:{name}:{epoch}");
            Event::WorkerRegistered { worker: worker(), epoch, address }
        }
        "beat" => Event::WorkerHeartbeat { worker: worker(), epoch, phase: "update".to_owned() },
        "exit" => Event::WorkerExited { worker: worker(), epoch, reason: "signal 9".to_owned() },
        _ => return None,
    };
    Some((now, event))
}

fn spec(
    name: &str,
    options: &BTreeMap<&str, &str>,
    number: &impl Fn(&str, u64) -> u64,
) -> GroupSpec {
    let group = options.get("scope") == Some(&"group");
    GroupSpec {
        name: name.to_owned(),
        role: if group { Role::Policy } else { Role::Rollout },
        world_size: u32::try_from(number("ranks", 1)).unwrap(),
        bundle: Bundle { cpus_milli: 1_000, memory_bytes: 0, gpus_milli: 0 },
        threads: 1,
        strategy: match options.get("strategy") {
            Some(&"strict_spread") => Strategy::StrictSpread,
            Some(&"spread") => Strategy::Spread,
            _ => Strategy::Pack,
        },
        restart: RestartPolicy {
            max_restarts: u32::try_from(number("restarts", 0)).unwrap(),
            back_off_millis: 100,
            max_back_off_millis: 400,
            scope: if group { RestartScope::Group } else { RestartScope::Worker },
        },
        start_timeout_millis: 2_000,
    }
}

fn print(effect: &Effect) -> String {
    match effect {
        Effect::StartWorker { agent, worker, epoch, .. } => {
            format!("start {worker} epoch={epoch} on {agent}")
        }
        Effect::StopWorker { agent, worker, epoch, orderly } => {
            let how = if *orderly { "stop" } else { "kill" };
            format!("{how} {worker} epoch={epoch} on {agent}")
        }
        Effect::WorkerReady { worker, epoch, .. } => format!("ready {worker} epoch={epoch}"),
        Effect::GroupReady { group } => format!("ready group {group}"),
        Effect::WorkerLost { worker, epoch, phase, cause, .. } => {
            format!("lost {worker} epoch={epoch} in {phase}: {cause}")
        }
        Effect::WorkerRestarting { worker, epoch, restarts, after_millis, .. } => {
            format!("restarting {worker} epoch={epoch} restart={restarts} after={after_millis}")
        }
        Effect::GroupFailed { group, cause } => format!("failed group {group}: {cause}"),
        Effect::AgentLost { agent, cause } => format!("lost node {agent}: {cause}"),
    }
}

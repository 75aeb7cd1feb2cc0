//! Which node gets which bundle.

use std::collections::BTreeMap;
use std::fmt;

use plumb_domain::AgentId;
use serde::{Deserialize, Serialize};

use crate::resources::{Assignment, Bundle, Free, Milli};

/// How the bundles of a group lie on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// On as few nodes as will hold them.
    Pack,
    /// On as many nodes as there are.
    Spread,
    /// All on one node, or not at all.
    StrictPack,
    /// No two on one node, or not at all.
    StrictSpread,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pack => "PACK",
            Self::Spread => "SPREAD",
            Self::StrictPack => "STRICT_PACK",
            Self::StrictSpread => "STRICT_SPREAD",
        })
    }
}

/// A group that the nodes cannot hold, with the reason per node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "group {group:?} does not fit: rank {rank} of {world_size} ({strategy}) needs {}; {}",
    needs(bundle),
    nodes(why)
)]
pub struct PlacementError {
    /// Which group.
    pub group: String,
    /// The first rank that found no node.
    pub rank: u32,
    /// Ranks in all.
    pub world_size: u32,
    /// The strategy asked for.
    pub strategy: Strategy,
    /// What each rank needs.
    pub bundle: Bundle,
    /// Per node, what is missing there.
    pub why: Vec<(AgentId, String)>,
}

fn needs(bundle: &Bundle) -> String {
    let mut parts = vec![format!("{} CPUs", Milli(bundle.cpus_milli))];
    if bundle.gpus_milli > 0 {
        parts.push(format!("{} GPUs", Milli(bundle.gpus_milli)));
    }
    if bundle.memory_bytes > 0 {
        parts.push(format!("{} bytes of memory", bundle.memory_bytes));
    }
    parts.join(", ")
}

fn nodes(why: &[(AgentId, String)]) -> String {
    if why.is_empty() {
        return "no node has joined".to_owned();
    }
    why.iter().map(|(agent, what)| format!("{agent}: {what}")).collect::<Vec<_>>().join("; ")
}

pub(crate) struct Request<'a> {
    pub(crate) group: &'a str,
    pub(crate) strategy: Strategy,
    pub(crate) bundle: &'a Bundle,
    /// The ranks to place: all at first, the lost ones at a restart.
    pub(crate) ranks: &'a [u32],
    pub(crate) world_size: u32,
    /// Where the other ranks are.
    pub(crate) placed: &'a BTreeMap<u32, AgentId>,
}

type Placed = BTreeMap<u32, (AgentId, Assignment)>;

/// Finds nodes for the ranks. The bundles of a group are alike, so first fit in the strategy's
/// order finds a placement whenever there is one.
pub(crate) fn place(
    request: &Request<'_>,
    free: &BTreeMap<AgentId, Free>,
) -> Result<Placed, PlacementError> {
    if request.strategy == Strategy::StrictPack {
        return place_on_one_node(request, free);
    }
    let mut free = free.clone();
    let mut counts: BTreeMap<AgentId, u32> = free.keys().map(|a| (a.clone(), 0)).collect();
    for agent in request.placed.values() {
        *counts.entry(agent.clone()).or_default() += 1;
    }
    let mut result = Placed::new();
    for &rank in request.ranks {
        let mut order: Vec<(AgentId, u32)> =
            free.keys().map(|a| (a.clone(), counts.get(a).copied().unwrap_or(0))).collect();
        match request.strategy {
            Strategy::Pack | Strategy::StrictPack => {
                order.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            }
            Strategy::Spread | Strategy::StrictSpread => order.sort_by_key(|(_, count)| *count),
        }
        let (agent, assignment) = first_fit(request, rank, &order, &mut free)?;
        *counts.entry(agent.clone()).or_default() += 1;
        result.insert(rank, (agent, assignment));
    }
    Ok(result)
}

fn first_fit(
    request: &Request<'_>,
    rank: u32,
    order: &[(AgentId, u32)],
    free: &mut BTreeMap<AgentId, Free>,
) -> Result<(AgentId, Assignment), PlacementError> {
    let mut why = Vec::new();
    for (agent, count) in order {
        if request.strategy == Strategy::StrictSpread && *count > 0 {
            why.push((agent.clone(), "holds a rank of this group already".to_owned()));
            continue;
        }
        let Some(node) = free.get_mut(agent) else { continue };
        match node.take(request.bundle) {
            Ok(assignment) => return Ok((agent.clone(), assignment)),
            Err(what) => why.push((agent.clone(), what)),
        }
    }
    Err(error(request, rank, why))
}

fn place_on_one_node(
    request: &Request<'_>,
    free: &BTreeMap<AgentId, Free>,
) -> Result<Placed, PlacementError> {
    let held = request.placed.values().next();
    let mut why = Vec::new();
    let mut first_missing = request.ranks.first().copied().unwrap_or(0);
    for (agent, node) in free.iter().filter(|(a, _)| held.is_none_or(|h| h == *a)) {
        let mut node = node.clone();
        let mut result = Placed::new();
        for &rank in request.ranks {
            match node.take(request.bundle) {
                Ok(assignment) => {
                    result.insert(rank, (agent.clone(), assignment));
                }
                Err(what) => {
                    first_missing = first_missing.max(rank);
                    why.push((agent.clone(), what));
                    break;
                }
            }
        }
        if result.len() == request.ranks.len() {
            return Ok(result);
        }
    }
    Err(error(request, first_missing, why))
}

fn error(request: &Request<'_>, rank: u32, why: Vec<(AgentId, String)>) -> PlacementError {
    PlacementError {
        group: request.group.to_owned(),
        rank,
        world_size: request.world_size,
        strategy: request.strategy,
        bundle: *request.bundle,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::NodeResources;

    fn nodes(cpus_milli: &[u64]) -> BTreeMap<AgentId, Free> {
        let node = |(i, cpus): (usize, &u64)| {
            let resources =
                NodeResources { cpus_milli: *cpus, memory_bytes: 1 << 30, gpus: Vec::new() };
            (AgentId::new(format!("n{i}")).unwrap(), Free::all_of(&resources))
        };
        cpus_milli.iter().enumerate().map(node).collect()
    }

    /// Node index of each rank.
    fn run(strategy: Strategy, ranks: u32, cpus: &[u64]) -> Result<Vec<String>, String> {
        let bundle = Bundle { cpus_milli: 1_000, memory_bytes: 0, gpus_milli: 0 };
        let request = Request {
            group: "policy",
            strategy,
            bundle: &bundle,
            ranks: &(0..ranks).collect::<Vec<_>>(),
            world_size: ranks,
            placed: &BTreeMap::new(),
        };
        place(&request, &nodes(cpus))
            .map(|p| p.values().map(|(agent, _)| agent.to_string()).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn pack_fills_a_node_before_it_opens_the_next() {
        assert_eq!(run(Strategy::Pack, 3, &[2_000, 2_000]).unwrap(), ["n0", "n0", "n1"]);
    }

    #[test]
    fn spread_goes_round_and_doubles_up_where_it_must() {
        assert_eq!(run(Strategy::Spread, 3, &[2_000, 2_000]).unwrap(), ["n0", "n1", "n0"]);
    }

    #[test]
    fn pl_2_strict_pack_finds_the_one_node_that_holds_all() {
        assert_eq!(run(Strategy::StrictPack, 2, &[1_000, 2_000]).unwrap(), ["n1", "n1"]);
        assert_eq!(
            run(Strategy::StrictPack, 3, &[1_000, 2_000]).unwrap_err(),
            "group \"policy\" does not fit: rank 2 of 3 (STRICT_PACK) needs 1 CPUs; \
             n0: 0 CPUs free, 1 needed; n1: 0 CPUs free, 1 needed"
        );
    }

    #[test]
    fn pl_2_strict_spread_needs_a_node_per_bundle() {
        assert_eq!(run(Strategy::StrictSpread, 2, &[2_000, 2_000]).unwrap(), ["n0", "n1"]);
        assert_eq!(
            run(Strategy::StrictSpread, 2, &[4_000]).unwrap_err(),
            "group \"policy\" does not fit: rank 1 of 2 (STRICT_SPREAD) needs 1 CPUs; \
             n0: holds a rank of this group already"
        );
    }

    #[test]
    fn without_nodes_the_error_says_so() {
        assert_eq!(
            run(Strategy::Pack, 1, &[]).unwrap_err(),
            "group \"policy\" does not fit: rank 0 of 1 (PACK) needs 1 CPUs; no node has joined"
        );
    }
}

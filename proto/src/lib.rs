//! The wire contract: `plumbline/<service>/v1/*.proto`, the code generated from it, and the
//! conversions to [`plumb_domain`] types, which validate what a peer sent.

/// Generated code, one module per protobuf package.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated {
    macro_rules! package {
        ($name:ident) => {
            pub mod $name {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/plumbline.", stringify!($name), ".v1.rs"));
                }
            }
        };
    }
    package!(actor);
    package!(agent);
    package!(cluster);
    package!(job);
    package!(object);
    package!(reward);
    package!(rollout);
    package!(worker);
}

mod sampling;

pub use generated::{
    actor::v1 as actor, agent::v1 as agent, cluster::v1 as cluster, job::v1 as job,
    object::v1 as object, reward::v1 as reward, rollout::v1 as rollout, worker::v1 as worker,
};

/// Encoding and decoding of every generated message.
pub use prost::Message;

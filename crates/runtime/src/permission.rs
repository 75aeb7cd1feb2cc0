//! The one permission table: which kind of peer may make which call.
//!
//! - **PE-1**: a call that the table does not list is refused.
//! - **PE-2**: a peer without a certificate of this run's CA may call `Join` and nothing else.
//! - **PE-3**: a handler sees the peer's identity from its certificate, never from its message.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower::{Layer, Service};

use crate::credentials::identity_of;
use crate::identity::{Identity, PeerKind};

use PeerKind::{Admin, Agent, Coordinator, Worker};

/// Who may call what. `*` stands for every method of a service; the first match decides.
const TABLE: &[(&str, &str, &[PeerKind])] = &[
    ("plumbline.cluster.v1.ClusterService", "RegisterAgent", &[Agent]),
    ("plumbline.cluster.v1.ClusterService", "LeaveAgent", &[Agent]),
    ("plumbline.cluster.v1.ClusterService", "ReportExit", &[Agent]),
    ("plumbline.cluster.v1.ClusterService", "RegisterWorker", &[Worker]),
    ("plumbline.cluster.v1.ClusterService", "Heartbeat", &[Agent, Worker]),
    ("plumbline.cluster.v1.ClusterService", "StoreSet", &[Worker]),
    ("plumbline.cluster.v1.ClusterService", "StoreGet", &[Worker]),
    ("plumbline.cluster.v1.ClusterService", "StoreAdd", &[Worker]),
    ("plumbline.cluster.v1.ClusterService", "StoreDelete", &[Worker]),
    ("plumbline.cluster.v1.ClusterService", "IssueToken", &[Admin]),
    ("plumbline.agent.v1.AgentService", "*", &[Coordinator]),
    ("plumbline.worker.v1.WorkerService", "*", &[Coordinator]),
    ("plumbline.object.v1.ObjectService", "Fetch", &[Coordinator, Worker]),
    ("plumbline.object.v1.ObjectService", "Release", &[Coordinator]),
    ("plumbline.actor.v1.ActorService", "*", &[Coordinator]),
    ("plumbline.rollout.v1.RolloutService", "*", &[Coordinator]),
    ("plumbline.reward.v1.RewardService", "*", &[Coordinator]),
    ("plumbline.job.v1.JobService", "*", &[Admin]),
];

const JOIN: &str = "/plumbline.cluster.v1.ClusterService/Join";

/// Decides one call.
///
/// # Errors
/// `UNAUTHENTICATED` without a certificate, `PERMISSION_DENIED` naming the peer, the call and
/// who may make it.
pub fn check(path: &str, peer: Option<&Identity>) -> Result<(), Status> {
    if path == JOIN {
        return Ok(());
    }
    let Some(peer) = peer else {
        return Err(Status::unauthenticated(format!(
            "PE-2: {path} needs a client certificate of this run; join with a token first"
        )));
    };
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let row = TABLE.iter().find(|(s, m, _)| *s == service && (*m == "*" || *m == method));
    let Some((_, _, allowed)) = row else {
        return Err(Status::permission_denied(format!("PE-1: nobody may call {path}")));
    };
    if allowed.contains(&peer.kind()) {
        return Ok(());
    }
    let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    Err(Status::permission_denied(format!(
        "{peer} may not call {path}; it is for: {}",
        allowed.join(", ")
    )))
}

/// The caller of a request that passed [`PermissionLayer`].
///
/// # Errors
/// `UNAUTHENTICATED` when the request came without a certificate.
pub fn peer<T>(request: &tonic::Request<T>) -> Result<&Identity, Status> {
    request
        .extensions()
        .get::<Identity>()
        .ok_or_else(|| Status::unauthenticated("the call came without a client certificate"))
}

/// Puts the table in front of every service of a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct PermissionLayer;

impl<S> Layer<S> for PermissionLayer {
    type Service = Permission<S>;
    fn layer(&self, inner: S) -> Permission<S> {
        Permission { inner }
    }
}

/// See [`PermissionLayer`].
#[derive(Debug, Clone)]
pub struct Permission<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Permission<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let identity = match identity_of_request(&request) {
            Ok(identity) => identity,
            Err(status) => return Either::Left(ready(Ok(status.into_http()))),
        };
        if let Err(status) = check(request.uri().path(), identity.as_ref()) {
            tracing::warn!(path = request.uri().path(), reason = status.message(), "call refused");
            return Either::Left(ready(Ok(status.into_http())));
        }
        if let Some(identity) = identity {
            request.extensions_mut().insert(identity);
        }
        Either::Right(self.inner.call(request))
    }
}

fn identity_of_request(request: &Request<Body>) -> Result<Option<Identity>, Status> {
    let certificates = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()
        .and_then(TlsConnectInfo::peer_certs);
    match certificates.as_deref().and_then(|chain| chain.first()) {
        None => Ok(None),
        Some(leaf) => {
            identity_of(leaf).map(Some).map_err(|e| Status::unauthenticated(e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use plumb_domain::{AgentId, Epoch, Role, WorkerId};
    use tonic::Code;

    use super::*;

    fn worker() -> Identity {
        Identity::Worker {
            role: Role::Rollout,
            epoch: Epoch(1),
            id: WorkerId::new("rollout-0").unwrap(),
        }
    }

    #[test]
    fn pe_1_a_call_that_is_not_listed_is_refused() {
        let error = check("/plumbline.cluster.v1.ClusterService/Reboot", Some(&worker()));
        assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
        assert!(check("/grpc.reflection.v1.ServerReflection/Info", Some(&worker())).is_err());
        assert!(check("", Some(&worker())).is_err());
    }

    #[test]
    fn pe_2_without_a_certificate_only_join_passes() {
        assert!(check(JOIN, None).is_ok());
        for (service, method, _) in TABLE {
            let error = check(&format!("/{service}/{method}"), None).unwrap_err();
            assert_eq!(error.code(), Code::Unauthenticated, "{service}/{method}");
        }
    }

    #[test]
    fn the_wrong_role_is_told_who_may_call() {
        let error = check("/plumbline.job.v1.JobService/Submit", Some(&worker())).unwrap_err();
        assert_eq!(
            error.message(),
            "worker/rollout/1/rollout-0 may not call /plumbline.job.v1.JobService/Submit; it is for: admin"
        );
        let agent = Identity::Agent(AgentId::new("node-0").unwrap());
        assert!(check("/plumbline.cluster.v1.ClusterService/Heartbeat", Some(&agent)).is_ok());
        assert!(check("/plumbline.object.v1.ObjectService/Fetch", Some(&agent)).is_err());
        assert!(check("/plumbline.object.v1.ObjectService/Release", Some(&worker())).is_err());
        assert!(check("/plumbline.actor.v1.ActorService/Update", Some(&Identity::Admin)).is_err());
    }
}

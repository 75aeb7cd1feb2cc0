//! Collectives between processes over NCCL, for CUDA tensors.
//!
//! Operations run on a communication stream of their own: it waits for what the caller's stream
//! has queued so far, and at [`Pending::wait`] the caller's stream waits for it. NCCL itself has no
//! time limit, so the wait watches the operation's event, and aborts at the limit.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plumb_torch::device::{Event, Stream};
use plumb_torch::nccl::{Communicator, NcclError, UniqueId};
use plumb_torch::{Store, StoreError};
use tch::{Device, Kind, Tensor};

use crate::membership::Membership;
use crate::operands::{check_one, check_pair, check_root};
use crate::{AbortHandle, Collective, CollectiveError, Pending, ReduceOp};

const ID_KEY: &str = "nccl_id";

/// How often a waiting rank looks at its operation.
const POLL: Duration = Duration::from_micros(50);

/// One rank of an NCCL group.
pub struct Nccl {
    device_index: usize,
    stream: Stream,
    shared: Arc<Shared>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.shared.membership;
        write!(f, "Nccl({:?}, rank {} of {})", m.group, m.rank, m.world_size)
    }
}

struct Shared {
    membership: Membership,
    /// `None` once aborted.
    communicator: Mutex<Option<Communicator>>,
}

impl Shared {
    fn communicator(&self) -> MutexGuard<'_, Option<Communicator>> {
        self.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Aborting a communicator that is broken may fail in turn; it is gone either way.
    fn close(&self) {
        if let Some(communicator) = self.communicator().take() {
            let _ = communicator.abort();
        }
    }

    fn failure(&self, operation: &'static str, sequence: u64, cause: String) -> CollectiveError {
        self.membership.failure(operation, sequence, cause, || self.close())
    }

    /// Watches an operation until its event is passed.
    fn watch(&self, operation: &'static str, done: &Event) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match self.communicator().as_ref() {
                None => return Err("the group was aborted".to_owned()),
                Some(communicator) => {
                    communicator.check(operation).map_err(|error| error.to_string())?;
                }
            }
            if done.is_done().map_err(|error| error.to_string())? {
                return Ok(());
            }
            if start.elapsed() > self.membership.timeout {
                return Err("timed out".to_owned());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Nccl {
    /// Joins `group` with CUDA device `device_index`. All ranks call this with the same store,
    /// which belongs to this group and epoch alone; no two ranks share a device. `timeout` bounds
    /// the joining and each operation.
    ///
    /// # Errors
    /// [`CollectiveError::Join`] naming the ranks that did not come, [`CollectiveError::Backend`]
    /// also when NCCL or the device is missing.
    pub fn connect(
        store: Arc<dyn Store>,
        group: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
        device_index: usize,
    ) -> Result<Self, CollectiveError> {
        let membership = Membership::join(Arc::clone(&store), group, rank, world_size, timeout)?;
        let backend = |reason: String| membership.backend("nccl", reason);
        let id = exchange_id(store.as_ref(), rank, timeout).map_err(backend)?;
        let communicator = Communicator::connect(&id, rank, world_size, device_index, timeout)
            .map_err(|error| backend(error.to_string()))?;
        let stream = Stream::new(device_index).map_err(|error| backend(error.to_string()))?;
        let shared = Shared { membership, communicator: Mutex::new(Some(communicator)) };
        Ok(Self { device_index, stream, shared: Arc::new(shared) })
    }

    /// Queues an operation on the communication stream. `tensors` are what it reads and writes.
    fn start(
        &self,
        operation: &'static str,
        operands: Result<(), String>,
        tensors: &[&Tensor],
        queue: impl FnOnce(&Communicator, &Stream) -> Result<(), NcclError>,
    ) -> Result<Pending, CollectiveError> {
        let shared = &self.shared;
        let sequence = shared.membership.enter(operation, operands)?;
        let failed = |cause: String| shared.failure(operation, sequence, cause);
        let done = self.queue(tensors, queue).map_err(failed)?;
        let (shared, device_index) = (Arc::clone(shared), self.device_index);
        // Held until the operation is done, since it runs after this call returns.
        let held: Vec<Tensor> = tensors.iter().map(|tensor| tensor.shallow_clone()).collect();
        Ok(Pending::new(move || {
            let ordered = shared.watch(operation, &done).and_then(|()| {
                let caller = Stream::current(device_index);
                caller.and_then(|s| done.block(&s)).map_err(|error| error.to_string())
            });
            drop(held);
            ordered.map_err(|cause| shared.failure(operation, sequence, cause))
        }))
    }

    fn queue(
        &self,
        tensors: &[&Tensor],
        queue: impl FnOnce(&Communicator, &Stream) -> Result<(), NcclError>,
    ) -> Result<Event, String> {
        let text = |error: plumb_torch::TorchError| error.to_string();
        let caller = Stream::current(self.device_index).map_err(text)?;
        Event::record(&caller).and_then(|ready| ready.block(&self.stream)).map_err(text)?;
        for tensor in tensors {
            self.stream.keeps(tensor).map_err(text)?;
        }
        match self.shared.communicator().as_ref() {
            None => return Err("the group was aborted".to_owned()),
            Some(communicator) => {
                queue(communicator, &self.stream).map_err(|error| error.to_string())?;
            }
        }
        Event::record(&self.stream).map_err(text)
    }

    fn on_device(&self, tensor: &Tensor) -> Result<(), String> {
        let device = Device::Cuda(self.device_index);
        if tensor.device() == device {
            check_one(tensor)
        } else {
            Err(format!("a tensor on {:?} is not on this rank's {device:?}", tensor.device()))
        }
    }
}

/// Rank 0's new id, or the one that rank 0 set.
fn exchange_id(store: &dyn Store, rank: usize, timeout: Duration) -> Result<UniqueId, String> {
    if rank == 0 {
        let id = UniqueId::generate().map_err(|error| error.to_string())?;
        store.set(ID_KEY, id.as_bytes()).map_err(|error| error.to_string())?;
        return Ok(id);
    }
    let values = store.get(&[ID_KEY], timeout).map_err(|error| match error {
        StoreError::Timeout { .. } => "rank 0 made no nccl id in time".to_owned(),
        other => other.to_string(),
    })?;
    let bytes = values.first().ok_or("the rendezvous store gave no nccl id")?;
    UniqueId::from_bytes(bytes).map_err(|error| error.to_string())
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.shared.membership.rank
    }

    fn world_size(&self) -> usize {
        self.shared.membership.world_size
    }

    fn group(&self) -> &str {
        &self.shared.membership.group
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<Pending, CollectiveError> {
        self.start("all-reduce", self.on_device(tensor), &[tensor], |comm, stream| {
            comm.all_reduce(tensor, op, stream)
        })
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<Pending, CollectiveError> {
        let operands = self.on_device(out).and_then(|()| check_pair(out, input, self.world_size()));
        self.start("all-gather", operands, &[out, input], |comm, stream| {
            comm.all_gather(out, input, stream)
        })
    }

    fn reduce_scatter(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Pending, CollectiveError> {
        let operands =
            self.on_device(input).and_then(|()| check_pair(input, out, self.world_size()));
        self.start("reduce-scatter", operands, &[out, input], |comm, stream| {
            comm.reduce_scatter(out, input, op, stream)
        })
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, CollectiveError> {
        let operands = self.on_device(tensor).and_then(|()| check_root(root, self.world_size()));
        self.start("broadcast", operands, &[tensor], |comm, stream| {
            comm.broadcast(tensor, root, stream)
        })
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let options = (Kind::Float, Device::Cuda(self.device_index));
        let ones = Tensor::f_ones([1], options);
        let ones = ones.map_err(|e| self.shared.membership.backend("nccl", e.to_string()))?;
        self.start("barrier", Ok(()), &[&ones], |comm, stream| {
            comm.all_reduce(&ones, ReduceOp::Sum, stream)
        })?
        .wait()
    }

    fn abort_handle(&self) -> AbortHandle {
        let shared = Arc::downgrade(&self.shared);
        AbortHandle::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.membership.end();
                shared.close();
            }
        })
    }
}

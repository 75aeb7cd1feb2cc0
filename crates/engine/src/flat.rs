//! One block's parameters as one flat vector, cut evenly over the ranks.
//!
//! FLAT-1: padding elements are zero in parameters and gradients, so that norms and digests do
//! not depend on the world size.
//! FLAT-2: every rank runs the same gathers and reductions in the same order.

use plumb_collective::{Collective, Pending, ReduceOp};
use plumb_model::BlockSpec;
use plumb_torch::allocator::mapped_zeros;
use tch::{Device, Kind, Tensor};

use crate::{Placement, Result};

/// Where one parameter lies in its block's flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Hugging Face name.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// First element in the flat vector.
    pub offset: i64,
    /// Number of elements.
    pub elements: i64,
}

/// The cut of one block over a number of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Parameters in order.
    pub slots: Vec<Slot>,
    /// Elements of all parameters, without padding.
    pub elements: i64,
    /// Elements of one rank's shard; `shard * ranks >= elements`.
    pub shard: i64,
    /// Number of ranks.
    pub ranks: i64,
}

impl Layout {
    /// Lays the parameters of a block end to end.
    #[must_use]
    pub fn new(spec: &BlockSpec, ranks: usize) -> Self {
        let mut offset = 0;
        let slots = spec.params.iter().map(|param| {
            let elements = param.shape.iter().product();
            let slot =
                Slot { name: param.name.clone(), shape: param.shape.clone(), offset, elements };
            offset += elements;
            slot
        });
        let slots = slots.collect();
        let ranks = ranks as i64;
        Self { slots, elements: offset, shard: (offset + ranks - 1) / ranks, ranks }
    }

    /// Elements of all shards together.
    #[must_use]
    pub fn padded(&self) -> i64 {
        self.shard * self.ranks
    }

    /// The parameters as views of a flat vector `[>= elements]`.
    #[must_use]
    pub fn views(&self, flat: &Tensor) -> Vec<Tensor> {
        self.slots.iter().map(|slot| view(flat, slot)).collect()
    }
}

fn view(flat: &Tensor, slot: &Slot) -> Tensor {
    flat.narrow(0, slot.offset, slot.elements).view(slot.shape.as_slice())
}

/// The gathered copy of a block.
#[derive(Debug)]
enum Gathered {
    /// Not held.
    Absent,
    /// On its way.
    Arriving { flat_p: Tensor, shard_s: Tensor, pending: Pending },
    /// Held, `[padded]`.
    Ready(Tensor),
    /// Its memory is given back, but a graph still points at it; gathering refills it in place.
    Released(Tensor),
}

/// Gradient of one micro-batch (world size 1: of all since the last step) before the reduction.
#[derive(Debug)]
struct Partial {
    flat_p: Tensor,
    written: Vec<bool>,
}

/// One block's shard and what is derived from it. P = padded elements, S = elements of a shard.
#[derive(Debug)]
pub struct FlatBlock {
    /// The cut.
    pub layout: Layout,
    /// Whether any parameter is trained.
    pub trainable: bool,
    /// Which parameters are trained, by slot. The gradient of the others is zero.
    pub trained: Vec<bool>,
    /// fp32 when trainable, else the compute type, `[S]`.
    master_s: Tensor,
    /// Compute-type copy of the master, `[S]`; absent when stale.
    compute_s: Option<Tensor>,
    gathered: Gathered,
    partial: Option<Partial>,
    /// Reduced fp32 gradient, `[S]`.
    grad_s: Option<Tensor>,
    compute: Kind,
    placement: Placement,
}

impl FlatBlock {
    /// An all-zero block; [`FlatBlock::master`] is then filled by the loader. `trained` has one
    /// entry per slot.
    #[must_use]
    pub fn zeros(layout: Layout, trained: Vec<bool>, compute: Kind, placement: Placement) -> Self {
        let trainable = trained.contains(&true);
        let kind = if trainable { Kind::Float } else { compute };
        let master_s = placement.master(layout.shard, kind);
        Self {
            layout,
            trainable,
            trained,
            master_s,
            compute_s: None,
            gathered: Gathered::Absent,
            partial: None,
            grad_s: None,
            compute,
            placement,
        }
    }

    /// The master shard `[S]`, for reading.
    pub fn master(&self) -> &Tensor {
        &self.master_s
    }

    /// The master shard for writing; every derived copy becomes stale and is dropped.
    pub fn master_mut(&mut self) -> &mut Tensor {
        self.compute_s = None;
        self.gathered = Gathered::Absent;
        &mut self.master_s
    }

    /// Starts gathering unless the block is held or on its way.
    ///
    /// # Errors
    /// A failed collective.
    pub fn start_gather(&mut self, comm: &dyn Collective) -> Result<()> {
        if matches!(self.gathered, Gathered::Ready(_) | Gathered::Arriving { .. }) {
            return Ok(());
        }
        if self.shard_is_whole() {
            self.gathered = Gathered::Ready(self.compute_shard());
            return Ok(());
        }
        let previous = std::mem::replace(&mut self.gathered, Gathered::Absent);
        let flat_p = self.receiving(previous)?;
        // Through `data`: a graph that saved views of this memory must not see a new version.
        let mut target_p = flat_p.data();
        if self.layout.ranks == 1 {
            target_p.copy_(&self.compute_shard());
            self.gathered = Gathered::Ready(flat_p);
            return Ok(());
        }
        let shard = self.layout.shard;
        let shard_s = if self.placement.shard_on_host {
            self.placement.on_device(&self.compute_shard())
        } else if self.placement.master_on_host {
            self.compute_shard()
        } else {
            // Rounded into its place, so that no copy of it in the compute type is held.
            let mut own_s = target_p.narrow(0, comm.rank() as i64 * shard, shard);
            own_s.copy_(&self.master_s);
            own_s
        };
        let pending = comm.all_gather(&mut target_p, &shard_s)?;
        self.gathered = Gathered::Arriving { flat_p, shard_s, pending };
        Ok(())
    }

    /// Whether this rank's shard is the gathered block already.
    fn shard_is_whole(&self) -> bool {
        self.layout.ranks == 1 && !self.placement.shard_on_host
    }

    fn receiving(&self, previous: Gathered) -> Result<Tensor> {
        let padded = self.layout.padded();
        match previous {
            Gathered::Released(flat_p) => {
                plumb_torch::storage_resize(
                    &flat_p,
                    padded as usize * self.compute.elt_size_in_bytes(),
                )?;
                Ok(flat_p)
            }
            _ => Ok(mapped_zeros(padded, self.compute, self.placement.device)),
        }
    }

    fn compute_shard(&mut self) -> Tensor {
        let (master_s, compute, placement) = (&self.master_s, self.compute, self.placement);
        if placement.master_is_shard(master_s.kind() == compute) {
            return master_s.shallow_clone();
        }
        self.compute_s.get_or_insert_with(|| placement.shard_of(master_s, compute)).shallow_clone()
    }

    /// The gathered flat vector `[P]`, waiting for it where needed.
    ///
    /// # Errors
    /// A failed collective.
    pub fn gather(&mut self, comm: &dyn Collective) -> Result<Tensor> {
        self.start_gather(comm)?;
        let gathered = match std::mem::replace(&mut self.gathered, Gathered::Absent) {
            Gathered::Arriving { flat_p, shard_s, pending } => {
                pending.wait()?;
                drop(shard_s);
                Gathered::Ready(flat_p)
            }
            other => other,
        };
        self.gathered = gathered;
        match &self.gathered {
            Gathered::Ready(flat_p) => Ok(flat_p.shallow_clone()),
            _ => unreachable!("start_gather leaves a block arriving or ready"),
        }
    }

    /// All shards of the master, `[P]`, in the master's type, on the device.
    ///
    /// # Errors
    /// A failed collective.
    pub fn gather_master(&self, comm: &dyn Collective) -> Result<Tensor> {
        let master_s = self.master_s.to_device(self.placement.device);
        if self.layout.ranks == 1 {
            return Ok(master_s);
        }
        let padded = self.layout.padded();
        let mut flat_p = mapped_zeros(padded, master_s.kind(), master_s.device());
        comm.all_gather(&mut flat_p, &master_s)?.wait()?;
        Ok(flat_p)
    }

    /// Gives the gathered memory back at once. `graph_holds_views` says that a kept graph still
    /// points at it; the next gather then refills the same memory.
    ///
    /// # Errors
    /// A storage that cannot be resized.
    pub fn free(&mut self, graph_holds_views: bool) -> Result<()> {
        if self.shard_is_whole() {
            // The gathered copy is the shard itself.
            self.gathered = Gathered::Absent;
            return Ok(());
        }
        self.gathered = match std::mem::replace(&mut self.gathered, Gathered::Absent) {
            Gathered::Ready(flat_p) => {
                plumb_torch::storage_resize(&flat_p, 0)?;
                if graph_holds_views { Gathered::Released(flat_p) } else { Gathered::Absent }
            }
            other => other,
        };
        Ok(())
    }

    /// Forgets memory that a dropped graph pointed at.
    pub fn forget_released(&mut self) {
        if matches!(self.gathered, Gathered::Released(_)) {
            self.gathered = Gathered::Absent;
        }
    }
}

/// Gradients.
impl FlatBlock {
    /// Adds one parameter's gradient of this micro-batch; that of a frozen one is dropped.
    pub fn add_gradient(&mut self, slot: usize, grad: &Tensor, reduce: Kind) {
        if !self.trained[slot] {
            return;
        }
        let kind = self.buffer_kind(reduce);
        let layout = &self.layout;
        let partial = partial(&mut self.partial, layout, kind, grad.device());
        let mut target = view(&partial.flat_p, &layout.slots[slot]);
        if partial.written[slot] {
            let _ = target.g_add_(grad);
        } else {
            target.copy_(grad);
            partial.written[slot] = true;
        }
    }

    /// Adds `grad_nh` to the rows `ids_n` of an embedding's gradient: the backward of a lookup,
    /// without a dense temporary.
    pub fn add_embedding_gradient(
        &mut self,
        slot: usize,
        ids_n: &Tensor,
        grad_nh: &Tensor,
        reduce: Kind,
    ) {
        let kind = self.buffer_kind(reduce);
        let layout = &self.layout;
        let partial = partial(&mut self.partial, layout, kind, grad_nh.device());
        let mut target = view(&partial.flat_p, &layout.slots[slot]);
        if !std::mem::replace(&mut partial.written[slot], true) {
            let _ = target.zero_();
        }
        let _ = target.index_add_(0, ids_n, &grad_nh.to_kind(kind));
    }

    /// At world size 1 the buffer collects over micro-batches and is the final gradient: fp32.
    fn buffer_kind(&self, reduce: Kind) -> Kind {
        if self.layout.ranks == 1 { Kind::Float } else { reduce }
    }

    /// Starts summing this micro-batch's gradient over ranks; at world size 1 it goes to the host
    /// if the master is there, and else nothing is to do.
    /// Every rank calls this for every trainable block and micro-batch (FLAT-2), also when it
    /// has no gradient.
    ///
    /// # Errors
    /// A failed collective.
    pub fn start_reduce(
        &mut self,
        comm: &dyn Collective,
        reduce: Kind,
    ) -> Result<Option<Reduction>> {
        let device = self.placement.device;
        if self.layout.ranks == 1 {
            if self.placement.master_on_host
                && let Some(partial) = self.partial.take()
            {
                self.collect(finished(partial, &self.layout));
            }
            return Ok(None);
        }
        let _ = partial(&mut self.partial, &self.layout, reduce, device);
        let Some(partial) = self.partial.take() else { return Ok(None) };
        let flat_p = finished(partial, &self.layout);
        let mut out_s = mapped_zeros(self.layout.shard, reduce, device);
        let pending = comm.reduce_scatter(&mut out_s, &flat_p, ReduceOp::Sum)?;
        Ok(Some(Reduction { out_s, flat_p, pending }))
    }

    /// Waits for a reduction and adds it to the shard's gradient.
    ///
    /// # Errors
    /// A failed collective.
    pub fn finish_reduce(&mut self, reduction: Reduction) -> Result<()> {
        reduction.pending.wait()?;
        drop(reduction.flat_p);
        self.collect(reduction.out_s);
        Ok(())
    }

    /// Adds a reduced gradient `[S]` to that of the micro-batches before, where the master lives.
    fn collect(&mut self, more_s: Tensor) {
        let more_s = more_s.to_device(self.master_s.device());
        match &mut self.grad_s {
            Some(grad_s) => drop(grad_s.g_add_(&more_s)),
            None if more_s.kind() == Kind::Float => self.grad_s = Some(more_s),
            None => {
                let mut grad_s = mapped_zeros(self.layout.shard, Kind::Float, more_s.device());
                grad_s.copy_(&more_s);
                self.grad_s = Some(grad_s);
            }
        }
    }

    /// The gradient `[S]` fp32 collected since the last call, which is thereby cleared; `None`
    /// when the block got none.
    pub fn take_gradient(&mut self) -> Option<Tensor> {
        if self.layout.ranks == 1 && !self.placement.master_on_host {
            return self.partial.take().map(|partial| finished(partial, &self.layout));
        }
        self.grad_s.take()
    }

    /// Drops what a failed or abandoned step has collected.
    pub fn discard_gradient(&mut self) {
        self.partial = None;
        self.grad_s = None;
    }
}

/// A gradient on its way to its owner.
#[derive(Debug)]
pub struct Reduction {
    out_s: Tensor,
    flat_p: Tensor,
    pending: Pending,
}

fn partial<'a>(
    partial: &'a mut Option<Partial>,
    layout: &Layout,
    kind: Kind,
    device: Device,
) -> &'a mut Partial {
    partial.get_or_insert_with(|| Partial {
        flat_p: mapped_zeros(layout.padded(), kind, device),
        written: vec![false; layout.slots.len()],
    })
}

/// Zeroes what no gradient was written to, and the padding (FLAT-1).
fn finished(partial: Partial, layout: &Layout) -> Tensor {
    for (slot, _) in layout.slots.iter().zip(&partial.written).filter(|(_, written)| !**written) {
        let _ = partial.flat_p.narrow(0, slot.offset, slot.elements).zero_();
    }
    let padding = layout.padded() - layout.elements;
    if padding > 0 {
        let _ = partial.flat_p.narrow(0, layout.elements, padding).zero_();
    }
    partial.flat_p
}

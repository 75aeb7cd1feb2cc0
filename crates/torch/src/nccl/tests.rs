use tch::Kind;

use super::*;

#[test]
fn a_missing_library_is_an_error_that_names_it() {
    match UniqueId::generate() {
        Ok(id) => assert_eq!(UniqueId::from_bytes(id.as_bytes()).unwrap(), id),
        Err(NcclError::Unavailable { reason }) => {
            assert!(reason.contains("libnccl.so.2"), "{reason}");
            assert!(version().is_err(), "the failure is remembered");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_id_of_the_wrong_length_is_refused() {
    let error = UniqueId::from_bytes(&[0; 127]).unwrap_err();
    assert!(error.to_string().contains("127 bytes instead of 128"), "{error}");
}

#[test]
fn cpu_tensors_are_refused() {
    let tensor = Tensor::zeros([4], (Kind::Float, tch::Device::Cpu));
    let error = Buffer::of("all-reduce", &tensor).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("Cpu"), "{error}");
}

#[test]
fn the_worse_of_two_codes_wins() {
    assert_eq!(worse(SUCCESS, SUCCESS), SUCCESS);
    assert_eq!(worse(SUCCESS, IN_PROGRESS), IN_PROGRESS);
    assert_eq!(worse(IN_PROGRESS, 3), 3);
    assert_eq!(worse(3, IN_PROGRESS), 3);
    assert_eq!(worse(2, 3), 2);
}

/// World size 1 on one GPU: NCCL refuses two ranks on one device.
#[test]
fn one_rank_on_a_gpu_goes_through_every_operation() {
    if let Err(error) = crate::cuda::load() {
        println!("skipped: no cuda device here ({error})");
        return;
    }
    let id = UniqueId::generate().unwrap();
    let comm = Communicator::connect(&id, 0, 1, 0, Duration::from_secs(60)).unwrap();
    let stream = Stream::new(0).unwrap();
    let options = (Kind::Float, tch::Device::Cuda(0));
    let tensor = Tensor::arange(8, options);
    let copy = Tensor::zeros([8], options);
    device::synchronize(0).unwrap();
    comm.all_reduce(&tensor, ReduceOp::Sum, &stream).unwrap();
    comm.broadcast(&tensor, 0, &stream).unwrap();
    comm.all_gather(&copy, &tensor, &stream).unwrap();
    stream.synchronize().unwrap();
    assert!(copy.equal(&tensor));
    let back = Tensor::zeros([8], options);
    device::synchronize(0).unwrap();
    comm.reduce_scatter(&back, &copy, ReduceOp::Max, &stream).unwrap();
    comm.exchange(&[(&back, 0)], &[(&copy, 0)], &stream).unwrap();
    stream.synchronize().unwrap();
    assert!(back.equal(&tensor) && copy.equal(&tensor));
    comm.check("test").unwrap();
    assert!(comm.broadcast(&tensor, 1, &stream).is_err());
    comm.close().unwrap();
}

//! What every backend asks of its operands, so that a mistake is the same error everywhere.

use tch::Tensor;

/// What is wrong with one operand, if anything.
pub(crate) fn check_one(tensor: &Tensor) -> Result<(), String> {
    if tensor.is_contiguous() {
        Ok(())
    } else {
        Err(format!("a tensor of shape {:?} is not contiguous", tensor.size()))
    }
}

/// What is wrong with a pair of which `whole` holds `world_size` times `part`, if anything.
pub(crate) fn check_pair(whole: &Tensor, part: &Tensor, world_size: usize) -> Result<(), String> {
    check_one(whole)?;
    check_one(part)?;
    if whole.kind() != part.kind() {
        return Err(format!("dtypes {:?} and {:?} differ", whole.kind(), part.kind()));
    }
    if whole.device() != part.device() {
        return Err(format!("devices {:?} and {:?} differ", whole.device(), part.device()));
    }
    if whole.numel() != part.numel() * world_size {
        return Err(format!(
            "{} elements are not {world_size} ranks times {}",
            whole.numel(),
            part.numel()
        ));
    }
    Ok(())
}

/// What is wrong with a root, if anything.
pub(crate) fn check_root(root: usize, world_size: usize) -> Result<(), String> {
    if root < world_size {
        Ok(())
    } else {
        Err(format!("there is no rank {root} in a group of {world_size}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |n: i64, kind| Tensor::zeros([n], (kind, Device::Cpu));
        let whole = zeros(6, Kind::Float);
        assert_eq!(check_pair(&whole, &zeros(3, Kind::Float), 2), Ok(()));
        let error = check_pair(&whole, &zeros(2, Kind::Float), 2).unwrap_err();
        assert_eq!(error, "6 elements are not 2 ranks times 2");
        let error = check_pair(&whole, &zeros(3, Kind::Double), 2).unwrap_err();
        assert_eq!(error, "dtypes Float and Double differ");
        let error = check_one(&whole.view([2, 3]).tr()).unwrap_err();
        assert!(error.contains("[3, 2] is not contiguous"), "{error}");
        assert_eq!(check_root(2, 2).unwrap_err(), "there is no rank 2 in a group of 2");
    }
}

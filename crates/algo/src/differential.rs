//! Each form that runs over whole batches against a loop that spells the equation out.

mod advantage_family;
mod constraint;
mod rank;
mod rows;
mod score_model;
mod turn;
mod verdict;

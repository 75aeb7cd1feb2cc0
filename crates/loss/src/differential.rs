//! Vectorised forms against loops over plain numbers, on random cases.

mod policy;
mod preference;

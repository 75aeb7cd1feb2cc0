//! Vectorised forms against loops over plain numbers, on random cases.

mod preference;

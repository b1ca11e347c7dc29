//! Puts a kernel into guest memory and says in which state its first CPU enters it.

pub mod linux64;

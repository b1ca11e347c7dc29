//! The end of the guest's life: our key removed, its disk synced, and a power-off that the guest
//! itself carries out, so that its file systems are clean.

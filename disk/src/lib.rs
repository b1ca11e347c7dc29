//! Block backends, overlays, partition tables and file systems.

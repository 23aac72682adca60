//! Image files: the current `.fl` and the legacy `.flist`.

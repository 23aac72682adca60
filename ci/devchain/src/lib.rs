//! A chain that behaves as TFChain does, on one machine.

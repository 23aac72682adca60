//! The bytes that Mycelium nodes exchange, without a socket.

//! A synchronous ZDB client.
